"""The codec: any bytes of any dtype come back, and all instruction sets and thread counts agree on them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from distributions import NAMES, make, shape_of, unit_width
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuzip import _abi, _native, frame
from neuzip.codec import DecodeRun, EncodeRun, Options, decode_runs, encode_runs, make_plan
from neuzip.errors import CorruptFrame, InvalidArgument
from neuzip.layouts import DTYPES

FORMATS = Path(__file__).resolve().parent.parent / "formats"
sys.path.insert(0, str(FORMATS))  # formats/ is not a package

import reference  # noqa: E402

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


# --- options ---


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


# --- round trips ---

# Around the lengths that steps, blocks, tiles, samples and chunks have.
EDGES = [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 65536]
few = st.integers(0, 300)
edges = st.builds(lambda edge, by: max(edge + by, 0), st.sampled_from(EDGES), st.integers(-3, 3))
chunks = st.builds(
    lambda log2, n, by: (n << log2) + by, st.integers(10, 13), st.integers(1, 5), st.integers(-2, 2)
)


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


# --- sizes ---


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
    assert len(smallest) <= 1.0002 * len(default)


# --- runs ---


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
    offsets = [0, *np.cumsum(index[0::2], dtype=np.int64).tolist()]
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
    job = _abi.EncodeJob(
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
