"""Directories of checkpoints: every file of one under its own path, and the manifest (§8)."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from neuzip import member
from neuzip.codec import Options
from neuzip.container import Container
from neuzip.draft import DirectoryDraft, created_file, drafted_directory
from neuzip.errors import (
    CorruptFrame,
    DamagedFile,
    InvalidArgument,
    NeuzipError,
    StorageError,
    UnsupportedFormat,
)
from neuzip.files import FileBytes, drop_cache, remove_files, storage, walk_files
from neuzip.manifest import (
    ARCHIVE,
    CONFIG,
    CONTAINER,
    COPY,
    MANIFEST_NAME,
    Manifest,
    Record,
    check_index,
    is_index,
    member_path,
)
from neuzip.model_config import belongs_to_weights
from neuzip.report import PLAIN, FileReport, Meter, Progress, Report
from neuzip.task import Task

_MANIFEST_MODE = 0o644


def compress(task: Task) -> Report:
    """Compresses the directory of a task. See checkpoint.compress_file."""
    started = time.perf_counter()
    files = _source_files(task.source)
    if MANIFEST_NAME in files:
        raise InvalidArgument(f"already compressed: it has a {MANIFEST_NAME}", file=task.source)
    _check_indexes(files)
    with storage(task.source):
        meter = Meter(sum(path.stat().st_size for path in files.values()), task.progress)
    manifest = Manifest({})
    reports = []
    with drafted_directory(
        task.destination,
        force=task.force,
        check=lambda: _check_loss(task, files),
        work=f"compress {task.options.level} {task.options.chunk_log2}",
        names=files.keys(),
    ) as draft:
        for name, path in files.items():
            # What becomes of a config.json depends on other files, so it is not resumed.
            is_config = belongs_to_weights(name, files)
            record = None if is_config else _done(draft, name, path, meter)
            target = _make_parents(draft, name)
            if record is None:
                record = _compress_member(
                    path, target, task.destination / name, task.options, meter, is_config=is_config
                )
                if not is_config:
                    draft.add(name, path, asdict(record))
            manifest.files[name] = record
            reports.append(_file_report(name, record, target))
        text = manifest.format()
        manifest_path = draft.path / MANIFEST_NAME
        with created_file(
            manifest_path, mode=_MANIFEST_MODE, destination=task.destination / MANIFEST_NAME
        ) as out:
            out.write(text)
        if task.remove:
            _compare(Manifest.read(draft.path), draft.path, task.source, draft.path, task.options)
    if task.remove:
        remove_files(task.source, files)
    return _report(task.source, task.destination, reports, len(text), started)


def restore(task: Task) -> Report:
    """Restores the directory of a task. See checkpoint.decompress_file."""
    started = time.perf_counter()
    manifest, files = _open(task.source)
    meter = Meter(manifest.size, task.progress)
    reports = []
    with drafted_directory(
        task.destination,
        force=task.force,
        check=lambda: _check_loss(task, files),
        work="restore",
        names=files.keys(),
    ) as draft:
        for name, path in files.items():
            record = manifest.files[name]
            if _done(draft, name, path, meter) != record:
                target = _make_parents(draft, name)
                _restore_member(path, target, task.destination / name, record, task.options, meter)
                draft.add(name, path, asdict(record))
            reports.append(_file_report(name, record, path))
        if task.remove:
            _compare(manifest, task.source, draft.path, draft.path, task.options)
    overhead = _size(task.source / MANIFEST_NAME)
    if task.remove:
        remove_files(task.source, [*files, MANIFEST_NAME])
    return _report(task.source, task.destination, reports, overhead, started)


def salvage(task: Task) -> Report:
    """Restores what is intact of a damaged directory. See checkpoint.decompress_file."""
    started = time.perf_counter()
    manifest, files = _open(task.source, damaged=True)
    meter = Meter(2 * manifest.size, task.progress)
    reports: list[FileReport] = []
    damages: list[NeuzipError] = []
    with drafted_directory(
        task.destination,
        force=task.force,
        check=lambda: _check_loss(task, files),
        work="salvage",
        names=(),
    ) as draft:
        for name, path in files.items():
            record, target = manifest.files[name], _make_parents(draft, name)
            try:
                path = member_path(task.source, name)
                found, errors = _salvage_member(path, target, task.destination / name, record, task, meter)
            except NeuzipError as error:  # nothing of this file can be read
                if isinstance(error, StorageError) and error.file == str(task.destination / name):
                    raise
                damages.append(error.at(file=path))
                continue
            damages += errors
            reports.append(_file_report(name, found, path))
    overhead = _size(task.source / MANIFEST_NAME)
    return replace(_report(task.source, task.destination, reports, overhead, started), damages=tuple(damages))


def _salvage_member(
    source: Path, draft: Path, destination: Path, record: Record, task: Task, meter: Meter
) -> tuple[Record, tuple[NeuzipError, ...]]:
    if record.coding in (CONTAINER, ARCHIVE):
        with member.open_packed(source, record.coding, task.options, damaged=True) as packed:
            return member.salvage(packed, draft, destination, task.options, meter.advance)
    write = member.restore_config if record.coding == CONFIG else member.copy
    with FileBytes(source, task.options.backend) as file:
        try:
            found = write(file, draft, destination, meter.advance)
        except CorruptFrame as error:
            return member.copy(file, draft, destination, meter.advance), (error,)
    try:
        _check_record(found, record, source)
    except CorruptFrame as error:
        return found, (error,)
    return found, ()


def verify(source: Path, options: Options, progress: Progress | None) -> Report:
    """Verifies a directory. See checkpoint.verify_file."""
    started = time.perf_counter()
    if not (source / MANIFEST_NAME).exists():
        return _verify_plain(source, options, progress)
    manifest, files = _open(source, damaged=True)
    meter = Meter(manifest.size, progress)
    reports = []
    damages: list[NeuzipError] = []
    for name, path in files.items():
        record = manifest.files[name]
        try:
            _verify_member(member_path(source, name), record, options, meter)
            reports.append(_file_report(name, record, path))
        except DamagedFile as error:
            damages += error.damages
        except NeuzipError as error:
            damages.append(error.at(file=path))
    if damages:
        raise DamagedFile(damages)
    _check_indexes(files)
    return _report(source, None, reports, _size(source / MANIFEST_NAME), started)


def _verify_member(path: Path, record: Record, options: Options, meter: Meter) -> None:
    if record.coding in (CONTAINER, ARCHIVE):
        with member.open_packed(path, record.coding, options, damaged=True) as packed:
            _check_record(member.original_record(packed), record, path)
            member.verify(packed, options, meter.advance)
    else:
        with FileBytes(path, options.backend) as file:
            original = member.original_config(file) if record.coding == CONFIG else file.view
            _check_record(member.measure(original, record.coding, meter.advance), record, path)


def _verify_plain(source: Path, options: Options, progress: Progress | None) -> Report:
    """Checks a directory without a manifest: its shard indexes, its safetensors files, and its archives."""
    started = time.perf_counter()
    files = _source_files(source)
    _check_indexes(files)
    meter = Meter(sum(_size(path) for path in files.values()), progress)
    reports = []
    for name, path in files.items():
        size = _size(path)
        report = FileReport(name, size, size, COPY)
        coding = member.guess_coding(path)
        if coding != COPY:
            with member.open_packed(path, coding, options) as packed:
                report = FileReport(name, packed.original_size, size, PLAIN)
                if packed.sha256 is not None:
                    member.verify(packed, options, lambda count: None)
                    report = replace(report, coding=coding)
        reports.append(report)
        meter.advance(size)
    return _report(source, None, reports, 0, started)


def _open(source: Path, *, damaged: bool = False) -> tuple[Manifest, dict[str, Path]]:
    """The manifest and its files' paths; all there, and the shard indexes among them checked, if not damaged."""
    try:
        (source / MANIFEST_NAME).lstat()
    except OSError as error:
        raise InvalidArgument(f"not a compressed directory: no {MANIFEST_NAME}", file=source) from error
    manifest = Manifest.read(source)
    if damaged:
        return manifest, {name: source / name for name in manifest.files}
    files = {name: member_path(source, name) for name in manifest.files}
    _check_indexes(files)
    return manifest, files


def _source_files(source: Path) -> dict[str, Path]:
    """Every file of a directory to be compressed. Raises InvalidArgument for what is no file.

    Symbolic links to files are read: the Hugging Face cache is made of them.
    """
    files = dict(walk_files(source))
    for name, path in files.items():
        with storage(path):
            mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            what = "a link to a directory" if path.is_symlink() else "not a regular file"
            raise InvalidArgument(f"{what}: it cannot be compressed", file=path)
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"the name {name!a} is not Unicode text", file=source) from error
    return files


def _check_indexes(files: dict[str, Path]) -> None:
    for name, path in files.items():
        if is_index(name):
            check_index(path, name, files)


def _check_loss(task: Task, files: Iterable[str]) -> None:
    """Raises InvalidArgument if replacing the destination would lose a file that is neither replaced by the
    result nor listed in the destination's own manifest."""
    if not task.destination.is_dir():
        return
    known = {*files, MANIFEST_NAME}
    # No manifest, or none that can be trusted: then only the result counts.
    with suppress(NeuzipError):
        known |= Manifest.read(task.destination).files.keys()
    for name, path in walk_files(task.destination):
        if name not in known:
            raise InvalidArgument(
                "the destination has this file besides the result's; it would be lost", file=path
            )


def _compress_member(
    source: Path, draft: Path, destination: Path, options: Options, meter: Meter, *, is_config: bool
) -> Record:
    """A container or an archive if the file is no text and shrinks, else a copy (§8).

    is_config: whether the file is a config.json beside weights, in which the quantization method is named.
    """
    record = None
    with FileBytes(source, options.backend) as file:
        if source.suffix == member.SUFFIX:
            # A dtype or a container that only a later version knows is copied.
            with suppress(UnsupportedFormat), Container.open(source, backend=options.backend) as plain:
                if not plain.compressed:
                    record = member.compress(plain, draft, destination, options, meter.advance)
        elif member.to_archive(file):
            record = member.archive(file, draft, destination, options, meter.advance)
        if record is not None:
            if _size(draft) < record.size:
                return record
            draft.unlink()
            meter.advance(-record.size)
        named = member.name_method(file, draft, destination, meter.advance) if is_config else None
        return named or member.copy(file, draft, destination, meter.advance)


def _restore_member(
    source: Path, draft: Path, destination: Path, record: Record, options: Options, meter: Meter
) -> None:
    if record.coding in (CONTAINER, ARCHIVE):
        with member.open_packed(source, record.coding, options) as packed:
            # Before anything is written: a wrong size could fill the disk.
            _check_record(member.original_record(packed), record, source)
            member.restore(packed, draft, destination, options, meter.advance)
    else:
        write = member.restore_config if record.coding == CONFIG else member.copy
        with FileBytes(source, options.backend) as file:
            _check_record(write(file, draft, destination, meter.advance), record, source)


def _check_record(found: Record, expected: Record, path: Path) -> None:
    if found.size != expected.size:
        raise CorruptFrame(
            f"the original has {found.size} bytes; the manifest says {expected.size}", file=path
        )
    if found.sha256 != expected.sha256:
        raise CorruptFrame("the original's sha256 is not the manifest's", file=path)


def _compare(manifest: Manifest, compressed: Path, plain: Path, written: Path, options: Options) -> None:
    """Decodes every file of a compressed directory and compares it with the plain directory's.

    written: which of the two is new, and is to be read from the disk and not from memory.
    """
    for name in manifest.files:
        drop_cache(written / name)
    for name, record in manifest.files.items():
        with FileBytes(plain / name, options.backend) as original:
            if record.coding in (CONTAINER, ARCHIVE):
                with member.open_packed(compressed / name, record.coding, options) as packed:
                    member.compare(packed, original, options)
            else:
                with FileBytes(compressed / name, options.backend) as copied:
                    member.compare_copy(copied, original, record.coding)


def _done(draft: DirectoryDraft, name: str, source: Path, meter: Meter) -> Record | None:
    """The record of a file that an interrupted call has done and checked already."""
    facts = draft.done(name, source)
    if facts is None:
        return None
    record = Record(**facts)
    meter.advance(record.size)
    return record


def _make_parents(draft: DirectoryDraft, name: str) -> Path:
    target = draft.path / name
    with storage(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _size(path: Path) -> int:
    with storage(path):
        return path.stat().st_size


def _file_report(name: str, record: Record, compressed: Path) -> FileReport:
    return FileReport(name, record.size, _size(compressed), record.coding)


def _report(
    source: Path, destination: Path | None, files: list[FileReport], overhead: int, started: float
) -> Report:
    """overhead: bytes of the manifest."""
    original = sum(file.original_size for file in files)
    compressed = sum(file.compressed_size for file in files) + overhead
    return Report(source, destination, original, compressed, time.perf_counter() - started, tuple(files))
