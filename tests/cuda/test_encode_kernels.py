"""The encoder's kernels, emulated, write what the CPU's encoder writes: every layout, both levels, every mode."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import chunk_cases as cases
import ml_dtypes
import numpy as np
import pytest
from chunk_cases import Chunks
from emulator import load

from neuzip import _native
from neuzip.cuda.jobs import CHUNK, JOB, SEGMENT, SEGMENT_COUNTS, WARPS, slot_bytes
from neuzip.layouts import LAYOUTS, Layout

MARGIN = 256
"""Bytes behind the slots and the chunks that no kernel may touch."""

UNTOUCHED = 0xA7
SAMPLE = 1 << 14
FINISHING = ("nz_place", "nz_compact", "nz_checksum")

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


class Launch:
    """Tensors of a device, mixed widths or not, and the launches that encode them."""

    def __init__(self, tensors: Sequence[Chunks], packed_at: int = 0, shortfall: int = 0) -> None:
        self.tensors = tensors
        self.jobs = np.zeros(len(tensors), JOB)
        self.records: list[np.ndarray] = []
        self._packed: list[np.ndarray] = []
        self.slots: list[np.ndarray] = []
        self._others: list[np.ndarray] = []
        self.tasks = 0
        for job, tensor in zip(self.jobs, tensors, strict=True):
            count, width = len(tensor.records), tensor.layout.width
            records = np.zeros(count, CHUNK)
            records["table"] = tensor.records["table"]
            source = np.frombuffer(tensor.original, np.uint8).copy()
            table = np.frombuffer(tensor.table or b"\0", np.uint8).copy()
            slots = np.full(count * slot_bytes(width, tensor.log2) + MARGIN, UNTOUCHED, np.uint8)
            packed = np.full(packed_at + len(tensor.packed) + MARGIN, UNTOUCHED, np.uint8)
            job["original"], job["tables"] = source.ctypes.data, table.ctypes.data
            job["chunks"], job["slots"] = records.ctypes.data, slots.ctypes.data
            job["packed"], job["packed_at"] = packed.ctypes.data, packed_at
            job["first"], job["units"] = self.tasks, tensor.units
            job["capacity"] = packed_at + len(tensor.packed) - shortfall
            job["kind"] = tensor.table[0] if tensor.table else 0
            job["chunk_log2"], job["width"] = tensor.log2, width
            self.records.append(records)
            self._packed.append(packed)
            self.slots.append(slots)
            self._others += [source, table]
            self.tasks += count

    def run(self, *kernels: str, seed: int = 0) -> None:
        grid = max(1, self.tasks // WARPS // 2)
        for kernel in kernels:
            arguments = (self.jobs, np.uint32(len(self.jobs)))
            if kernel == "nz_place":
                load().launch(kernel, 2, 32, arguments, seed=seed, poison=seed)
            else:
                arguments = (*arguments, np.uint64(self.tasks))
                load().launch(kernel, grid, 32 * WARPS, arguments, seed=seed, poison=seed)
        for slots, packed in zip(self.slots, self._packed, strict=True):
            assert (slots[-MARGIN:] == UNTOUCHED).all() and (packed[-MARGIN:] == UNTOUCHED).all()

    def packed(self, number: int) -> bytes:
        """A tensor's chunks, from packed_at."""
        return self._packed[number][int(self.jobs[number]["packed_at"]) : -MARGIN].tobytes()


def check(tensors: Sequence[Chunks], seed: int = 0, packed_at: int = 0) -> None:
    """All of one width."""
    launch = Launch(tensors, packed_at)
    launch.run(f"nz_encode_w{tensors[0].layout.width}", *FINISHING, seed=seed)
    for number, (tensor, records) in enumerate(zip(tensors, launch.records, strict=True)):
        assert records["size"].tolist() == tensor.records["size"].tolist(), tensor.name
        assert (records["offset"] - packed_at).tolist() == tensor.records["offset"].tolist(), tensor.name
        assert records["checksum"].tolist() == tensor.records["checksum"].tolist(), tensor.name
        assert launch.packed(number) == tensor.packed, tensor.name


@pytest.mark.parametrize("layout", cases.PLANED, ids=NAME)
def test_same_bytes(layout: Layout) -> None:
    check(
        [original(layout, kind, level, size) for kind in KINDS for level in (0, 1) for size in cases.SIZES],
        seed=layout.id,
    )


@pytest.mark.parametrize("layout", cases.PLANED, ids=NAME)
@pytest.mark.parametrize("seed", range(1, 4))
def test_tables_that_do_not_fit(layout: Layout, seed: int) -> None:
    """Patches up to one for every unit, and streams that are given up."""
    tables = ("weights", "wide", "two")
    tensors = [
        original(layout, kind, level, size, table)
        for table in tables
        for kind in ("weights", "wide", "patched", "special", "noise")
        for level in (0, 1)
        for size in (cases.FEW_SIZES, (300,))[seed % 2]
    ]
    check(tensors, seed, packed_at=8 * seed)


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
def test_large_chunks(log2: int) -> None:
    """Sparse samples, and as many patches as a record cannot count."""
    for name, kinds in (("byte", ("skewed", "wide")), ("bf16", ("skewed", "weights", "noise"))):
        check([original(LAYOUTS[name], kind, 1, (1 << log2) + 9000, "two", log2) for kind in kinds])


def test_own_tables_at_their_edges() -> None:
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
    check(tensors)


def test_chunks_beyond_the_capacity_are_left_out() -> None:
    tensor = original(LAYOUTS["bf16"], "weights", 0, 3 * cases.CHUNK_UNITS)
    launch = Launch([tensor], shortfall=4)
    launch.run("nz_encode_w2", *FINISHING)
    last = int(tensor.records["offset"][2])
    assert launch.packed(0) == tensor.packed[:last] + bytes([UNTOUCHED]) * (len(tensor.packed) - last)
    assert launch.records[0]["size"].tolist() == tensor.records["size"].tolist()


def test_mixed_widths_are_placed_together() -> None:
    tensors = [
        original(layout, "weights", 0, 40 * cases.CHUNK_UNITS // layout.width) for layout in cases.PLANED
    ]
    launch = Launch(tensors)
    for number, tensor in enumerate(tensors):
        alone = Launch([tensor])
        alone.run(f"nz_encode_w{tensor.layout.width}")
        launch.records[number][:] = alone.records[0]
        launch.slots[number][:] = alone.slots[0]
    launch.run(*FINISHING)
    assert [launch.packed(number) for number in range(len(tensors))] == [t.packed for t in tensors]


@pytest.mark.parametrize("layout", cases.PLANED, ids=NAME)
def test_sample(layout: Layout) -> None:
    """Tables made from the kernel's counts are those the CPU plans."""
    for size in (256, 300, cases.CHUNK_UNITS + 1, 5 * cases.CHUNK_UNITS, 70_001):
        for kind in ("weights", "wide"):
            data = np.frombuffer(units(layout, kind, size), np.uint8)
            places = _native.plan_segments(layout.id, cases.LOG2, size).reshape(-1, 3)
            for level in (0, 1):
                segments = np.zeros(len(places), SEGMENT)
                segments["units"] = data.ctypes.data + places[:, 0] * np.uint64(layout.width)
                segments["count"], segments["taken"] = places[:, 1], places[:, 2]
                segments["width"], segments["heads"] = layout.width, level == 1 and layout.joint
                counts = np.full((len(places), SEGMENT_COUNTS), 99, np.uint32)
                arguments = (segments, np.uint32(len(segments)), counts)
                load().launch("nz_sample", 3, 256, arguments, seed=level)
                planned = _native.plan_counts(layout.id, level, cases.LOG2, counts.reshape(-1), size)
                assert planned == _native.plan(layout.id, level, cases.LOG2, data, size)
                assert counts[:, :256].sum() and counts[:, 256:].any() == (
                    level == 1 and layout.joint and layout.width > 1
                )
