"""The archive of the reference decoder: a file of any kind out of its segments (spec.md §10).

Written from spec.md alone, slow on purpose, sharing no code with neuzip; `§N` cites its sections.
"""

import hashlib
import struct
from dataclasses import dataclass

import xxhash
from reference import Corrupt, Tensor, Truncated, Unsupported, decode_frame, decompress_zstd

__all__ = ["decode_archive"]

MAGIC = b"NZAR"
HEADER = struct.Struct("<4sBBHIIQQQ32s")
ENTRY = struct.Struct("<IBBH")
INDEX_LIMIT = 1 << 28
SEGMENT_LIMIT = 1 << 24


@dataclass(frozen=True)
class Segment:
    """An entry of the index: original bytes, and bytes of each frame."""

    size: int
    frames: tuple[int, ...]


def read_index(index: bytes, count: int) -> list[Segment]:
    segments = []
    at = 0
    for number in range(count):
        if len(index) - at < ENTRY.size:
            raise Corrupt(f"the index ends before segment {number}")
        size, frames, padding, name_bytes = ENTRY.unpack_from(index, at)
        at += ENTRY.size
        if not 1 <= size <= SEGMENT_LIMIT or not 1 <= frames <= 8 or padding:
            raise Corrupt(f"segment {number}: {size} bytes, {frames} frames, padding {padding}")
        if len(index) - at < 4 * frames + name_bytes:
            raise Corrupt(f"the index ends in segment {number}")
        segments.append(Segment(size, struct.unpack_from(f"<{frames}I", index, at)))
        at += 4 * frames
        try:
            index[at : at + name_bytes].decode("utf-8")
        except UnicodeDecodeError as error:
            raise Corrupt(f"segment {number}: a name that is not UTF-8") from error
        at += name_bytes
    if at != len(index):
        raise Corrupt(f"{len(index) - at} bytes of the index are nobody's")
    return segments


def join_rows(tensors: list[Tensor]) -> bytes:
    """Record by record, the row of each tensor."""
    if len(tensors) == 1:
        return tensors[0].data
    rows = tensors[0].shape[0] if tensors[0].shape else 0
    if rows == 0 or any(tensor.shape[:1] != (rows,) or len(tensor.data) % rows for tensor in tensors):
        raise Corrupt("the frames of a segment have other numbers of rows")
    widths = [len(tensor.data) // rows for tensor in tensors]
    return b"".join(
        tensor.data[row * width : (row + 1) * width]
        for row in range(rows)
        for tensor, width in zip(tensors, widths, strict=True)
    )


def decode_archive(data: bytes) -> bytes:
    """The original file of an archive (§10). Raises a subclass of Refused."""
    if not MAGIC.startswith(data[:4]):
        raise Unsupported("wrong magic")
    if len(data) < HEADER.size:
        raise Truncated("the bytes end inside the header")
    _, version, _kind, required, count, index_bytes, size, archive_size, checksum, sha256 = (
        HEADER.unpack_from(data)
    )
    if version != 1:
        raise Unsupported(f"version {version} (§9)")
    if required:
        raise Unsupported(f"required bits {required:#x}")
    if size > archive_size << 17 or HEADER.size + index_bytes > archive_size:
        raise Corrupt(f"size {size}, index_bytes {index_bytes}, archive_size {archive_size}")
    if len(data) < archive_size:
        raise Truncated(f"{len(data)} bytes of an archive of {archive_size}")
    if len(data) > archive_size:
        raise Corrupt(f"{len(data) - archive_size} bytes follow the archive")
    packed = data[archive_size - index_bytes :]
    if xxhash.xxh3_64_intdigest(data[:32] + bytes(8) + data[40:72] + packed) != checksum:
        raise Corrupt("header and index do not match their checksum")
    segments = read_index(decompress_zstd(packed, min(INDEX_LIMIT, len(packed) << 17)), count)
    if sum(segment.size for segment in segments) != size:
        raise Corrupt("the segments do not sum to the file")
    if HEADER.size + sum(sum(segment.frames) for segment in segments) != archive_size - index_bytes:
        raise Corrupt("the frames do not fill the archive")
    file = bytearray()
    at = HEADER.size
    for segment in segments:
        tensors = []
        for length in segment.frames:
            try:
                tensors.append(decode_frame(data[at : at + length]))
            except Truncated as error:  # the archive itself is whole
                raise Corrupt(str(error)) from error
            at += length
        part = join_rows(tensors)
        if len(part) != segment.size:
            raise Corrupt(f"a segment of {segment.size} bytes has {len(part)}")
        file += part
    if hashlib.sha256(file).digest() != sha256:
        raise Corrupt("the restored file does not match its sha256")
    return bytes(file)
