"""The codec: any bytes of any dtype come back, the same bytes from every instruction set and number of threads, and
damaged chunks and tables are refused exactly where the reference decoder refuses them."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from distributions import NAMES, make, shape_of, unit_width
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuzip import _native, frame
from neuzip.codec import Coding, DecodeRun, EncodeRun, Options, decode_runs, encode_runs, make_plan
from neuzip.errors import CorruptFrame, InvalidArgument
from neuzip.layouts import DTYPES, DType

FORMATS = Path(__file__).resolve().parent.parent / "formats"
sys.path.insert(0, str(FORMATS))  # formats/ is not a package

import reference  # noqa: E402
import reference_chunk  # noqa: E402

ISAS = [name for name in _native.isa_names() if _native.isa_available(name)]
ONE_THREAD = Options(threads=1)

# Beside raw + 0.1 %: the header, and the records and padding of a single chunk (spec §4, §5).
SMALL_CONSTANT = 160


@pytest.fixture(autouse=True)
def best_isa() -> Iterator[None]:
    yield
    _native.isa_select(None)


def packed(name: str, data: bytes, options: Options) -> bytes:
    return frame.encode(data, DTYPES[name], shape_of(DTYPES[name], len(data)), options)


def unpacked(packed_frame: bytes, options: Options = ONE_THREAD) -> bytes:
    out = bytearray(frame.read_header(packed_frame, whole=True).size)
    frame.decode(packed_frame, out, options)
    return bytes(out)


# --- options --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"level": "best"}, {"level": 1}, {"threads": 0}, {"threads": -1}, {"chunk_log2": 9}, {"chunk_log2": 17}],
)
def test_wrong_options(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        Options(**wrong)  # type: ignore[arg-type]


def test_thread_count() -> None:
    assert Options(threads=7).thread_count == 7
    assert Options().thread_count >= 1


# --- round trips ----------------------------------------------------------------------------------------------

# Around the lengths that steps, blocks, tiles, samples and chunks have.
EDGES = [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 65536]
few = st.integers(0, 300)
edges = st.builds(lambda edge, by: max(edge + by, 0), st.sampled_from(EDGES), st.integers(-3, 3))
chunks = st.builds(lambda log2, n, by: (n << log2) + by, st.integers(10, 13), st.integers(1, 5), st.integers(-2, 2))


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    dtype=st.sampled_from(sorted(DTYPES)),
    name=st.sampled_from(NAMES),
    units=st.one_of(few, edges, chunks),
    level=st.sampled_from(["default", "max"]),
    chunk_log2=st.integers(10, 16),
    seed=st.integers(0, 1 << 20),
)
def test_round_trip(dtype: str, name: str, units: int, level: str, chunk_log2: int, seed: int) -> None:
    data = make(name, dtype, units, seed)
    source = bytearray(data)
    _native.isa_select("scalar")
    expected = packed(dtype, source, Options(level, threads=1, chunk_log2=chunk_log2))
    assert source == data
    for isa in ISAS:
        _native.isa_select(isa)
        for threads in 1, 2, 3:
            options = Options(level, threads=threads, chunk_log2=chunk_log2)
            assert packed(dtype, source, options) == expected
            assert unpacked(expected, options) == data
    assert source == data
    header = frame.read_header(expected)
    each = 12 * unit_width(DTYPES[dtype]) + 8  # records, padding and index of a chunk
    assert len(expected) <= len(data) * 1.001 + SMALL_CONSTANT + each * max(header.chunk_count - 1, 0)
    if chunk_log2 == 16:
        assert len(expected) <= len(data) * 1.001 + SMALL_CONSTANT


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    dtype=st.sampled_from(sorted(DTYPES)),
    name=st.sampled_from(NAMES),
    units=st.one_of(few, st.integers(1000, 2100)),
    level=st.sampled_from(["default", "max"]),
    seed=st.integers(0, 1 << 20),
)
def test_the_reference_decodes_it(dtype: str, name: str, units: int, level: str, seed: int) -> None:
    data = make(name, dtype, units, seed)
    tensor = reference.decode_frame(packed(dtype, data, Options(level, threads=1, chunk_log2=10)))
    assert (tensor.dtype, tensor.shape, tensor.data) == (dtype, shape_of(DTYPES[dtype], len(data)), data)


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=2000), dtype=st.sampled_from(["U8", "F4", "BOOL", "F8_E8M0"]))
def test_arbitrary_bytes(data: bytes, dtype: str) -> None:
    assert unpacked(packed(dtype, data, ONE_THREAD)) == data


def test_unaligned_buffers() -> None:
    data = make("weights", "F64", 3000)
    for shift in range(1, 9):
        source = np.zeros(len(data) + shift, np.uint8)
        source[shift:] = np.frombuffer(data, np.uint8)
        made = frame.encode(source[shift:], DTYPES["F64"], (3000,), Options(threads=2, chunk_log2=10))
        moved = np.zeros(len(made) + shift, np.uint8)
        moved[shift:] = np.frombuffer(made, np.uint8)
        out = np.zeros(len(data) + shift, np.uint8)
        frame.decode(moved[shift:], out[shift:], ONE_THREAD)
        assert out[shift:].tobytes() == data and not out[:shift].any()


# --- sizes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("level", ["default", "max"])
def test_constant_tensors_collapse(dtype: str, level: str) -> None:
    units = 200_000
    for name in "zeros", "constant":
        data = make(name, dtype, units)
        made = packed(dtype, data, Options(level, threads=1))
        width = unit_width(DTYPES[dtype])
        assert len(made) <= 64 + 4 * (8 + 8 * width) if DTYPES[dtype].layout.planes else len(data) // 500
        assert unpacked(made) == data


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("level", ["default", "max"])
def test_noise_stays_at_its_size(dtype: str, level: str) -> None:
    for units in 100, 256, 300, 1000, 3000, 10_000, 100_000:
        data = make("noise", dtype, units)
        made = packed(dtype, data, Options(level, threads=1))
        # Random bits of a boolean or a float are not always random exponents; but none of them may grow.
        assert len(made) <= 1.001 * len(data) + SMALL_CONSTANT
        assert unpacked(made) == data


@pytest.mark.parametrize("level", ["default", "max"])
def test_smaller_floats_inside_of_fp32(level: str) -> None:
    """An fp32 tensor that is bf16 or fp16 underneath comes out near the smaller one's size."""
    rng = np.random.default_rng(1)
    values = rng.normal(0, 0.02, 300_000).astype("<f4")
    options = Options(level, threads=1)
    bf16 = (values.view("<u4") >> 16).astype("<u2")
    wide = (bf16.astype("<u4") << 16).tobytes()
    assert len(packed("F32", wide, options)) <= len(packed("BF16", bf16.tobytes(), options)) + 300
    fp16 = values.astype("<f2")
    wide = fp16.astype("<f4").tobytes()
    assert len(packed("F32", wide, options)) <= 1.06 * len(packed("F16", fp16.tobytes(), options))


@pytest.mark.parametrize(("dtype", "most"), [("BF16", 0.70), ("F16", 0.88), ("F32", 0.86), ("F8_E4M3", 0.90)])
def test_weights_shrink(dtype: str, most: float) -> None:
    if dtype == "F8_E4M3":
        ml_dtypes = pytest.importorskip("ml_dtypes")
        values = np.random.default_rng(0).normal(0, 40, 200_000).astype(ml_dtypes.float8_e4m3fn)
        data = values.view(np.uint8).tobytes()
    else:
        data = make("weights", dtype, 200_000)
    default, smallest = (packed(dtype, data, Options(level, threads=1)) for level in ("default", "max"))
    assert len(default) <= most * len(data)
    assert len(smallest) <= len(default)


# --- runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["BF16", "F32", "I32", "U8"])
def test_runs_of_chunks_are_independent(dtype: str) -> None:
    """Encoding a tensor in runs of any chunks makes the same chunks, and any run decodes alone."""
    options = Options(threads=2, chunk_log2=10)
    data = np.frombuffer(make("rows", dtype, 13_000 if dtype != "I32" else 900_000), np.uint8)
    plan = make_plan(data, DTYPES[dtype].layout, options)
    count = plan.chunk_count
    whole = np.zeros(plan.capacity, np.uint8)
    index = np.zeros(2 * count, np.uint32)
    run = EncodeRun(plan, data, whole.ctypes.data, index)
    encode_runs([run], options)
    offsets = np.concatenate([[0], np.cumsum(index[0::2])])
    assert run.written == offsets[-1]
    for first in range(count):
        for last in (first + 1, first + 3, count):
            last = min(last, count)
            source = data[first * plan.chunk_size : last * plan.chunk_size]
            target = np.zeros(plan.run_capacity(source.size), np.uint8)
            part_index = np.zeros(2 * (last - first), np.uint32)
            part = EncodeRun(plan, source, target.ctypes.data, part_index, first)
            encode_runs([part], options)
            assert (part_index == index[2 * first : 2 * last]).all()
            assert target[: part.written].tobytes() == whole[offsets[first] : offsets[last]].tobytes()
            out = np.zeros(source.size, np.uint8)
            decoded = DecodeRun(plan, whole[offsets[first] : offsets[last]], part_index, out, first)
            decode_runs([decoded], options)
            assert decoded.error is None and (out == source).all()


def test_too_little_room_is_refused() -> None:
    data = np.frombuffer(make("weights", "BF16", 5000), np.uint8)
    plan = make_plan(data, DTYPES["BF16"].layout, Options(chunk_log2=10))
    target = np.full(10_000, 0xA5, np.uint8)
    job = _native.EncodeJob(
        src=data.ctypes.data,
        units=5000,
        table=plan.table,
        table_bytes=len(plan.table),
        layout=plan.layout.id,
        chunk_log2=10,
        dst=target.ctypes.data,
        capacity=3000,
        index=np.zeros(10, np.uint32).ctypes.data,
    )
    _native.encode([job], 2)
    assert isinstance(_native.job_error(job), InvalidArgument)
    assert (target[3000:] == 0xA5).all()


def test_one_bad_run_does_not_spoil_the_others() -> None:
    options = Options(threads=2, chunk_log2=10)
    frames = [packed(dtype, make("weights", dtype, 5000), options) for dtype in ("BF16", "F16", "F32")]
    for bad in range(3):
        runs = []
        for number, made in enumerate(frames):
            header = frame.read_header(made)
            body = np.frombuffer(made, np.uint8)[header.header_size : int(header.offsets[-1])].copy()
            if number == bad:
                body[int(header.offsets[3]) - header.header_size] = 0xFF  # no mode of a plane
            runs.append(DecodeRun(header.plan, body, header.index, np.zeros(header.size, np.uint8)))
        decode_runs(runs, options)
        assert [run.error is None for run in runs] == [number != bad for number in range(3)]
        error = runs[bad].error
        assert isinstance(error, CorruptFrame) and error.chunk == 3


# --- damage, against the reference decoder -----------------------------------------------------------------------

# Together these have every mode of every plane, patches, payloads, unfinished blocks and several chunks.
SMALL = {
    "bf16 rank": ("BF16", "weights", 1300, "default"),
    "bf16 rank patches": ("BF16", "outliers", 1500, "default"),
    "bf16 joint": ("BF16", "weights", 1400, "max"),
    "bf16 joint patches": ("BF16", "outliers", 1290, "max"),
    "bf16 wide": ("BF16", "wide", 1024, "default"),
    "fp16 byte": ("F16", "weights", 1100, "default"),
    "fp8 byte": ("F8_E4M3", "weights", 1333, "default"),
    "fp8 byte patches": ("U8", "outliers", 1200, "max"),
    "fp32 rank": ("F32", "weights", 600, "default"),
    "fp32 joint": ("F32", "weights", 700, "max"),
    "fp32 local": ("F32", "steps", 800, "default"),
    "fp64 local": ("F64", "steps", 700, "default"),
    "constant": ("F32", "constant", 600, "default"),
    "tables": ("BF16", "rows", 10_000, "default"),
}


def small(case: str) -> tuple[DType, bytes, bytes]:
    """Dtype, frame and original bytes of a small tensor."""
    dtype, name, units, level = SMALL[case]
    data = make(name, dtype, units, 3)
    return DTYPES[dtype], packed(dtype, data, Options(level, threads=1, chunk_log2=10)), data


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
    first = {(0, mode) for mode in (0, 1, 2, 3, 4, 5)}
    second = {(1, mode) for mode in (0, 1, 4, 6)}
    third = {(2, mode) for mode in (0, 1, 4)}
    # Plane 0 has a table of its own only where the frame has none, which no case here wants.
    assert first - {(0, 0), (0, 4)} <= found and second <= found and third <= found
    assert len(frame.read_header(small("tables")[1]).table) > 2 * 44


def damaged(data: bytes, rng: random.Random, count: int) -> list[bytes]:
    """Flipped bits, changed bytes, moved pieces, other lengths; early bytes, where the records are, more often."""
    found = []
    for _ in range(count):
        copy = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            at = rng.randrange(min(len(copy), rng.choice([40, 200, len(copy)])))
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
    """What the library makes of each of the chunks, taken for chunk ``number``, without looking at checksums."""
    width = header.dtype.layout.width
    units = min(header.chunk_size, header.size - number * header.chunk_size) // width
    outs = [np.zeros(units * width, np.uint8) for _ in tries]
    indexes = [np.array([len(chunk), 0], np.uint32) for chunk in tries]
    jobs = [
        _native.DecodeJob(
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
        tries = [chunk, *damaged(chunk, rng, 150)]
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
    tries = [table for table in tries if table]
    jobs = [
        _native.DecodeJob(table=table, table_bytes=len(table), layout=layout.id, chunk_log2=10)
        for table in tries
    ]
    _native.decode(jobs, 1)
    assert jobs[0].status == 0
    for table, job in zip(tries, jobs, strict=True):
        try:
            reference_chunk.read_tables(table, Coding.PLANES, layout)
            accepted = True
        except reference.Refused:
            accepted = False
        assert (job.status == 0) == accepted, table.hex()


@pytest.mark.parametrize("case", SMALL)
def test_a_chunk_may_be_cut_anywhere(case: str) -> None:
    _, made, _ = small(case)
    header = frame.read_header(made)
    for number in range(min(header.chunk_count, 2)):
        chunk = made[int(header.offsets[number]) : int(header.offsets[number + 1])]
        tries = [chunk[:length] for length in range(len(chunk))] + [chunk + bytes(n) for n in (1, 4, 64)]
        assert decode_alone(header, number, tries) == [None] * len(tries)
