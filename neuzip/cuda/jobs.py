"""The structs of ``csrc/cuda/launch.h``, as NumPy has them; a test compares the two."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

WARPS = 4
"""Warps of a block: NZ_WARPS."""

CHUNK = np.dtype(
    [
        ("offset", "<u8"),
        ("size", "<u4"),
        ("checksum", "<u4"),
        ("table", "<u4"),
        ("padding", "<u4"),
    ]
)

JOB = np.dtype(
    [
        ("first", "<u8"),
        ("units", "<u8"),
        ("original", "<u8"),
        ("packed", "<u8"),
        ("chunks", "<u8"),
        ("tables", "<u8"),
        ("slots", "<u8"),
        ("packed_at", "<u8"),
        ("capacity", "<u8"),
        ("kind", "<u4"),
        ("chunk_log2", "<u4"),
        ("width", "<u4"),
        ("padding", "<u4"),
    ]
)

SEGMENT = np.dtype([("units", "<u8"), ("count", "<u8"), ("taken", "<u8"), ("width", "<u4"), ("heads", "<u4")])
SEGMENT_COUNTS = 1280

PLANES = np.dtype(
    [
        ("units", "<u8"),
        ("planes", "<u8"),
        ("count", "<u8"),
        ("stride", "<u8"),
        ("width", "<u4"),
        ("padding", "<u4"),
    ]
)

MATVEC = np.dtype(
    [
        ("job", JOB),
        ("rows", "<u8"),
        ("columns", "<u8"),
        ("x", "<u8"),
        ("y", "<u8"),
        ("partial", "<u8"),
        ("batch", "<u4"),
        ("padding", "<u4"),
    ]
)
MATVEC_BATCH = 8
MATVEC_CHUNK_LOG2 = 11

FAULTS = {
    1: "a chunk's records, sections, tables or patches break the format",
    2: "a stream does not end as it must",
    3: "checksum mismatch",
}
"""What a status other than 0 means: NzFault."""

Records = npt.NDArray[np.void]


def slot_bytes(width: int, chunk_log2: int) -> int:
    """Room for an encoded chunk and the encoder's notes: NZ_SLOT_BYTES."""
    return width * ((1 << chunk_log2) + 12) + 1024
