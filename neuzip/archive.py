"""The archive: any file as a row of segments, each of one or more frames (§10)."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import zstandard

from neuzip import _native, _system, frame
from neuzip.codec import Options
from neuzip.errors import CorruptFrame, NeuzipError, TruncatedInput, UnsupportedFormat
from neuzip.files import FileBytes
from neuzip.manifest import ARCHIVE_MAGIC

VERSION = 1
HEADER = struct.Struct("<4sBBHIIQQQ32s")
ENTRY = struct.Struct("<IBBH")
FRAME_SIZE = struct.Struct("<I")
SEGMENT_BYTES = 1 << 24  # §10: original bytes of a segment at most
_CHECKSUM = slice(32, 40)
_MAX_FRAMES = 8
_INDEX_LIMIT = 1 << 28
_MAX_RATIO_LOG2 = 17  # §6, §10


@dataclass(frozen=True)
class Segment:
    """Consecutive bytes of the original file, `size` of them from `start` on.

    name: the tensor they are of, empty if of none. frames: their bytes in the archive, from `offset` on.
    """

    name: str
    start: int
    size: int
    offset: int
    frames: tuple[int, ...]

    @property
    def compressed_size(self) -> int:
        """Bytes of all frames."""
        return sum(self.frames)


@dataclass(frozen=True)
class Archive:
    """A compressed file of any kind. A context manager.

    original_size and sha256 are the original's. kind: what the writer took the file for (§10).
    """

    path: Path | None
    kind: int
    original_size: int
    sha256: str
    segments: tuple[Segment, ...]
    view: Any
    file: FileBytes | None = None

    @classmethod
    def open(cls, path: str | Path, *, backend: str | None = None) -> Archive:
        """Opens a file and checks its header and index, not its frames.

        Raises CorruptFrame, TruncatedInput, UnsupportedFormat, StorageError; InvalidArgument for a directory.
        """
        path = Path(path)
        file = FileBytes(path, backend)
        try:
            return replace(cls.parse(file.view, path), file=file)
        except BaseException:
            file.close()
            raise

    @classmethod
    def parse(cls, data: Any, path: Path | None = None) -> Archive:
        """As open, for the bytes of a file: a memoryview or a ReadView."""
        try:
            return _parse(data, path)
        except NeuzipError as error:
            error.at(file=path)
            raise

    def pieces(self, options: Options, lost: Container[str | int] = frozenset()) -> Iterator[memoryview]:
        """The original file's bytes in order, in pieces of at most SEGMENT_BYTES.

        lost: positions of segments that are not decoded: zeros take their place. A piece keeps its contents
        until the iterator has been advanced twice. The sha256 is the caller's to check.
        Raises CorruptFrame, TruncatedInput, UnsupportedFormat.
        """
        buffers = self.buffers()
        for batch in segment_batches(self.segments):
            yield self.decode_batch(batch, next(buffers), options, lost)

    def buffers(self) -> Iterator[memoryview]:
        """What decode_batch writes to, without end: two in turn."""
        room = min(SEGMENT_BYTES, self.original_size)
        return itertools.cycle([_system.room(room) for _ in range(2)])

    def decode_batch(
        self,
        batch: Sequence[Segment],
        buffer: memoryview,
        options: Options,
        lost: Container[str | int] = frozenset(),
    ) -> memoryview:
        """The original bytes of one of `segment_batches`, in the buffer. lost, errors: as for pieces."""
        base = batch[0].start
        out = buffer[: sum(segment.size for segment in batch)]
        targets = []
        for segment in batch:
            target = out[segment.start - base :][: segment.size]
            if segment.start in lost:
                target[:] = bytes(segment.size)
            else:
                targets.append((segment, target))
        self.decode(targets, options)
        return out

    def decode(self, targets: Iterable[tuple[Segment, memoryview]], options: Options) -> None:
        """Decodes segments, each into a buffer of its size, all in one go over the threads.

        Raises CorruptFrame, TruncatedInput, UnsupportedFormat.
        """
        jobs: list[tuple[memoryview, memoryview]] = []
        names: list[str | None] = []
        records: list[tuple[list[memoryview], memoryview, int]] = []
        for segment, out in targets:
            frames = self.frames(segment)
            if len(frames) == 1:
                columns = [out]
            else:
                columns = [_system.room(header.size) for _, header in frames]
                records.append((columns, out, frames[0][1].shape[0]))
            jobs += [(data, column) for (data, _), column in zip(frames, columns, strict=True)]
            names += [segment.name or None] * len(frames)
        try:
            frame.decode_many(jobs, options, names)
        except NeuzipError as error:
            error.at(file=self.path)
            raise
        for columns, out, rows in records:
            _interleave(columns, out, rows)

    def frames(self, segment: Segment) -> list[tuple[memoryview, frame.Header]]:
        """A segment's frames and their headers. Raises CorruptFrame if they do not make up the segment."""
        found = []
        offset = segment.offset
        try:
            for size in segment.frames:
                data = self.view[offset : offset + size]
                found.append((data, _read_header(data)))
                offset += size
            _check_frames([header for _, header in found], segment.size)
        except NeuzipError as error:
            error.at(file=self.path, tensor=segment.name or None, offset=segment.offset)
            raise
        return found

    def close(self) -> None:
        """Closes the file, if the archive has one of its own."""
        if self.file is not None:
            self.file.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def segment_batches(segments: Iterable[Segment]) -> Iterator[list[Segment]]:
    """Consecutive segments of together at most SEGMENT_BYTES."""
    batch: list[Segment] = []
    size = 0
    for segment in segments:
        if batch and size + segment.size > SEGMENT_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(segment)
        size += segment.size
    if batch:
        yield batch


def _read_header(data: memoryview) -> frame.Header:
    try:
        return frame.read_header(data, whole=True)
    except TruncatedInput as error:  # the archive itself is whole
        raise CorruptFrame(f"the frame is cut: {error.message}") from error


def _check_frames(headers: Sequence[frame.Header], size: int) -> None:
    total = sum(header.size for header in headers)
    if total != size:
        raise CorruptFrame(f"the frames hold {total} bytes, the segment {size}")
    if len(headers) == 1:
        return
    rows = {header.shape[0] if header.shape else 0 for header in headers}
    if len(rows) != 1 or 0 in rows or any(header.size % header.shape[0] for header in headers):
        raise CorruptFrame("the frames of a segment do not have the same number of rows")


def _interleave(columns: Sequence[memoryview], out: memoryview, rows: int) -> None:
    """Puts records together: row by row, the bytes of every column's row."""
    import numpy as np

    table, at = np.frombuffer(out, np.uint8).reshape(rows, -1), 0
    for column in columns:
        width = len(column) // rows
        table[:, at : at + width] = np.frombuffer(column, np.uint8).reshape(rows, width)
        at += width


def _parse(data: Any, path: Path | None) -> Archive:
    if not ARCHIVE_MAGIC.startswith(bytes(data[: len(ARCHIVE_MAGIC)])):
        raise UnsupportedFormat("not a neuzip archive: wrong magic", offset=0)
    if len(data) < HEADER.size:
        raise TruncatedInput(f"an archive has at least {HEADER.size} bytes, here are {len(data)}")
    _, version, kind, required, count, packed_size, size, archive_size, checksum, sha256 = HEADER.unpack(
        data[: HEADER.size]
    )
    if version != VERSION:
        raise UnsupportedFormat(f"the archive has version {version}; this decoder knows {VERSION}")
    if required:
        raise UnsupportedFormat(
            f"the archive requires features this release does not have (bits {required:#x})"
        )
    if size > archive_size << _MAX_RATIO_LOG2 or HEADER.size + packed_size > archive_size:
        raise CorruptFrame("the archive's header has impossible sizes")
    if len(data) < archive_size:
        raise TruncatedInput(f"the archive has {archive_size} bytes, here are {len(data)}")
    if len(data) > archive_size:
        raise CorruptFrame(f"{len(data) - archive_size} bytes follow the archive", offset=archive_size)
    packed = bytes(data[archive_size - packed_size :])
    head = bytearray(data[: HEADER.size])
    head[_CHECKSUM] = bytes(8)
    if _native.checksum64(bytes(head) + packed) != checksum:
        raise CorruptFrame("the archive's header or index does not match its checksum")
    segments = tuple(_read_index(_unpack(packed), count))
    found = sum(segment.size for segment in segments)
    if found != size:
        raise CorruptFrame(f"the segments have {found} bytes, the file {size}")
    end = HEADER.size + sum(segment.compressed_size for segment in segments)
    if end != archive_size - packed_size:
        raise CorruptFrame("the frames do not fill the archive", offset=end)
    return Archive(path, kind, size, sha256.hex(), segments, data)


def _unpack(packed: bytes) -> bytes:
    """Undoes zstd. The size is read before anything of that size is allocated."""
    try:
        size = zstandard.frame_content_size(packed)
        limit = min(_INDEX_LIMIT, len(packed) << _MAX_RATIO_LOG2)
        if not 0 <= size <= limit:
            raise CorruptFrame(f"the index would expand to {size} bytes; {limit} are allowed")
        return zstandard.ZstdDecompressor().decompress(packed, max_output_size=limit, allow_extra_data=False)
    except (ValueError, zstandard.ZstdError) as error:
        raise CorruptFrame("the index is no zstd frame") from error


def _read_index(index: bytes, count: int) -> Iterator[Segment]:
    start, offset, at = 0, HEADER.size, 0
    for _ in range(count):
        if at + ENTRY.size > len(index):
            raise CorruptFrame("the index ends too early")
        size, frames, padding, length = ENTRY.unpack_from(index, at)
        at += ENTRY.size
        end = at + FRAME_SIZE.size * frames + length
        if not 0 < size <= SEGMENT_BYTES or not 0 < frames <= _MAX_FRAMES or padding or end > len(index):
            raise CorruptFrame("the index has an impossible entry")
        sizes = struct.unpack_from(f"<{frames}I", index, at)
        try:
            name = index[end - length : end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise CorruptFrame("a name in the index is not UTF-8") from error
        yield Segment(name, start, size, offset, sizes)
        start, offset, at = start + size, offset + sum(sizes), end
    if at != len(index):
        raise CorruptFrame("the index has more than its entries")
