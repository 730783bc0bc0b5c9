"""The container (§7) in memory: what is written, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import struct

import numpy as np
import pytest
import safetensors
import zstandard
from safetensors_file import FILE_DTYPES, Tensor, build, header_text, model, split, weights, with_header

from neuzip import frame, kept
from neuzip.codec import Options
from neuzip.container import BATCH_BYTES, Container
from neuzip.container_writer import write_container
from neuzip.errors import CorruptFrame, InvalidArgument, NeuzipError, TruncatedInput, UnsupportedFormat
from neuzip.layouts import DTYPES
from neuzip.numpy import load
from neuzip.safetensors_header import HEADER_LIMIT

OPTIONS = Options(threads=2)


def compressed(original: bytes, options: Options = OPTIONS) -> bytes:
    out = io.BytesIO()
    sha256 = write_container(Container.parse(memoryview(original)), out, options)
    assert sha256 == hashlib.sha256(original).hexdigest()
    return out.getvalue()


def restored(file: bytes) -> bytes:
    container = Container.parse(memoryview(file))
    assert container.compressed
    data = b"".join(bytes(piece) for piece in container.pieces(OPTIONS))
    assert hashlib.sha256(data).hexdigest() == container.sha256
    return data


def roundtrip(original: bytes) -> bytes:
    """Compresses, restores, compares, lets stock safetensors read both; returns the container."""
    file = compressed(original)
    assert restored(file) == original
    # Stock safetensors wants attributes of torch and numpy for get_tensor; deserialize needs neither.
    ours, theirs = dict(safetensors.deserialize(file)), dict(safetensors.deserialize(original))
    assert ours.keys() == theirs.keys()
    container = Container.parse(memoryview(file))
    for name, entry in ours.items():
        if container.is_frame(name):
            assert entry["dtype"] == "U8"
            assert entry["shape"] == [len(entry["data"])]
            assert len(entry["data"]) % 8 == 0
            assert len(entry["data"]) < len(theirs[name]["data"])
        else:
            assert entry == theirs[name]
    return file


# --- round trips ---


@pytest.mark.parametrize("dtype", FILE_DTYPES)
def test_every_dtype(dtype: str) -> None:
    file = roundtrip(build(model([dtype])))
    assert Container.parse(memoryview(file)).is_frame(f"layer.0.{dtype.lower()}")


def test_all_dtypes_in_one_file() -> None:
    original = build(model(), {"format": "pt"})
    assert len(roundtrip(original)) < len(original)


@pytest.mark.parametrize("level", ["default", "max"])
def test_levels(level: str) -> None:
    original = build(model(["BF16"], 1 << 16))
    assert restored(compressed(original, Options(level=level, threads=1))) == original


def test_scalars_empty_tensors_and_odd_sizes() -> None:
    tensors = [
        Tensor("scalar", "F32", (), b"\x01\x00\xc0\x7f"),
        Tensor("empty", "BF16", (0,), b""),
        Tensor("empty.matrix", "F64", (3, 0, 5), b""),
        Tensor("odd", "U8", (1001,), weights("U8", 1001)),
        Tensor("unaligned", "F64", (77,), weights("F64", 77)),
        Tensor("packed", "F4", (6,), b"\x12\x34\x56"),
        Tensor("last", "BF16", (0,), b""),
    ]
    roundtrip(build(tensors))


def test_no_tensors() -> None:
    roundtrip(build([]))
    roundtrip(build([], {"only": "metadata"}))
    roundtrip(with_header(b"{}      "))


def test_two_thousand_tiny_tensors() -> None:
    tensors = [Tensor(f"t.{i}", "F16", (i % 7,), weights("F16", i % 7, i)) for i in range(2000)]
    roundtrip(build(tensors))


def test_more_dimensions_than_a_frame_has() -> None:
    file = roundtrip(build([Tensor("deep", "U8", (1,) * 39 + (4096,), bytes(4096))]))
    assert not Container.parse(memoryview(file)).is_frame("deep")


def test_constant_tensors_collapse() -> None:
    original = build([Tensor("zeros", "F32", (1 << 18,), bytes(1 << 20))])
    assert len(roundtrip(original)) < 2000


def test_incompressible_tensors_stay_as_they_are() -> None:
    noise = np.random.default_rng(1).bytes(1 << 16)
    tensors = [Tensor("noise", "U8", (1 << 16,), noise), *model(["BF16"])]
    original = build(tensors)
    container = Container.parse(memoryview(roundtrip(original)))
    assert not container.is_frame("noise")
    assert container.data("noise") == noise
    assert container.is_frame("layer.0.bf16")


def test_a_stored_tensor_costs_nothing_but_header() -> None:
    noise = np.random.default_rng(1).bytes(1 << 16)
    original = build([Tensor("noise", "I32", (1 << 14,), noise)])
    assert len(compressed(original)) - len(original) < 1000


@pytest.mark.parametrize("dtype", ["BF16", "F32", "I64"])
def test_tensors_larger_than_a_batch(dtype: str) -> None:
    """The streaming paths: coded, and found incompressible after it was coded."""
    units = BATCH_BYTES * 9 // 4 // (DTYPES[dtype].bits // 8) + 3
    noise = np.random.default_rng(2).bytes(BATCH_BYTES + 8)
    data = np.resize(np.frombuffer(weights(dtype, 1 << 16), np.uint8), units * DTYPES[dtype].bits // 8)
    tensors = [
        Tensor("before", dtype, (5,), weights(dtype, 5)),
        Tensor("large", dtype, (units,), data.tobytes()),
        Tensor("noise", "U8", (len(noise),), noise),
        *model(["F16"]),
    ]
    container = Container.parse(memoryview(roundtrip(build(tensors))))
    assert container.is_frame("large")
    assert not container.is_frame("noise")
    assert container.is_frame("layer.0.f16")


def test_a_piece_outlives_the_next_one() -> None:
    """So that it can be hashed while the next is decoded."""
    values = weights("BF16", 1 << 20)
    tensors = [Tensor(f"{i}", "BF16", (1 << 20,), values[i:] + values[:i]) for i in range(40)]
    tensors.append(Tensor("large", "BF16", (40 << 20,), values * 40))
    original = build(tensors)
    container, position = Container.parse(memoryview(compressed(original))), 0
    for piece, _ in itertools.pairwise(container.pieces(OPTIONS)):
        assert piece == memoryview(original)[position : position + len(piece)]
        position += len(piece)
    assert position > len(original) - BATCH_BYTES - 1


def test_a_large_incompressible_tensor_at_the_end() -> None:
    """What was written beyond it, before it was found incompressible, is cut off."""
    noise = np.random.default_rng(2).bytes(BATCH_BYTES + 8)
    roundtrip(build([Tensor("noise", "U8", (len(noise),), noise)]))


def test_a_frame_with_the_shape_of_its_tensor() -> None:
    """Only the dtype tells that it is one (§7)."""
    for count in range(64, 200):
        original = build([Tensor("zeros", "F64", (count,), bytes(8 * count))])
        container = Container.parse(memoryview(compressed(original)))
        if container.header.entries["zeros"].shape == (count,):
            break
    assert container.is_frame("zeros")
    assert restored(bytes(container.view)) == original


def test_progress_counts_every_byte() -> None:
    original = build(model(["BF16", "F32", "U8"], BATCH_BYTES // 4))
    counts: list[int] = []
    write_container(Container.parse(memoryview(original)), io.BytesIO(), OPTIONS, counts.append)
    assert sum(counts) == len(original)
    assert len(counts) > 2


# --- header text ---


@pytest.mark.parametrize(
    "text",
    [
        b' \n {"a" : {"dtype":"U8","shape":[4],"data_offsets":[0,4]} }\t\n   ',
        b'{"a":{"data_offsets":[0,4],"shape":[4],"dtype":"U8","extra":[1,{"x":null}]}}',
        b'{"__metadata__":null,"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
        b'{"__metadata__":{},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
        b'{"":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
        b'{"a\\/\\u00e9\\ud83d\\ude00":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}, "__metadata__":{"z":"\\n","\xc3\xa4":""}}',
        b'{"b":{"dtype":"U8","shape":[],"data_offsets":[3,4]},"a":{"dtype":"I8","shape":[3],"data_offsets":[0,3]}}',
    ],
)
def test_header_text_is_kept(text: bytes) -> None:
    roundtrip(with_header(text, b"\x00\x7f\x80\xff"))


def test_names_with_slashes_dots_and_unicode() -> None:
    names = ["a/b/c", "../x", "ä€𝄞", 'quote"\\', "tab\t", "neuzip.header", " "]
    roundtrip(build([Tensor(name, "U8", (8,), bytes(8)) for name in names], {"ä": "𝄞"}))


def test_unsorted_header() -> None:
    tensors = model(["F32", "BF16", "U8"])
    fields, data = split(build(tensors))
    text = json.dumps({name: fields[name] for name in sorted(fields, reverse=True)}).encode()
    file = roundtrip(with_header(text, data))
    names = list(Container.parse(memoryview(file)).header.entries)
    assert names == [tensor.name for tensor in tensors]


def test_metadata() -> None:
    original = build(model(["BF16"]), {"format": "pt", "weird key": "ä\n"})
    container = Container.parse(memoryview(roundtrip(original)))
    assert container.metadata == {"format": "pt", "weird key": "ä\n"}
    assert container.header.metadata.items() > container.metadata.items()
    assert container.header.metadata["neuzip.version"] == "1"
    assert container.header.metadata["neuzip.size"] == str(len(original))


def test_layout_of_the_file() -> None:
    """The header's padding is small and data starts at a multiple of 8, so frames are aligned."""
    tensors = [t for i in range(50) for t in model(["BF16"], 800 + 8 * i)]
    tensors = [Tensor(f"{i}.{t.name}", t.dtype, t.shape, t.data) for i, t in enumerate(tensors)]
    header = Container.parse(memoryview(roundtrip(build(tensors)))).header
    assert header.data_start % 8 == 0
    assert all(entry.start % 8 == 0 for entry in header.entries.values())
    assert len(header.text) - len(header.text.rstrip()) <= 8 + 14 * len(tensors)


def test_compressing_twice_is_refused() -> None:
    file = compressed(build(model(["BF16"])))
    with pytest.raises(InvalidArgument, match="already compressed"):
        compressed(file)


def test_a_plain_file_is_a_container_without_frames() -> None:
    original = build(model(["BF16", "I8"]), {"a": "b"})
    container = Container.parse(memoryview(original))
    assert not container.compressed
    assert not any(container.is_frame(name) for name in container.entries)
    assert b"".join(bytes(piece) for piece in container.pieces(OPTIONS)) == original


# --- malformed containers ---


PLAIN = Tensor("a", "U8", (4,), b"data")


def forged(
    tensors: list[Tensor], original: bytes, *, drop: str = "", raw: bool = False, **changes: str
) -> bytes:
    """A container of these tensors with this original header (or zstd frame, if raw), and wrong metadata."""
    coded = original if raw else zstandard.compress(original)
    metadata = {
        "neuzip.version": "1",
        "neuzip.header": base64.b64encode(coded).decode(),
        "neuzip.size": str(8 + len(original) + _data_size(original)),
        "neuzip.sha256": "0" * 64,
        "neuzip.checksums": base64.b64encode(
            kept.checksums32(memoryview(PLAIN.data), kept.cut(4, 4))
        ).decode(),
    }
    if PLAIN not in tensors:
        metadata["neuzip.checksums"] = ""
    metadata |= {f"neuzip.{key}": value for key, value in changes.items()}
    metadata.pop(drop, None)
    return build(tensors, metadata)


def _data_size(original: bytes) -> int:
    try:
        return max(entry["data_offsets"][1] for entry in json.loads(original).values())
    except (ValueError, KeyError):
        return 0


TEXT = header_text([PLAIN])
SIZE = str(8 + len(TEXT) + len(PLAIN.data))


def test_the_forger_can_write_good_containers() -> None:
    original = with_header(TEXT, b"data")
    assert restored(forged([PLAIN], TEXT, sha256=hashlib.sha256(original).hexdigest())) == original


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_frame_of_nothing_between_tensors_that_are_kept(size: int) -> None:
    """No writer of ours makes one; in the original the two are neighbours, in the container they are not."""
    data = np.random.default_rng(0).bytes(size)
    ends = [Tensor(name, "U8", (size,), data) for name in "az"]
    nothing = frame.encode(b"", DTYPES["F32"], (0,))
    text = header_text([ends[0], Tensor("m", "F32", (0,), b""), ends[1]])
    sums = base64.b64encode(2 * kept.checksums32(memoryview(data), kept.cut(size, size)).tobytes()).decode()
    digest = hashlib.sha256(with_header(text, 2 * data)).hexdigest()
    between = Tensor("m", "U8", (len(nothing),), nothing)
    file = forged([ends[0], between, ends[1]], text, sha256=digest, checksums=sums)
    assert restored(file) == with_header(text, 2 * data)
    assert {name: array.tobytes() for name, array in load(file).items()} == {"a": data, "m": b"", "z": data}


@pytest.mark.parametrize(
    ("file", "error"),
    [
        (forged([PLAIN], TEXT, version="3"), UnsupportedFormat),
        (forged([PLAIN], TEXT, version="2"), CorruptFrame),
        (forged([PLAIN], TEXT, version="one"), CorruptFrame),
        (forged([PLAIN], TEXT, version="9" * 30), CorruptFrame),
        (forged([PLAIN], TEXT, version="²"), CorruptFrame),
        (forged([PLAIN], TEXT, size="75"), CorruptFrame),
        (forged([PLAIN], TEXT, size="-1"), CorruptFrame),
        (forged([PLAIN], TEXT, sha256="F" * 64), CorruptFrame),
        (forged([PLAIN], TEXT, sha256="0" * 63), CorruptFrame),
        (forged([PLAIN], TEXT, checksums="A"), CorruptFrame),
        (forged([PLAIN], TEXT, checksums=""), CorruptFrame),
        (forged([PLAIN], TEXT, checksums="AAAA"), CorruptFrame),
        (forged([PLAIN], TEXT, checksums="A" * 12), CorruptFrame),
        (forged([PLAIN], TEXT, drop="neuzip.checksums"), CorruptFrame),
        (forged([PLAIN], TEXT, header="not base64!"), CorruptFrame),
        (forged([PLAIN], TEXT, header="ä"), CorruptFrame),
        (forged([PLAIN], TEXT, header=""), CorruptFrame),
        (forged([PLAIN], TEXT, header=base64.b64encode(b"not zstd").decode()), CorruptFrame),
        (forged([PLAIN], zstandard.compress(TEXT) + b"more", raw=True, size=SIZE), CorruptFrame),
        (forged([PLAIN], zstandard.compress(TEXT)[:-1], raw=True, size=SIZE), CorruptFrame),
        (forged([PLAIN], TEXT, drop="neuzip.version"), CorruptFrame),
        (forged([PLAIN], TEXT, drop="neuzip.header"), CorruptFrame),
        (forged([PLAIN], TEXT, drop="neuzip.size"), CorruptFrame),
        (forged([PLAIN], TEXT, drop="neuzip.sha256"), CorruptFrame),
        (forged([], TEXT), CorruptFrame),
        (forged([Tensor("b", "U8", (4,), b"data")], TEXT), CorruptFrame),
        (forged([PLAIN, Tensor("b", "U8", (1,), b"x")], TEXT), CorruptFrame),
        (forged([Tensor("a", "I8", (4,), b"data")], TEXT), CorruptFrame),
        (forged([Tensor("a", "U8", (2, 2), b"data")], TEXT), CorruptFrame),
        (forged([Tensor("a", "U8", (), b"d")], TEXT), CorruptFrame),
        (forged([PLAIN], TEXT.replace(b"[0, 4]", b"[1, 5]")), CorruptFrame),
        (forged([PLAIN], TEXT.replace(b"U8", b"X1")), UnsupportedFormat),
    ],
)
def test_malformed_containers(file: bytes, error: type[NeuzipError]) -> None:
    with pytest.raises(error) as caught:
        Container.parse(memoryview(file))
    assert type(caught.value) is error


BF16 = model(["BF16"])[0]
BF16_FRAME = frame.encode(BF16.data, DTYPES["BF16"], BF16.shape, OPTIONS)
BF16_TEXT = header_text([BF16])


def framed(data: bytes) -> Tensor:
    return Tensor(BF16.name, "U8", (len(data),), data)


@pytest.mark.parametrize(
    ("coded", "error"),
    [
        (b"", TruncatedInput),
        (BF16_FRAME[:100], TruncatedInput),
        (BF16_FRAME[:-8], TruncatedInput),
        (BF16_FRAME + bytes(8), CorruptFrame),
        (b"XXXX" + BF16_FRAME[4:], UnsupportedFormat),
        (BF16_FRAME[:4] + b"\2" + BF16_FRAME[5:], UnsupportedFormat),
        (frame.encode(BF16.data, DTYPES["F16"], BF16.shape, OPTIONS), CorruptFrame),
        (frame.encode(BF16.data, DTYPES["BF16"], BF16.shape[::-1], OPTIONS), CorruptFrame),
        (frame.encode(BF16.data[:-2], DTYPES["BF16"], (4095,), OPTIONS), CorruptFrame),
    ],
)
def test_frames_that_are_not_the_tensor(coded: bytes, error: type[NeuzipError]) -> None:
    container = Container.parse(memoryview(forged([framed(coded)], BF16_TEXT)))
    with pytest.raises(error) as caught:
        list(container.pieces(OPTIONS))
    assert type(caught.value) is error
    assert caught.value.tensor == BF16.name


def test_a_damaged_chunk_names_its_tensor() -> None:
    damaged = bytearray(BF16_FRAME)
    damaged[-100] ^= 1
    container = Container.parse(memoryview(forged([framed(bytes(damaged))], BF16_TEXT)))
    with pytest.raises(CorruptFrame) as caught:
        list(container.pieces(OPTIONS))
    assert (caught.value.tensor, caught.value.chunk) == (BF16.name, 0)


def test_header_bombs() -> None:
    bomb = zstandard.compress(b" " * (HEADER_LIMIT + 1))
    with pytest.raises(CorruptFrame, match="expand"):
        Container.parse(memoryview(forged([PLAIN], bomb, raw=True)))
    # One that does not state its size.
    stream = zstandard.ZstdCompressor(write_content_size=False).compress(b" " * (HEADER_LIMIT + 1))
    with pytest.raises(CorruptFrame):
        Container.parse(memoryview(forged([PLAIN], stream, raw=True)))


def test_a_header_without_stated_size() -> None:
    """§7 asks for a zstd frame, not for one that states its size."""
    original = with_header(TEXT, b"data")
    coded = zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)
    sha256 = hashlib.sha256(original).hexdigest()
    assert restored(forged([PLAIN], coded, raw=True, sha256=sha256, size=str(len(original)))) == original


def test_a_frame_bomb_is_refused_before_it_is_decoded() -> None:
    """A frame that claims a terabyte, its header's checksum put right (§6)."""
    size = 1 << 40
    coded = bytearray(BF16_FRAME[:40]) + struct.pack("<QQ", size // 2, 1) + bytes(64)
    coded[16:32] = struct.pack("<QQ", size, len(coded))
    text = json.dumps({BF16.name: {"dtype": "BF16", "shape": [size // 2, 1], "data_offsets": [0, size]}})
    container = Container.parse(memoryview(forged([framed(bytes(coded))], text.encode())))
    pieces = container.pieces(OPTIONS)
    next(pieces)
    with pytest.raises(CorruptFrame, match="claims"):
        next(pieces)
