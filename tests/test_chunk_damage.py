"""Damaged chunks and tables of every mode are refused by all instruction sets as by the reference decoder."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import frame_header
import numpy as np
import pytest
from distributions import make, shape_of

from neuzip import _abi, _native, frame
from neuzip.codec import LEVELS, Coding, EncodeRun, Options, encode_runs, make_plan
from neuzip.errors import CorruptFrame
from neuzip.layouts import DTYPES, DType

FORMATS = Path(__file__).resolve().parent.parent / "formats"
sys.path.insert(0, str(FORMATS))  # formats/ is not a package

import reference  # noqa: E402
import reference_chunk  # noqa: E402

ISAS = [name for name in _native.isa_names() if _native.isa_available(name)]


@pytest.fixture(autouse=True)
def best_isa() -> Iterator[None]:
    yield
    _native.isa_select(None)


def packed(name: str, data: bytes, options: Options) -> bytes:
    return frame.encode(data, DTYPES[name], shape_of(DTYPES[name], len(data)), options)


def unpacked(packed_frame: bytes) -> bytes:
    out = bytearray(frame.read_header(packed_frame, whole=True).size)
    frame.decode(packed_frame, out, Options(threads=1))
    return bytes(out)


# Dtype, distribution, units, level, and distribution and seed of the tensor whose tables the chunks are coded
# with: where it is another, they have patches, or no table at all. Together these have every mode of every
# plane, payloads and unfinished blocks.
SMALL = {
    "bf16 rank": ("BF16", "weights", 1300, "default", "weights", 3),
    "bf16 rank patches": ("BF16", "outliers", 1500, "default", "weights", 3),
    "bf16 joint": ("BF16", "bounded", 1400, "max", "bounded", 3),
    "bf16 joint patches": ("BF16", "bounded", 2990, "max", "bounded", 4),
    "bf16 wide": ("BF16", "wide", 1024, "default", "wide", 3),
    "bf16 no table": ("BF16", "weights", 1100, "default", "noise", 3),
    "fp16 byte": ("F16", "weights", 1100, "default", "weights", 3),
    "fp8 byte": ("F8_E4M3", "weights", 1333, "default", "weights", 3),
    "fp8 byte patches": ("U8", "outliers", 1200, "max", "weights", 3),
    "fp32 rank": ("F32", "weights", 600, "default", "weights", 3),
    "fp32 joint": ("F32", "bounded", 700, "max", "bounded", 3),
    "fp32 local": ("F32", "steps", 800, "default", "steps", 3),
    "fp64 local": ("F64", "steps", 700, "default", "steps", 3),
    "constant": ("F32", "constant", 600, "default", "constant", 3),
    "tables": ("BF16", "rows", 10_000, "default", "rows", 3),
}


def small(case: str) -> tuple[DType, bytes, bytes]:
    """Dtype, frame and original bytes of a small tensor."""
    name, distribution, units, level, planned, seed = SMALL[case]
    dtype, options = DTYPES[name], Options(level, threads=1, chunk_log2=10)
    data = make(distribution, name, units, 3)
    plan = make_plan(np.frombuffer(make(planned, name, units, seed), np.uint8), dtype.layout, options)
    source, target = np.frombuffer(data, np.uint8), np.zeros(plan.capacity, np.uint8)
    run = EncodeRun(plan, source, target.ctypes.data, np.zeros(2 * plan.chunk_count, np.uint32))
    encode_runs([run], options)
    header = frame_header.build(
        dtype=dtype.code,
        coding=plan.coding,
        chunk_log2=plan.chunk_log2,
        shape=shape_of(dtype, len(data)),
        size=plan.size,
        index=run.index.tolist(),
        table=plan.table,
        level=LEVELS.index(level),
    )
    made = header + target[: run.written].tobytes()
    made += bytes(-len(made) % 8)
    assert (made == packed(name, data, options)) == ((planned, seed) == (distribution, 3))
    return dtype, made, data


def modes(made: bytes) -> set[tuple[int, int]]:
    """Plane number and mode of all planes of a frame's chunks."""
    header = frame.read_header(made)
    width = header.dtype.layout.width
    return {
        (min(plane, 2), made[int(offset) + 8 * plane])
        for offset in header.offsets[:-1]
        for plane in range(width)
    }


def test_small_frames_have_every_mode() -> None:
    found = set().union(*(modes(small(case)[1]) for case in SMALL))
    expected = {(0, mode) for mode in (0, 1, 2, 3, 4, 5)}
    expected |= {(1, mode) for mode in (0, 1, 4, 6)} | {(2, mode) for mode in (0, 1, 4)}
    assert found == expected
    assert len(frame.read_header(small("tables")[1]).table) > 2 * 44
    for case in SMALL:
        _, made, data = small(case)
        offsets = frame.read_header(made).offsets
        patches = sum(int.from_bytes(made[int(at) + 2 : int(at) + 4], "little") for at in offsets[:-1])
        assert (patches >= 2) == ("patches" in case)
        assert unpacked(made) == data


def damaged(data: bytes, rng: random.Random, count: int) -> list[bytes]:
    """Flipped bits, changed bytes, moved pieces, other lengths; more where records and patches are."""
    found = []
    for _ in range(count):
        copy = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            at = rng.randrange(min(len(copy), rng.choice([40, 200, len(copy)])))
            if rng.randrange(4) == 0:
                at = len(copy) - 1 - at % min(len(copy), 20)
            kind = rng.randrange(8)
            if kind < 4:
                copy[at] ^= 1 << rng.randrange(8)
            elif kind == 4:
                copy[at] = rng.choice([0, 1, 255, rng.randrange(256)])
            elif kind == 5:
                piece = rng.randrange(len(copy))
                copy[at : at + 8] = copy[piece : piece + min(8, len(copy) - at)]
            elif kind == 6:
                del copy[at : at + rng.choice([1, 2, 4, 16])]
            else:
                copy[at:at] = rng.randbytes(rng.choice([1, 2, 4, 16]))
            if not copy:
                break
        found.append(bytes(copy))
    return found


def decode_alone(header: frame.Header, number: int, tries: list[bytes]) -> list[bytes | None]:
    """What the library makes of each of the chunks, taken for chunk ``number``, checksums aside."""
    width = header.dtype.layout.width
    units = min(header.chunk_size, header.size - number * header.chunk_size) // width
    outs = [np.zeros(units * width, np.uint8) for _ in tries]
    indexes = [np.array([len(chunk), 0], np.uint32) for chunk in tries]
    jobs = [
        _abi.DecodeJob(
            src=np.frombuffer(chunk, np.uint8).ctypes.data if chunk else None,
            size=len(chunk),
            index=index.ctypes.data,
            units=units,
            first_chunk=number,
            table=header.table,
            table_bytes=len(header.table),
            layout=header.dtype.layout.id,
            chunk_log2=header.chunk_log2,
            dst=out.ctypes.data,
        )
        for chunk, index, out in zip(tries, indexes, outs, strict=True)
    ]
    _native.decode(jobs, 2)
    for job in jobs:
        error = _native.job_error(job)
        assert error is None or isinstance(error, CorruptFrame)
    return [out.tobytes() if job.status == 0 else None for job, out in zip(jobs, outs, strict=True)]


def reference_layout(dtype: DType) -> reference_chunk.Layout:
    layout = dtype.layout
    fields = (layout.id, layout.name, layout.width, layout.rotate, layout.joint, layout.planes)
    return reference_chunk.Layout(*fields)


@pytest.mark.parametrize("case", SMALL)
def test_damaged_chunks_are_refused_as_the_reference_does(case: str) -> None:
    dtype, made, data = small(case)
    header = frame.read_header(made)
    layout = reference_layout(dtype)
    tables = reference_chunk.read_tables(header.table, Coding.PLANES, layout)
    rng = random.Random(case)
    outcomes = {True: 0, False: 0}
    for number in {0, header.chunk_count - 1}:
        start, end = (int(offset) for offset in header.offsets[number : number + 2])
        original = data[number * header.chunk_size : (number + 1) * header.chunk_size]
        chunk, units = made[start:end], len(original) // layout.width
        tries = [chunk, *damaged(chunk, rng, 300)]
        found = decode_alone(header, number, tries)
        assert found[0] == original
        for isa in ISAS:
            _native.isa_select(isa)
            assert decode_alone(header, number, tries) == found, isa
        for damaged_chunk, decoded in zip(tries, found, strict=True):
            try:
                expected = reference_chunk.decode_chunk(
                    damaged_chunk, units, layout, tables.kind, tables.of_chunk(number)
                )
            except reference.Refused:
                expected = None
            assert decoded == expected
            outcomes[expected is None] += 1
    assert all(outcomes.values())


def accepted_as_by_the_reference(tables: list[bytes], layout: reference_chunk.Layout) -> list[bool]:
    """Which table blobs the library accepts: those that the reference decoder does."""
    jobs = [
        _abi.DecodeJob(table=table, table_bytes=len(table), layout=layout.id, chunk_log2=10)
        for table in tables
    ]
    _native.decode(jobs, 1)
    for table, job in zip(tables, jobs, strict=True):
        try:
            reference_chunk.read_tables(table, Coding.PLANES, layout)
            accepted = True
        except reference.Refused:
            accepted = False
        assert (job.status == 0) == accepted, table.hex()
    return [job.status == 0 for job in jobs]


@pytest.mark.parametrize("case", ["bf16 rank", "fp16 byte", "bf16 joint patches", "tables"])
def test_damaged_tables_are_refused_as_the_reference_does(case: str) -> None:
    dtype, made, _ = small(case)
    blob, layout = frame.read_header(made).table, reference_layout(dtype)
    rng = random.Random(case)
    tries = [blob, *damaged(blob, rng, 600), *(blob[:length] for length in range(1, len(blob), 3))]
    for bit in range(0, 8 * len(blob), 1 if len(blob) < 100 else 7):
        flipped = bytearray(blob)
        flipped[bit // 8] ^= 1 << bit % 8
        tries.append(bytes(flipped))
    for at in range(0, len(blob), 4):  # other chunk numbers, symbols, frequencies
        for value in 0, 1, 4, 8, 2**32 - 1:
            tries.append(blob[:at] + value.to_bytes(4, "little") + blob[at + 4 :])
    tries = [table for table in tries if table]
    accepted = accepted_as_by_the_reference(tries, layout)
    assert accepted[0] and not all(accepted)


@pytest.mark.parametrize("case", SMALL)
def test_a_chunk_may_be_cut_anywhere(case: str) -> None:
    _, made, _ = small(case)
    header = frame.read_header(made)
    for number in range(min(header.chunk_count, 2)):
        chunk = made[int(header.offsets[number]) : int(header.offsets[number + 1])]
        tries = [chunk[:length] for length in range(len(chunk))] + [chunk + bytes(n) for n in (1, 4, 64)]
        assert decode_alone(header, number, tries) == [None] * len(tries)


def test_rank_tables_of_any_weights() -> None:
    """The weights' sums are right, but ranks may begin where vector lookups cannot tell them apart (§4.2)."""
    rng = random.Random(1)

    def parts(total: int, count: int) -> list[int]:
        cuts = sorted(rng.sample(range(1, total), count - 1))
        return [end - start for start, end in zip([0, *cuts], [*cuts, total], strict=True)]

    tables = []
    for _ in range(2000):
        main, fine = rng.randint(1, 12), rng.randint(1, 4)
        weights = parts(255, main) + parts(16, fine)
        symbols = rng.sample(range(256), main + fine)
        table = (
            bytes([main + fine, main, 0, 0])
            + bytes(symbols).ljust(16, b"\0")
            + bytes(weights).ljust(16, b"\0")
        )
        tables.append(bytes([1, 0, 1, 0]) + bytes(8) + table)
    accepted = accepted_as_by_the_reference(tables, reference_layout(DTYPES["BF16"]))
    assert 500 < sum(accepted) < 1950
