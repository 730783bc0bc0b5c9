"""The steps of ``nz_plan`` for tensors that lie elsewhere, and the check of table blobs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from distributions import make

from neuzip import _abi, _native, frame
from neuzip.codec import LEVELS
from neuzip.errors import CorruptFrame, InvalidArgument
from neuzip.layouts import LAYOUTS, Layout

GOOD = Path(__file__).resolve().parent.parent / "formats/vectors/good"
PLACE = 64
DTYPE = {"bf16": "BF16", "fp16": "F16", "fp32": "F32", "fp64": "F64", "byte": "F8_E4M3"}


def heads(units: npt.NDArray[np.uint64], layout: Layout) -> npt.NDArray[np.int64]:
    """Plane 0 and the two high bits of plane 1 of each unit (spec §3, §4.6)."""
    if layout.width == 1:
        return (units << np.uint64(2)).astype(np.int64)
    top = units >> np.uint64(8 * layout.width - 16)
    rotated = (top << np.uint64(1) | top >> np.uint64(15)) & np.uint64(0xFFFF)
    return (rotated >> np.uint64(6)).astype(np.int64)


def counts(data: bytes, layout: Layout, chunk_log2: int) -> npt.NDArray[np.uint32]:
    units = np.frombuffer(data, f"<u{layout.width}").astype(np.uint64)
    found = []
    for first, size, taken in _native.plan_segments(layout.id, chunk_log2, units.size).tolist():
        segment, seen = units[first : first + size], np.zeros(1024, np.int64)
        for place in range(taken):
            at = place * -(-size // PLACE) // taken * PLACE
            seen += np.bincount(heads(segment[at : at + PLACE], layout), minlength=1024)
        found.append(np.concatenate([seen.reshape(256, 4).sum(axis=1), seen]))
    return np.concatenate(found).astype(np.uint32) if found else np.empty(0, np.uint32)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "layout", [layout for layout in LAYOUTS.values() if layout.planes], ids=lambda x: x.name
)
@pytest.mark.parametrize("name", ["weights", "rows", "outliers"])
@pytest.mark.parametrize("units", [0, 255, 256, 8191, 300_001])
def test_plan_from_counts(layout: Layout, level: str, units: int, name: str) -> None:
    data = make(name, DTYPE[layout.name], units)
    expected = _native.plan(layout.id, LEVELS.index(level), 12, np.frombuffer(data, np.uint8), units)
    found = _native.plan_counts(layout.id, LEVELS.index(level), 12, counts(data, layout, 12), units)
    assert found == expected


def test_counts_of_other_segments_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        _native.plan_counts(1, 0, 12, np.zeros(_abi.SEGMENT_COUNTS, np.uint32), 200_000)


@pytest.mark.parametrize("path", sorted(GOOD.glob("*.nzf")), ids=lambda path: path.stem)
def test_entries_of_good_tables(path: Path) -> None:
    header = frame.read_header(path.read_bytes())
    if not header.plan.layout.planes:
        return
    entries = _native.table_entries(header.plan.layout.id, header.table)
    assert len(entries) == (int.from_bytes(header.table[2:4], "little") if header.table else 0)
    for first, offset in entries.tolist():
        assert int.from_bytes(header.table[offset : offset + 4], "little") == first
        if header.table[0] != 3:
            assert header.table[offset + 4] == 0


@pytest.mark.parametrize("length", [1, 3, 40, 47])
def test_a_cut_table_is_corrupt(length: int) -> None:
    table = frame.read_header((GOOD / "bf16_rank.nzf").read_bytes()).table
    with pytest.raises(CorruptFrame):
        _native.table_entries(LAYOUTS["bf16"].id, table[:length])
