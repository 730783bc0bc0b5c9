"""Chunks for the kernels: every layout with planes, every kind of table, sizes around every boundary, and damage.

Encoded by the CPU's coder with tables that are made from a larger sample, so that chunks of any size use them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np

from neuzip import _abi, _native
from neuzip import frame as frames
from neuzip.codec import Coding
from neuzip.cuda.jobs import CHUNK
from neuzip.cuda.placed import chunk_records, table_offsets
from neuzip.errors import NeuzipError
from neuzip.layouts import LAYOUTS, Layout

VECTORS = Path(__file__).resolve().parent.parent.parent / "formats" / "vectors"
LOG2 = 10
CHUNK_UNITS = 1 << LOG2
SIZES = (1, 2, 31, 32, 33, 127, 128, 129, 255, 256, 257, CHUNK_UNITS - 1, CHUNK_UNITS, CHUNK_UNITS + 1, 2381)
FEW_SIZES = (1, 33, 257, CHUNK_UNITS + 1)
PLANED = [layout for layout in LAYOUTS.values() if layout.planes]


@dataclass(frozen=True)
class Chunks:
    """A tensor, or a run of its chunks: original bytes, the chunks and their records, the table blob (spec §5).

    original: None if the chunks may be refused. records: CHUNK, offsets from ``packed``.
    """

    name: str
    layout: Layout
    log2: int
    original: bytes
    table: bytes
    packed: bytes
    records: np.ndarray

    @property
    def units(self) -> int:
        return len(self.original) // self.layout.width

    def modes(self) -> set[tuple[int, int, int]]:
        """Width, plane (2 for those behind) and mode of all plane records (spec §4)."""
        width = self.layout.width
        return {
            (width, min(plane, 2), self.packed[int(record["offset"]) + 8 * plane])
            for record in self.records
            for plane in range(width)
        }


def units(layout: Layout, kind: str, count: int, seed: int = 0) -> bytes:
    """Bytes of ``count`` units of a kind of data."""
    generator = np.random.default_rng((seed, count))
    width = layout.width
    if kind == "noise":
        return generator.bytes(count * width)
    if kind == "constant":
        return b"\x9c\x3f\x00\x41\x12\x34\x56\x78"[:width] * count
    values = generator.normal(0, 0.02, count)
    if kind == "wide":
        values *= 2.0 ** generator.uniform(-9, 9, count)
    data = _as_floats(values, layout)
    if kind == "skewed":  # low planes, or bytes, that have few values
        low = max(width - 2, 1)
        data[:, :low] = generator.binomial(4, 0.2, (count, low)).astype(np.uint8)
    if kind == "patched":  # values that no sample shows
        rare = np.flatnonzero(generator.random(count) < 0.01)
        data[rare] = np.frombuffer(generator.bytes(len(rare) * width), np.uint8).reshape(-1, width)
    return data.tobytes()


def _as_floats(values: np.ndarray, layout: Layout) -> np.ndarray:
    """uint8 (count, width)."""
    kinds = {
        "bf16": ml_dtypes.bfloat16,
        "fp16": np.float16,
        "fp32": np.float32,
        "fp64": np.float64,
        "byte": ml_dtypes.float8_e4m3fn,
    }
    return values.astype(kinds[layout.name]).view(np.uint8).reshape(len(values), -1).copy()


KINDS = ("weights", "wide", "skewed", "patched", "constant", "noise")


@cache
def table(layout: Layout, kind: str, level: int | None) -> bytes:
    """The blob that the planner makes of a large sample; none without a level."""
    if level is None:
        return b""
    count = 1 << 16
    sample = np.frombuffer(units(layout, kind, count, seed=1), np.uint8)
    return _native.plan(layout.id, level, LOG2, sample, count)


def encode(name: str, layout: Layout, original: bytes, blob: bytes, log2: int = LOG2) -> Chunks:
    """Chunks by the CPU's coder."""
    width = layout.width
    count = -(-(len(original) // width) >> log2) if original else 0
    source = np.frombuffer(original, np.uint8)
    packed = np.zeros(max(1, count) * _native.chunk_bound(layout.id, log2), np.uint8)
    index = np.zeros((max(1, count), 2), np.uint32)
    job = _abi.EncodeJob(
        src=source.ctypes.data,
        units=len(original) // width,
        first_chunk=0,
        table=blob,
        table_bytes=len(blob),
        layout=layout.id,
        chunk_log2=log2,
        dst=packed.ctypes.data,
        capacity=packed.size,
        index=index.ctypes.data,
    )
    _native.encode([job], 1)
    assert job.status == 0
    records = np.zeros(count, CHUNK)
    records["size"], records["checksum"] = index[:count].T
    records["offset"] = np.concatenate([[0], np.cumsum(index[:count, 0], dtype=np.uint64)])[:count]
    records["table"] = table_offsets(layout.id, blob, count)
    return Chunks(name, layout, log2, original, blob, packed[: job.written].tobytes(), records)


def matrix(sizes: tuple[int, ...] = SIZES) -> Iterator[Chunks]:
    """Every layout, both levels and without tables, every kind of data, all sizes."""
    for layout in PLANED:
        for level in (0, 1, None):
            for kind in KINDS:
                blob = table(layout, "weights" if kind == "patched" else kind, level)
                for size in sizes:
                    name = f"{layout.name} level {level} {kind} {size}"
                    yield encode(name, layout, units(layout, kind, size), blob)


def golden(directory: str) -> Iterator[Chunks]:
    """The golden vectors that have planes, but for those whose header or table blob the host refuses."""
    for path in sorted((VECTORS / directory).glob("*.nzf")):
        data = path.read_bytes()
        try:
            header = frames.read_header(data, whole=True)
            records = chunk_records(header)
        except NeuzipError:
            continue
        if header.coding is not Coding.PLANES or not header.size:
            continue
        start = header.offsets[0]
        records["offset"] -= start
        raw = path.with_suffix(".raw")
        original = raw.read_bytes() if raw.exists() else bytes(header.size)
        layout = header.plan.layout
        yield Chunks(path.stem, layout, header.chunk_log2, original, header.table, data[start:], records)


def decode_one(chunks: Chunks, number: int) -> bytes | None:
    """What the CPU makes of a chunk, checksums aside; None if it refuses it."""
    record, full = chunks.records[number], 1 << chunks.log2
    count = min(full, chunks.units - number * full)
    start = int(record["offset"])
    source = np.frombuffer(chunks.packed[start : start + int(record["size"])], np.uint8)
    out = np.zeros(count * chunks.layout.width, np.uint8)
    index = np.array([record["size"], 0], np.uint32)
    job = _abi.DecodeJob(
        src=source.ctypes.data,
        size=source.size,
        index=index.ctypes.data,
        units=count,
        first_chunk=number,
        table=chunks.table,
        table_bytes=len(chunks.table),
        layout=chunks.layout.id,
        chunk_log2=chunks.log2,
        verify=0,
        dst=out.ctypes.data,
    )
    _native.decode([job], 1)
    return out.tobytes() if job.status == 0 else None


def damaged(source: Chunks, count: int, seed: int = 0) -> Iterator[Chunks]:
    """Copies of the first chunk of a tensor, each with a few bits or bytes changed, most of them near the front."""
    generator = np.random.default_rng(seed)
    record = source.records[:1].copy()
    size = int(record["size"][0])
    start = int(record["offset"][0])
    original = source.original[: source.layout.width << source.log2]
    for number in range(count):
        data = np.frombuffer(source.packed[start : start + size], np.uint8).copy()
        for _ in range(generator.integers(1, 4)):
            at = generator.integers(0, size if number % 2 else min(size, 8 * source.layout.width + 48))
            data[at] = generator.integers(256) if number % 3 else data[at] ^ 1 << generator.integers(8)
        changed = record.copy()
        changed["offset"] = 0
        if number % 8 == 7:
            changed["size"] = generator.integers(0, size // 4 + 1) * 4
            data = data[: changed["size"][0]]
        name = f"{source.name}, damage {seed}.{number}"
        yield replace(source, name=name, original=original, packed=data.tobytes(), records=changed)
