"""The encoder's kernels, emulated, write what the CPU's encoder writes: every layout, both levels, every mode."""

from __future__ import annotations

import operator
from pathlib import Path

import chunk_cases as cases
import ml_dtypes
import numpy as np
import pytest
from chunk_cases import Chunks
from emulator import replay
from encoding import check_encoding, check_sample

from neuzip import _native
from neuzip.layouts import LAYOUTS, Layout

SAMPLE = 1 << 14

NAME = operator.attrgetter("name")
KINDS = (*cases.KINDS, "special", "widened", "two")


def units(layout: Layout, kind: str, count: int, seed: int = 0) -> bytes:
    """As chunk_cases.units, and more: NaN, Inf and subnormals; wider floats that hold bf16; only two values."""
    generator = np.random.default_rng((seed, count, 7))
    width = layout.width
    if kind == "special":
        tops = np.array([0x0000, 0x8000, 0x7F80, 0xFF80, 0x7FC1, 0x0001, 0x7C00, 0x3C00], "<u2")
        data = np.frombuffer(generator.bytes(count * width), np.uint8).reshape(count, width).copy()
        chosen = generator.random(count) < 0.9
        data[chosen, max(0, width - 2) :] = (
            generator.choice(tops, count).view(np.uint8).reshape(-1, 2)[chosen, -min(width, 2) :]
        )
        return data.tobytes()
    if kind == "widened":
        data = np.zeros((count, width), np.uint8)
        tops = generator.normal(0, 0.02, count).astype(ml_dtypes.bfloat16).view(np.uint8).reshape(count, 2)
        data[:, -min(width, 2) :] = tops[:, -min(width, 2) :]
        return data.tobytes()
    if kind == "two":
        values = np.frombuffer(generator.bytes(2 * width), np.uint8).reshape(2, width)
        return values[(generator.random(count) < 0.03).astype(int)].tobytes()
    return cases.units(layout, kind, count, seed)


def original(
    layout: Layout, kind: str, level: int, size: int, table_of: str | None = None, log2: int = cases.LOG2
) -> Chunks:
    """A tensor encoded by the CPU. table_of: the kind of data that its tables were made for, if another."""
    sample = np.frombuffer(units(layout, table_of or kind, SAMPLE, seed=1), np.uint8)
    blob = _native.plan(layout.id, level, log2, sample, SAMPLE)
    name = f"{layout.name} level {level} {kind} {size} with tables of {table_of or kind}"
    return cases.encode(name, layout, units(layout, kind, size), blob, log2)


@pytest.fixture(scope="module")
def program() -> Path:
    return replay()


@pytest.mark.parametrize("layout", cases.PLANED, ids=NAME)
def test_same_bytes(program: Path, layout: Layout) -> None:
    tensors = [
        original(layout, kind, level, size) for kind in KINDS for level in (0, 1) for size in cases.SIZES
    ]
    check_encoding(program, tensors, [layout.id])


@pytest.mark.parametrize("layout", cases.PLANED, ids=NAME)
@pytest.mark.parametrize("seed", range(1, 4))
def test_tables_that_do_not_fit(program: Path, layout: Layout, seed: int) -> None:
    """Patches up to one for every unit, and streams that are given up."""
    tables = ("weights", "wide", "two")
    tensors = [
        original(layout, kind, level, size, table)
        for table in tables
        for kind in ("weights", "wide", "patched", "special", "noise")
        for level in (0, 1)
        for size in (cases.FEW_SIZES, (300,))[seed % 2]
    ]
    check_encoding(program, tensors, [seed], grid=seed)


def test_modes() -> None:
    """The data above take every mode that an encoder may choose."""
    seen = {
        (layout.name, plane, mode)
        for layout in cases.PLANED
        for kind in KINDS
        for level in (0, 1)
        for _, plane, mode in original(layout, kind, level, 2381).modes()
    }
    for layout in cases.PLANED:
        kinds = {2, 3, 5} if layout.joint and layout.width > 1 else {3} if layout.width == 1 else {2, 3}
        for mode in {0, 1, 4} | kinds:
            assert (layout.name, 0, mode) in seen
        for mode in {0, 1, 4} if layout.width > 1 else set():
            assert (layout.name, 1, mode) in seen


@pytest.mark.parametrize("log2", [13, 16])
def test_large_chunks(program: Path, log2: int) -> None:
    """Sparse samples, and as many patches as a record cannot count."""
    kinds = {"byte": ("skewed", "wide"), "bf16": ("skewed", "weights", "noise")}
    tensors = [
        original(LAYOUTS[name], kind, 1, (1 << log2) + 9000, "two", log2)
        for name in kinds
        for kind in kinds[name]
    ]
    check_encoding(program, tensors, [log2])


def test_own_tables_at_their_edges(program: Path) -> None:
    """Counts whose shares must be cut at 4095, raised to 1, and evened out in either direction."""
    generator = np.random.default_rng(5)
    planes = []
    for symbols in (2, 3, 100, 256):
        for power in (0, 0.2, 1, 4):
            weights = np.arange(1, symbols + 1) ** -float(power)
            planes.append(generator.choice(symbols, 1024, p=weights / weights.sum()).astype(np.uint8))
    planes.append(np.where(np.arange(1024) == 700, 3, 200).astype(np.uint8))
    layout = LAYOUTS["byte"]
    tensors = [cases.encode(str(number), layout, plane.tobytes(), b"") for number, plane in enumerate(planes)]
    assert sum((1, 0, 4) in tensor.modes() for tensor in tensors) > 6
    check_encoding(program, tensors, [1])


def test_planes_at_the_edge_of_paying(program: Path) -> None:
    """Symbols in equal numbers, so many that a sample, or the cost, just speaks for a table or against it."""
    generator = np.random.default_rng(6)
    size, layout = 1 << 15, LAYOUTS["byte"]
    tensors = [
        cases.encode(
            f"{count} symbols",
            layout,
            generator.integers(count, size=size, dtype=np.uint8).tobytes(),
            b"",
            15,
        )
        for count in range(204, 226)
    ]
    assert {tensor.packed[0] for tensor in tensors} == {0, 4}
    check_encoding(program, tensors, [1])


def test_chunks_beyond_the_capacity_are_left_out(program: Path) -> None:
    tensors = [original(layout, "weights", 0, 3 * cases.CHUNK_UNITS) for layout in cases.PLANED]
    for shortfall in (4, 2000):
        check_encoding(program, tensors, [1], shortfall=shortfall)


def test_many_chunks_are_placed(program: Path) -> None:
    """More than a warp sums at once."""
    tensors = [original(layout, "weights", 0, 40 * cases.CHUNK_UNITS) for layout in cases.PLANED[:2]]
    check_encoding(program, tensors, [1])


def test_sample(program: Path) -> None:
    sizes = (256, 300, cases.CHUNK_UNITS + 1, 5 * cases.CHUNK_UNITS, 70_001)
    check_sample(
        program,
        [
            original(layout, kind, 0, size)
            for layout in cases.PLANED
            for kind in ("weights", "wide")
            for size in sizes
        ],
        [1],
    )
