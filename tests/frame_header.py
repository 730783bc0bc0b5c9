"""Frame headers (spec §5) written by hand, for tests: also wrong ones, with a right checksum."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from neuzip import _native

FIXED = struct.Struct("<4sBBBBHBBIQQQ")
CHECKSUM = slice(32, 40)


def stamp(frame: bytes | bytearray, header_size: int) -> bytes:
    """The frame with the checksum of its first ``header_size`` bytes."""
    header = bytearray(frame[:header_size])
    header[CHECKSUM] = bytes(8)
    header[CHECKSUM] = _native.checksum64(header).to_bytes(8, "little")
    return bytes(header) + bytes(frame[header_size:])


def build(
    *,
    dtype: int,
    coding: int,
    chunk_log2: int,
    shape: Sequence[int],
    size: int,
    index: Sequence[int] = (),
    table: bytes = b"",
    level: int = 0,
    frame_size: int | None = None,
) -> bytes:
    """A header; ``index`` is length and checksum of each chunk. ``frame_size`` may be wrong."""
    header_size = FIXED.size + 8 * len(shape) + len(table) + 4 * len(index)
    if frame_size is None:
        frame_size = -(-(header_size + sum(index[0::2])) // 8) * 8
    fields = (b"NZFR", 1, dtype, coding, chunk_log2, 0, len(shape), level, len(table), size, frame_size, 0)
    raw = FIXED.pack(*fields) + struct.pack(f"<{len(shape)}Q", *shape) + table
    return stamp(raw + struct.pack(f"<{len(index)}I", *index), header_size)
