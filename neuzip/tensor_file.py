"""The tensors of a file of any kind, compressed or not: their original bytes, and the frames that hold them."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from neuzip.archive_source import ArchiveSource, open_source
from neuzip.codec import Options
from neuzip.container import Container
from neuzip.errors import InvalidArgument
from neuzip.files import View, walk_files
from neuzip.kinds import Kind, find_parts
from neuzip.kinds.part import Part, Source, plain_part
from neuzip.reader import read_bytes

SUFFIX = ".safetensors"
_HEAD = slice(8, 9)  # of a safetensors file: where the JSON text begins


@dataclass(frozen=True)
class Held:
    """What a compressed file has for a tensor.

    size: its bytes; where a frame holds other bytes too, the tensor's share. frames: those of the tensor alone.
    records: whether they are the fields of records (§10). rest: what the bytes in no frame of its own are: "copy", as
    they were, or "shared", coded with those around them.
    """

    size: int
    frames: tuple[View, ...]
    records: bool
    rest: str


class TensorFile(Protocol):
    """An open file. compressed_size is None if it is not compressed."""

    path: Path
    original_size: int
    compressed_size: int | None
    tensors: tuple[Part, ...]

    def read(self, part: Part, start: int, out: Any) -> None:
        """Reads the tensor's original bytes from start on. Raises CorruptFrame, TruncatedInput,
        UnsupportedFormat."""

    def held(self, part: Part) -> Held | None:
        """None if the file is not compressed."""

    def forget(self) -> None:
        """See FileBytes.forget."""


def list_files(path: Path, options: Options) -> list[Path]:
    """The files with tensors at `path`: itself, or those below a directory, sorted. Links to directories are not
    followed.

    Raises InvalidArgument if a directory has none, StorageError; of a damaged archive what decoding it raises.
    """
    if not path.is_dir():
        return [path]
    files = [file for _, file in walk_files(path) if not file.is_dir()]
    found = [file for file in files if file.suffix == SUFFIX or _has_tensors(file, options)]
    if not found:
        raise InvalidArgument("the directory has no files with tensors", file=path)
    return found


def _has_tensors(path: Path, options: Options) -> bool:
    with open_source(path, options) as source:
        if _find_parts(source, path, options):
            return True
        _check_intact(source, options)
        return False


@contextmanager
def open_tensors(path: Path, options: Options) -> Iterator[TensorFile]:
    """Opens a safetensors file, a container, an archive, or a file of another kind.

    Raises CorruptFrame, TruncatedInput, UnsupportedFormat, StorageError; InvalidArgument for a directory and for
    a file of no kind.
    """
    with open_source(path, options) as source:
        if isinstance(source, ArchiveSource) or not _is_safetensors(path, source):
            yield _SourceTensors(path, source, options)
            return
    with Container.open(path, backend=options.backend) as container:
        yield _ContainerTensors(path, container, options)


def _is_safetensors(path: Path, source: Source) -> bool:
    head = bytes(source.read(0, min(_HEAD.stop, source.size)))
    return path.suffix == SUFFIX or head[_HEAD] == b"{"


class _ContainerTensors:
    def __init__(self, path: Path, container: Container, options: Options) -> None:
        self._container, self._options = container, options
        self.path = path
        self.original_size = container.original_size
        self.compressed_size = container.header.file_size if container.compressed else None
        start = container.original.data_start
        self.tensors = tuple(
            plain_part(entry.name, entry.dtype, entry.shape, start + entry.start, entry.size)
            for entry in container.entries.values()
        )

    def read(self, part: Part, start: int, out: Any) -> None:
        read_bytes(self._container, self._container.entries[part.name], start, out, self._options)

    def forget(self) -> None:
        self._container.forget()

    def held(self, part: Part) -> Held | None:
        if not self._container.compressed:
            return None
        data = self._container.lazy_data(part.name)
        return Held(len(data), (data,) if self._container.is_frame(part.name) else (), False, "copy")


class _SourceTensors:
    def __init__(self, path: Path, source: Source, options: Options) -> None:
        self._source = source
        self._archive = source.archive if isinstance(source, ArchiveSource) else None
        self.path = path
        self.original_size = source.size
        self.compressed_size = None if self._archive is None else len(self._archive.view)
        self.tensors = _find_parts(source, path, options)
        self._starts = [] if self._archive is None else [s.start for s in self._archive.segments]
        if not self.tensors:
            _check_intact(source, options)
            raise InvalidArgument("no tensors are found in this file", file=path)

    def read(self, part: Part, start: int, out: Any) -> None:
        self._source.fill([(part.start + start, out)])

    def forget(self) -> None:
        self._source.forget()

    def held(self, part: Part) -> Held | None:
        if self._archive is None:
            return None
        size, records = 0.0, False
        frames: list[View] = []
        for segment in self._archive.segments[bisect.bisect_right(self._starts, part.start) - 1 :]:
            if segment.start >= part.end:
                break
            end = segment.start + segment.size
            shared = min(end, part.end) - max(segment.start, part.start)
            size += segment.compressed_size * shared / segment.size
            if shared == segment.size:
                frames += [data for data, _ in self._archive.frames(segment)]
                records |= len(segment.frames) > 1
        return Held(round(size), tuple(frames), records, "shared")


def _find_parts(source: Source, path: Path, options: Options) -> tuple[Part, ...]:
    return find_parts(source, path, lambda beside: open_source(beside, options)).parts


def _check_intact(source: Source, options: Options) -> None:
    """Raises CorruptFrame if this is a damaged archive in which tensors were known: so none would be found."""
    if isinstance(source, ArchiveSource) and source.archive.kind != Kind.OTHER:
        for _ in source.archive.pieces(options):
            pass
