"""Checkpoints, files and directories alike: compress, decompress, verify (§7, §8)."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from neuzip import member
from neuzip.codec import Options
from neuzip.container import Container
from neuzip.draft import drafted_file
from neuzip.errors import InvalidArgument
from neuzip.files import FileBytes, drop_cache, storage
from neuzip.manifest import ARCHIVE, CONTAINER, COPY
from neuzip.report import PLAIN, FileReport, Meter, Progress, Report
from neuzip.safetensors_header import LENGTH
from neuzip.task import Task

__all__ = ["FileReport", "Progress", "Report", "compress_file", "decompress_file", "verify_file"]

_INFIX = ".nz"


def compress_file(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None = None,
    level: str = "default",
    threads: int | None = None,
    force: bool = False,
    remove: bool = False,
    progress: Progress | None = None,
    backend: str | None = None,
) -> Report:
    """Compresses a safetensors file to a container (§7), another file to an archive (§10), a directory to a
    compressed directory (§8).

    dst: X.nz.safetensors for X.safetensors, else X.nz for X, if not given; it appears only when it is complete.
    With a dst that ends in .nz a safetensors file becomes an archive.
    force: replace dst; of an existing directory only if nothing but the result would be lost.
    remove: remove src, after the result was decoded and compared with it.
    Symbolic links to files in a directory are read, and are what remove removes.
    backend: how files are read: "mmap"; "read", plain reads; None, plain reads on network file systems and else mmap.

    Raises InvalidArgument, StorageError, and CorruptFrame, TruncatedInput or UnsupportedFormat for a source
    that is a broken safetensors file. After an error src and dst are as they were.
    """
    source = Path(src)
    destination = Path(dst) if dst is not None else _compressed_path(source)
    task = Task(
        source, destination, Options(level=level, threads=threads, backend=backend), force, remove, progress
    )
    task.check()
    if source.is_dir():
        from neuzip import directory

        return directory.compress(task)
    return _compress(task)


def decompress_file(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    force: bool = False,
    remove: bool = False,
    progress: Progress | None = None,
    salvage: bool = False,
    backend: str | None = None,
) -> Report:
    """Restores the file of a container (§7) or archive (§10), or a compressed directory (§8), byte for byte.

    dst: the source's name without .nz, if not given. force, remove, backend: as for compress_file. The checksums of
    all chunks and the sha256 of all files are checked before dst appears.

    salvage: restore what is intact of a damaged src; the report's damages say what is not. A safetensors file is
    restored without the damaged tensors, a file of an archive with zeros in their place; what a directory keeps as
    a copy is restored as it is.

    Raises InvalidArgument, CorruptFrame, TruncatedInput, UnsupportedFormat, StorageError. After an error src
    and dst are as they were.
    """
    source = Path(src)
    destination = Path(dst) if dst is not None else _restored_path(source)
    task = Task(
        source, destination, Options(threads=threads, backend=backend), force, remove, progress, salvage
    )
    task.check()
    if source.is_dir():
        from neuzip import directory

        return directory.salvage(task) if salvage else directory.restore(task)
    return _salvage(task) if salvage else _restore(task)


def verify_file(
    src: str | os.PathLike[str],
    threads: int | None = None,
    progress: Progress | None = None,
    backend: str | None = None,
) -> Report:
    """Decodes a compressed file or directory and checks all checksums and sha256s, writing nothing.

    Of a plain safetensors file or directory only the structure can be checked.

    Raises DamagedFile, whose damages are all damaged chunks, tensors and files; CorruptFrame, TruncatedInput or
    UnsupportedFormat if not even the header can be read; StorageError; InvalidArgument for another plain file.
    """
    source, options = Path(src), Options(threads=threads, backend=backend)
    if source.is_dir():
        from neuzip import directory

        return directory.verify(source, options, progress)
    started = time.perf_counter()
    coding = _coding(source)
    with member.open_packed(source, coding, options, damaged=True) as packed:
        size = packed.original_size
        meter = Meter(size, progress)
        if packed.sha256 is not None:
            member.verify(packed, options, meter.advance)
        else:
            with member.open_packed(source, coding, options):  # whole
                meter.advance(size)
            coding = PLAIN
    file = FileReport(source.name, size, _size(source), coding)
    return _report(source, None, file, started)


def _compress(task: Task) -> Report:
    started = time.perf_counter()
    with _plain(task) as plain:
        meter = Meter(_size(task.source), task.progress)
        with drafted_file(task.destination, force=task.force) as draft:
            arguments = draft, task.destination, task.options, meter.advance
            if isinstance(plain, Container):
                record = member.compress(plain, *arguments)
            else:
                record = member.archive(plain, *arguments)
            if task.remove:
                drop_cache(draft)
                with (
                    member.open_packed(draft, record.coding, task.options) as written,
                    FileBytes(task.source, task.options.backend) as source,
                ):
                    member.compare(written, source, task.options)
                    source.check_unchanged()
            compressed = _size(draft)
    if task.remove:
        _remove(task.source)
    file = FileReport(task.source.name, record.size, compressed, record.coding)
    return _report(task.source, task.destination, file, started)


def _plain(task: Task) -> Container | FileBytes:
    """The source: a safetensors file if it, or else its destination, is to be one."""
    named = task.source.suffix == member.SUFFIX and task.destination.suffix != _INFIX
    if named or task.destination.suffix == member.SUFFIX:
        return Container.open(task.source, backend=task.options.backend)
    return FileBytes(task.source, task.options.backend)


def _restore(task: Task) -> Report:
    started = time.perf_counter()
    with member.open_packed(task.source, _coding(task.source), task.options) as packed:
        record = member.original_record(packed)
        meter = Meter(record.size, task.progress)
        with drafted_file(task.destination, force=task.force) as draft:
            member.restore(packed, draft, task.destination, task.options, meter.advance)
            if task.remove:
                drop_cache(draft)
                with FileBytes(draft, task.options.backend) as written:
                    member.compare(packed, written, task.options)
        compressed = _size(task.source)
    if task.remove:
        _remove(task.source)
    file = FileReport(task.destination.name, record.size, compressed, record.coding)
    return _report(task.source, task.destination, file, started)


def _salvage(task: Task) -> Report:
    started = time.perf_counter()
    with member.open_packed(task.source, _coding(task.source), task.options, damaged=True) as packed:
        meter = Meter(2 * packed.original_size, task.progress)
        with drafted_file(task.destination, force=task.force) as draft:
            record, damages = member.salvage(packed, draft, task.destination, task.options, meter.advance)
    compressed = _size(task.source)
    file = FileReport(task.destination.name, record.size, compressed, record.coding)
    return replace(_report(task.source, task.destination, file, started), damages=damages)


def _coding(path: Path) -> str:
    """What to open a file as, by its beginning or its name. Raises InvalidArgument for a plain file of another kind."""
    coding = member.guess_coding(path)
    if coding != COPY:
        return coding
    if path.suffix == _INFIX:
        return ARCHIVE
    with FileBytes(path) as file:
        if bytes(file.view[LENGTH.size : LENGTH.size + 1]) != b"{":
            raise InvalidArgument("neither compressed nor a safetensors file", file=path)
    return CONTAINER


def _report(source: Path, destination: Path | None, file: FileReport, started: float) -> Report:
    seconds = time.perf_counter() - started
    return Report(source, destination, file.original_size, file.compressed_size, seconds, (file,))


def _compressed_path(source: Path) -> Path:
    # "." and ".." are not a directory's name.
    named = source.resolve() if source.name in ("", "..") else source
    if named.suffix == member.SUFFIX and not source.is_dir():
        return source.with_name(source.stem + _INFIX + member.SUFFIX)
    return named.with_name(named.name + _INFIX)


def _restored_path(source: Path) -> Path:
    name = source.name
    if not source.is_dir() and name.endswith(_INFIX + member.SUFFIX):
        stem, suffix = name.removesuffix(_INFIX + member.SUFFIX), member.SUFFIX
    else:
        stem, suffix = name.removesuffix(_INFIX), ""
    if not stem or stem == name:
        raise InvalidArgument(f"the name does not end in {_INFIX}: a destination is needed", file=source)
    return source.with_name(stem + suffix)


def _size(path: Path) -> int:
    with storage(path):
        return path.stat().st_size


def _remove(path: Path) -> None:
    with storage(path):
        path.unlink()
