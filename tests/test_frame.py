"""Frames: headers, buffers, many at once, streams of batches, ranges of chunks."""

from __future__ import annotations

import random
import struct
import tracemalloc
from typing import Any

import frame_header
import numpy as np
import pytest
from distributions import make, shape_of
from hypothesis import given, settings
from hypothesis import strategies as st

from neuzip import frame
from neuzip._system import Scratch
from neuzip.codec import Coding, Options
from neuzip.errors import CorruptFrame, InvalidArgument, NeuzipError, TruncatedInput
from neuzip.layouts import DTYPES

ONE_THREAD = Options(threads=1, chunk_log2=10)


def packed(dtype: str, data: bytes, options: Options = ONE_THREAD) -> bytes:
    return frame.encode(data, DTYPES[dtype], shape_of(DTYPES[dtype], len(data)), options)


def unpacked(data: bytes) -> bytes:
    out = bytearray(frame.read_header(data, whole=True).size)
    frame.decode(data, out, ONE_THREAD)
    return bytes(out)


# --- headers ---


def test_header() -> None:
    data = make("weights", "BF16", 5000)
    made = frame.encode(data, DTYPES["BF16"], (50, 2, 50), Options("max", chunk_log2=11))
    header = frame.read_header(made)
    assert header.dtype is DTYPES["BF16"] and header.shape == (50, 2, 50) and header.size == 10_000
    assert (header.coding, header.level, header.chunk_log2) == (Coding.PLANES, 1, 11)
    assert (header.chunk_size, header.chunk_count) == (4096, 3)
    assert header.frame_size == len(made) and header.header_size == frame.header_length(made[:40])
    assert header.offsets[0] == header.header_size
    assert np.diff(header.offsets).tolist() == header.lengths.tolist()
    assert 0 <= len(made) - header.offsets[-1] < 8
    assert len(header.table) == struct.unpack_from("<I", made, 12)[0]
    assert len(header.checksums) == 3
    # The start of a frame is enough, and what follows it does no harm, unless the frame is to be whole.
    assert frame.read_header(made[: header.header_size]).offsets[-1] == header.offsets[-1]
    assert frame.read_header(made + bytes(100)).shape == header.shape
    with pytest.raises(CorruptFrame):
        frame.read_header(made + bytes(1), whole=True)
    with pytest.raises(TruncatedInput):
        frame.read_header(made[:-1], whole=True)


@pytest.mark.parametrize(
    ("dtype", "units", "coding"),
    [
        ("BF16", 0, Coding.STORED),
        ("BF16", 1, Coding.STORED),
        ("F64", 31, Coding.STORED),
        ("F64", 32, Coding.PLANES),
        ("U8", 256, Coding.PLANES),
        ("I32", 63, Coding.STORED),
        ("I32", 64, Coding.ZSTD),
        ("BOOL", 1000, Coding.ZSTD),
    ],
)
def test_codings(dtype: str, units: int, coding: Coding) -> None:
    data = make("weights", dtype, units)
    made = packed(dtype, data)
    assert frame.read_header(made).coding is coding
    assert unpacked(made) == data


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 5), (1,) * 32, (2, 3, 4)])
def test_shapes(shape: tuple[int, ...]) -> None:
    data = np.random.default_rng(0).bytes(4 * int(np.prod(shape)))
    made = frame.encode(data, DTYPES["F32"], shape, ONE_THREAD)
    assert len(made) % 8 == 0
    assert frame.read_header(made, whole=True).shape == shape
    assert unpacked(made) == data


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("F32", (3,), 11),
        ("F32", (4,), 12),
        ("F4", (3,), 2),
        ("U8", (1,) * 33, 1),
        ("U8", (-1, -4), 4),
        ("U8", (0, 1 << 64), 0),
        ("U8", (0, -1), 0),
    ],
)
def test_shapes_that_are_refused(dtype: str, shape: tuple[int, ...], size: int) -> None:
    with pytest.raises(InvalidArgument):
        frame.encode(bytes(size), DTYPES[dtype], shape)
    with pytest.raises(InvalidArgument):
        frame.Encoder(bytes(size), DTYPES[dtype], shape)


def test_headers_that_claim_too_much() -> None:
    """Nothing is allocated for a size, table or index that the bytes do not have."""
    fields = {"dtype": DTYPES["U8"].code, "coding": 1, "chunk_log2": 16}
    huge: list[tuple[bytes, type[NeuzipError]]] = [
        (
            frame_header.build(**fields, shape=[1 << 62], size=1 << 62, frame_size=1 << 50),
            TruncatedInput,
        ),
        (frame_header.build(**fields, shape=[1 << 62], size=1 << 62, frame_size=1 << 44), CorruptFrame),
        (frame_header.build(**fields, shape=[1 << 40], size=1 << 40, frame_size=1 << 30), TruncatedInput),
        (frame_header.build(**fields, shape=[1 << 40], size=1 << 40, frame_size=1 << 23), CorruptFrame),
        (frame_header.build(**fields, shape=[2**64 - 1] * 32, size=8, frame_size=1 << 12), TruncatedInput),
    ]
    table = bytearray(huge[-1][0])
    struct.pack_into("<I", table, 12, 2**32 - 1)
    struct.pack_into("<Q", table, 24, 1 << 40)
    huge.append((bytes(table), TruncatedInput))
    tracemalloc.start()
    try:
        for made, error in huge:
            with pytest.raises(error):
                frame.read_header(made)
            with pytest.raises(NeuzipError):
                frame.read_header(made, whole=True)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_claimed_size_is_bounded_exactly() -> None:
    """§6: size ≤ 2^17 · frame_size."""
    header = bytearray(frame_header.build(dtype=2, coding=0, chunk_log2=20, shape=[0], size=0, frame_size=80))
    struct.pack_into("<Q", header, 16, (80 << 17) + 1)
    with pytest.raises(CorruptFrame, match="claims"):
        frame.header_length(header)
    struct.pack_into("<Q", header, 16, 80 << 17)
    with pytest.raises(CorruptFrame, match=r"index|fill|longer than its frame"):
        frame.read_header(header)


def test_levels_are_for_information() -> None:
    made = frame_header.build(dtype=2, coding=0, chunk_log2=20, shape=[0], size=0, level=255)
    assert frame.read_header(made, whole=True).level == 255


# --- buffers ---


def test_input_is_never_changed() -> None:
    for dtype in "BF16", "F32", "I64":
        data = np.frombuffer(make("weights", dtype, 3000), np.uint8).copy()
        before = data.copy()
        data.flags.writeable = False
        made = np.frombuffer(frame.encode(data, DTYPES[dtype], (3000,), ONE_THREAD), np.uint8).copy()
        packed_before = made.copy()
        made.flags.writeable = False
        out = np.zeros_like(before)
        frame.decode(made, out, ONE_THREAD)
        assert (out == before).all() and (data == before).all() and (made == packed_before).all()


@pytest.mark.parametrize(
    "wrong", [bytes(2000), bytearray(1999), bytearray(2001), np.zeros((1000, 4), np.uint8)[:, :2]]
)
def test_wrong_outs_are_refused(wrong: Any) -> None:
    made = packed("BF16", make("weights", "BF16", 1000))
    with pytest.raises(InvalidArgument):
        frame.decode(made, wrong)


@pytest.mark.parametrize("dtype", ["BF16", "I32", "U8"])
def test_outs_of_any_kind(dtype: str) -> None:
    data = make("weights", dtype, 1000)
    made = packed(dtype, data)
    plain = np.zeros(len(data), np.uint8)
    outs = [
        bytearray(len(data)),
        plain,
        memoryview(bytearray(len(data))),
        plain.view(np.uint16).reshape(2, -1),
    ]
    for out in outs:
        for source in (made, bytearray(made), memoryview(made), np.frombuffer(made, np.uint8)):
            np.frombuffer(out, np.uint8)[:] = 0
            frame.decode(source, out, ONE_THREAD)
            assert bytes(np.frombuffer(out, np.uint8)) == data


# --- many, streams, ranges ---

TENSORS = [
    ("BF16", "rows", 30_000),
    ("F32", "weights", 5000),
    ("I64", "steps", 500_000),
    ("U8", "noise", 3000),
    ("F16", "sparse", 70_000),
    ("BF16", "weights", 3),
    ("F64", "constant", 4096),
    ("BOOL", "zeros", 0),
]


def test_many_at_once_are_as_each_alone() -> None:
    items = [(make(name, dtype, units), DTYPES[dtype], (units,)) for dtype, name, units in TENSORS]
    alone = [frame.encode(*item, ONE_THREAD) for item in items]
    for threads in 1, 2, 3:
        options = Options(threads=threads, chunk_log2=10)
        assert frame.encode_many(items, options) == alone
        outs = [bytearray(len(data)) for data, _, _ in items]
        frame.decode_many(list(zip(alone, outs, strict=True)), options)
        assert outs == [data for data, _, _ in items]
    assert frame.encode_many([]) == []
    frame.decode_many([])


@pytest.mark.parametrize(("dtype", "name", "units"), TENSORS)
def test_streams_make_the_same_frame(dtype: str, name: str, units: int) -> None:
    data = make(name, dtype, units)
    expected = packed(dtype, data)
    shape = shape_of(DTYPES[dtype], len(data))
    for batch_size in 1, 5000, 100_000, 1 << 26:
        encoder = frame.Encoder(data, DTYPES[dtype], shape, Options(threads=2, chunk_log2=10))
        body = b"".join(bytes(batch) for batch in encoder.batches(batch_size, Scratch()))
        assert encoder.frame_size == len(expected)
        assert encoder.header() + body == expected
        assert encoder.header_size == len(encoder.header())


@pytest.mark.parametrize(("dtype", "name", "units"), TENSORS)
def test_every_range_of_chunks(dtype: str, name: str, units: int) -> None:
    data = make(name, dtype, units)
    made = packed(dtype, data)
    header = frame.read_header(made)
    count = header.chunk_count
    ranges = [(first, last) for first in range(count + 1) for last in range(first, count + 1)]
    for first, last in random.Random(units).sample(ranges, min(len(ranges), 60)):
        expected = data[first * header.chunk_size : last * header.chunk_size]
        out = bytearray(len(expected))
        part = made[int(header.offsets[first]) : int(header.offsets[last])]
        frame.decode_chunks(header, part, first, last - first, out, Options(threads=2))
        assert out == expected


@pytest.mark.parametrize(("first", "count"), [(-1, 2), (0, 6), (5, 1), (2, -1), (6, 0)])
def test_ranges_that_are_refused(first: int, count: int) -> None:
    header = frame.read_header(packed("BF16", make("weights", "BF16", 5000)))
    assert header.chunk_count == 5
    with pytest.raises(InvalidArgument):
        frame.decode_chunks(header, b"", first, count, bytearray(0))


def test_errors_name_chunk_and_tensor() -> None:
    for dtype, units in (("BF16", 5000), ("I32", 1_500_000)):
        data = make("weights", dtype, units)
        made = bytearray(packed(dtype, data))
        header = frame.read_header(made)
        made[int(header.offsets[3]) + (1 if dtype == "BF16" else 20)] ^= 0xFF
        with pytest.raises(CorruptFrame) as caught:
            frame.decode(made, bytearray(len(data)))
        assert caught.value.chunk == 3
        part = made[int(header.offsets[2]) : int(header.offsets[4])]
        with pytest.raises(CorruptFrame) as caught:
            frame.decode_chunks(header, part, 2, 2, bytearray(2 * header.chunk_size))
        assert caught.value.chunk == 3
        with pytest.raises(CorruptFrame) as caught:
            frame.decode_many([(made, bytearray(len(data)))], names=["model.weight"])
        assert (caught.value.tensor, caught.value.chunk) == ("model.weight", 3)
        with pytest.raises(TruncatedInput) as caught_short:
            frame.decode_many([(made[:-1], bytearray(len(data)))], names=["model.weight"])
        assert caught_short.value.tensor == "model.weight"


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(sorted(DTYPES)),
    units=st.integers(0, 9000),
    batch_size=st.integers(1, 20_000),
    data=st.data(),
)
def test_streams_and_ranges(dtype: str, units: int, batch_size: int, data: st.DataObject) -> None:
    original = make(data.draw(st.sampled_from(["weights", "outliers", "noise"])), dtype, units)
    shape = shape_of(DTYPES[dtype], len(original))
    encoder = frame.Encoder(original, DTYPES[dtype], shape, ONE_THREAD)
    body = b"".join(bytes(batch) for batch in encoder.batches(batch_size, Scratch()))
    made = encoder.header() + body
    assert made == frame.encode(original, DTYPES[dtype], shape, ONE_THREAD)
    header = frame.read_header(made, whole=True)
    first = data.draw(st.integers(0, header.chunk_count))
    last = data.draw(st.integers(first, header.chunk_count))
    expected = original[first * header.chunk_size : last * header.chunk_size]
    out = bytearray(len(expected))
    part = made[int(header.offsets[first]) : int(header.offsets[last])]
    frame.decode_chunks(header, part, first, last - first, out, ONE_THREAD)
    assert out == expected
