"""Checkpoints, files and directories alike: compress, decompress, verify (§7, §8)."""

from __future__ import annotations

import os
import time
from pathlib import Path

from neuzip import directory, member
from neuzip.codec import Options
from neuzip.container import Container
from neuzip.draft import drafted_file
from neuzip.errors import InvalidArgument
from neuzip.files import MappedFile, drop_cache, storage
from neuzip.manifest import CONTAINER
from neuzip.report import PLAIN, FileReport, Meter, Progress, Report
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
) -> Report:
    """Compresses a safetensors file to a container (§7) or a directory to a compressed directory (§8).

    dst: X.nz.safetensors for X.safetensors and D.nz for D, if not given; it appears only when it is complete.
    force: replace dst; of an existing directory only if nothing but the result would be lost.
    remove: remove src, after the result was decoded and compared with it.
    Symbolic links to files in a directory are read, and are what remove removes.

    Raises InvalidArgument, StorageError, and CorruptFrame, TruncatedInput or UnsupportedFormat for a source
    that is no safetensors file. After an error src and dst are as they were.
    """
    source = Path(src)
    destination = Path(dst) if dst is not None else _compressed_path(source)
    task = Task(source, destination, Options(level=level, threads=threads), force, remove, progress)
    task.check()
    return directory.compress(task) if source.is_dir() else _compress(task)


def decompress_file(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    force: bool = False,
    remove: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Restores the file of a container (§7) or the directory of a compressed directory (§8), byte for byte.

    dst: the source's name without .nz, if not given. force, remove: as for compress_file. The checksums of
    all chunks and the sha256 of all files are checked before dst appears.

    Raises InvalidArgument, CorruptFrame, TruncatedInput, UnsupportedFormat, StorageError. After an error src
    and dst are as they were.
    """
    source = Path(src)
    destination = Path(dst) if dst is not None else _restored_path(source)
    task = Task(source, destination, Options(threads=threads), force, remove, progress)
    task.check()
    return directory.restore(task) if source.is_dir() else _restore(task)


def verify_file(
    src: str | os.PathLike[str], threads: int | None = None, progress: Progress | None = None
) -> Report:
    """Decodes a container or compressed directory and checks all checksums and sha256s, writing nothing.

    Of a plain safetensors file or directory only the structure can be checked.

    Raises CorruptFrame, TruncatedInput, UnsupportedFormat, StorageError.
    """
    source, options = Path(src), Options(threads=threads)
    if source.is_dir():
        return directory.verify(source, options, progress)
    started = time.perf_counter()
    with Container.open(source) as container:
        size = container.original.file_size
        meter = Meter(size, progress)
        if container.compressed:
            member.verify(container, options, meter.advance)
        else:
            meter.advance(size)
        coding = CONTAINER if container.compressed else PLAIN
        file = FileReport(source.name, size, container.header.file_size, coding)
    return _report(source, None, file, started)


def _compress(task: Task) -> Report:
    started = time.perf_counter()
    with Container.open(task.source) as plain:
        meter = Meter(plain.original.file_size, task.progress)
        with drafted_file(task.destination, force=task.force) as draft:
            record = member.compress(plain, draft, task.destination, task.options, meter.advance)
            if task.remove:
                drop_cache(draft)
                with Container.open(draft) as written, MappedFile(task.source) as source:
                    member.compare(written, source, task.options)
                    source.check_unchanged()
            compressed = _size(draft)
    if task.remove:
        _remove(task.source)
    file = FileReport(task.source.name, record.size, compressed, CONTAINER)
    return _report(task.source, task.destination, file, started)


def _restore(task: Task) -> Report:
    started = time.perf_counter()
    with Container.open(task.source) as container:
        record = member.original_record(container)
        meter = Meter(record.size, task.progress)
        with drafted_file(task.destination, force=task.force) as draft:
            member.restore(container, draft, task.destination, task.options, meter.advance)
            if task.remove:
                drop_cache(draft)
                with MappedFile(draft) as written:
                    member.compare(container, written, task.options)
        compressed = container.header.file_size
    if task.remove:
        _remove(task.source)
    file = FileReport(task.destination.name, record.size, compressed, CONTAINER)
    return _report(task.source, task.destination, file, started)


def _report(source: Path, destination: Path | None, file: FileReport, started: float) -> Report:
    seconds = time.perf_counter() - started
    return Report(source, destination, file.original_size, file.compressed_size, seconds, (file,))


def _compressed_path(source: Path) -> Path:
    if source.is_dir():
        # "." and ".." are not the directory's name.
        named = source.resolve() if source.name in ("", "..") else source
        return named.with_name(named.name + _INFIX)
    if source.suffix != member.SUFFIX:
        raise InvalidArgument(
            f"the name does not end in {member.SUFFIX}: a destination is needed", file=source
        )
    return source.with_name(source.stem + _INFIX + member.SUFFIX)


def _restored_path(source: Path) -> Path:
    suffix = _INFIX if source.is_dir() else _INFIX + member.SUFFIX
    if not source.name.endswith(suffix) or source.name == suffix:
        raise InvalidArgument(f"the name does not end in {suffix}: a destination is needed", file=source)
    return source.with_name(source.name.removesuffix(suffix) + ("" if source.is_dir() else member.SUFFIX))


def _size(path: Path) -> int:
    with storage(path):
        return path.stat().st_size


def _remove(path: Path) -> None:
    with storage(path):
        path.unlink()
