"""Any file to an archive (§10): its tensors as frames, the bytes between them through zstandard."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import zstandard

from neuzip import _native, frame
from neuzip.archive import ENTRY, FRAME_SIZE, HEADER, SEGMENT_BYTES, VERSION
from neuzip.codec import Options
from neuzip.digest import Digest
from neuzip.kinds.part import Part, split_fields
from neuzip.layouts import DTYPES, DType
from neuzip.manifest import ARCHIVE_MAGIC

# Bytes of no tensor: a dtype that is not cut into planes is coded with zstandard.
_OPAQUE = DTYPES["BOOL"]
# A tensor must save this to be a segment of its own: it ends the segment before it and begins another, and a
# frame's header and an index entry have about 60 bytes beside their name.
_LEAST_SAVING = 256
_NAME_BYTES = 1024
_INDEX_LEVEL = 9  # of zstd, as for a container's header


@dataclass(frozen=True)
class _Piece:
    """Bytes start … end − 1 of the file, of at most SEGMENT_BYTES. part: the tensor they are of."""

    start: int
    end: int
    part: Part | None


@dataclass(frozen=True)
class _Written:
    """A piece's frames."""

    piece: _Piece
    frames: Sequence[bytes]

    @property
    def size(self) -> int:
        return sum(len(data) for data in self.frames)


def write_archive(
    view: Any,
    kind: int,
    parts: Iterable[Part],
    out: BinaryIO,
    options: Options,
    advance: Callable[[int], None] = lambda count: None,
) -> str:
    """Writes the archive of a file's bytes to a seekable, empty `out`; returns the file's sha256.

    parts: the tensors, in ascending order and without overlaps. advance: called with each number of original
    bytes done. Memory: a few times SEGMENT_BYTES.
    """
    index: list[bytes] = []
    out.seek(HEADER.size)
    with Digest() as digest:
        for batch in _batches(_pieces(parts, len(view))):
            start, end = batch[0].start, batch[-1].end
            digest.update([view[start:end]])
            for written in _encode(view, batch, options):
                for data in written.frames:
                    out.write(data)
                index.append(_entry(written))
            advance(end - start)
        sha256 = digest.hexdigest()
    packed = zstandard.ZstdCompressor(level=_INDEX_LEVEL).compress(b"".join(index))
    out.write(packed)
    size = out.tell()
    fields = (ARCHIVE_MAGIC, VERSION, kind, 0, len(index), len(packed), len(view), size)
    header = HEADER.pack(*fields, 0, bytes.fromhex(sha256))
    checksum = _native.checksum64(header + packed)
    out.seek(0)
    out.write(HEADER.pack(*fields, checksum, bytes.fromhex(sha256)))
    return sha256


def _pieces(parts: Iterable[Part], size: int) -> Iterator[_Piece]:
    """The whole file in order: tensors, and what lies between them, cut into segments."""
    position = 0
    for part in parts:
        yield from _cut(position, part.start, None)
        yield from _cut(part.start, part.end, part)
        position = part.end
    yield from _cut(position, size, None)


def _cut(start: int, end: int, part: Part | None) -> Iterator[_Piece]:
    record = part.record_size if part else 1
    step = SEGMENT_BYTES // record * record
    for at in range(start, end, step):
        yield _Piece(at, min(at + step, end), part)


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Consecutive pieces of together at most SEGMENT_BYTES."""
    batch: list[_Piece] = []
    for piece in pieces:
        if batch and piece.end - batch[0].start > SEGMENT_BYTES:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _encode(view: Any, batch: Sequence[_Piece], options: Options) -> list[_Written]:
    """The segments of a batch: tensors that shrink, and runs of everything else."""
    tensors = _encode_tensors(view, batch, options)
    plain = [
        _Piece(run[0].start, run[-1].end, None)
        for taken, group in itertools.groupby(batch, lambda piece: piece.start in tensors)
        if not taken
        for run in [list(group)]
    ]
    written = list(tensors.values()) + _encode_plain(view, plain, options)
    return sorted(written, key=lambda segment: segment.piece.start)


def _encode_tensors(view: Any, batch: Sequence[_Piece], options: Options) -> dict[int, _Written]:
    """By start, the tensors of a batch that shrink enough."""
    pieces = [piece for piece in batch if piece.part and piece.end - piece.start > _LEAST_SAVING]
    tables = [_columns(view, piece) for piece in pieces]
    frames = iter(frame.encode_many([column for table in tables for column in table], options))
    segments = [
        _Written(piece, list(itertools.islice(frames, len(table))))
        for piece, table in zip(pieces, tables, strict=True)
    ]
    # Whether records shrink more in columns than as they are has to be tried.
    several = [segment.piece for segment in segments if len(segment.frames) > 1]
    whole = {segment.piece.start: segment.size for segment in _encode_plain(view, several, options)}
    return {
        segment.piece.start: segment
        for segment in segments
        if segment.size + _LEAST_SAVING <= whole.get(segment.piece.start, _size(segment.piece))
    }


def _columns(view: Any, piece: _Piece) -> list[tuple[Any, DType, tuple[int, ...]]]:
    """What to encode of a tensor: its bytes, or the fields of its records, each together."""
    assert piece.part is not None
    data = view[piece.start : piece.end]
    if len(piece.part.fields) == 1:
        dtype = piece.part.fields[0][0]
        return [(data, dtype, (len(data) * 8 // dtype.bits,))]
    count = len(data) // piece.part.record_size
    return [(column, dtype, (count, width)) for dtype, width, column in split_fields(piece.part, data)]


def _encode_plain(view: Any, pieces: Sequence[_Piece], options: Options) -> list[_Written]:
    items = [(view[piece.start : piece.end], _OPAQUE, (_size(piece),)) for piece in pieces]
    frames = frame.encode_many(items, options)
    return [_Written(piece, [data]) for piece, data in zip(pieces, frames, strict=True)]


def _size(piece: _Piece) -> int:
    return piece.end - piece.start


def _entry(written: _Written) -> bytes:
    part = written.piece.part
    # Cut where a character ends.
    name = (
        part.name.encode("utf-8", "replace")[:_NAME_BYTES].decode("utf-8", "ignore").encode() if part else b""
    )
    sizes = b"".join(FRAME_SIZE.pack(len(data)) for data in written.frames)
    return ENTRY.pack(_size(written.piece), len(written.frames), 0, len(name)) + sizes + name
