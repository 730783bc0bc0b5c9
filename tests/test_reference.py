"""The reference decoder against the golden vectors, and against the slow encoder that minted them."""

import contextlib
import itertools
import json
import math
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FORMATS = Path(__file__).resolve().parent.parent / "formats"
sys.path.insert(
    0, str(FORMATS)
)  # formats/ is not a package: its scripts import one another by their own names

import encoder  # noqa: E402
import good_vectors  # noqa: E402
import mint  # noqa: E402
import reference  # noqa: E402
import reference_archive  # noqa: E402

GOOD = sorted(path for path in (FORMATS / "vectors/good").iterdir() if path.suffix != ".raw")
ERRORS = json.loads((FORMATS / "vectors/bad/errors.json").read_text(encoding="utf-8"))
KINDS = {"corrupt": reference.Corrupt, "truncated": reference.Truncated, "unsupported": reference.Unsupported}


def decode(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".nzf":
        return reference.decode_frame(data).data
    return (
        reference_archive.decode_archive(data) if path.suffix == ".nz" else reference.decode_container(data)
    )


def raw(path: Path) -> bytes:
    return path.with_name(f"{path.name.partition('.')[0]}.raw").read_bytes()


def test_vectors_are_as_minted():
    assert mint.compare(mint.mint()) == []


def test_vectors_are_many():
    assert len(GOOD) >= 100
    assert len(ERRORS) >= 40
    assert {row["error"] for row in ERRORS.values()} == set(KINDS)


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.name)
def test_good_vector(path):
    assert decode(path) == raw(path)


@pytest.mark.parametrize("name", ERRORS)
def test_bad_vector(name):
    with pytest.raises(reference.Refused) as caught:
        decode(FORMATS / "vectors/bad" / name)
    assert type(caught.value) is KINDS[ERRORS[name]["error"]], str(caught.value)


def test_good_vectors_use_every_dtype_coding_and_mode():
    """Counts what the good frames have, so that a feature cannot lose its vector unseen."""
    dtypes, codings, modes = set(), set(), set()
    for path in GOOD:
        if path.suffix != ".nzf":
            continue
        data = path.read_bytes()
        header = reference.read_header(data)
        dtypes.add(header.dtype.name)
        codings.add(header.coding)
        at = header.header_size
        for length, _ in header.index:
            width = header.dtype.layout.width if header.coding == 1 else 0
            modes |= {(min(plane, 2), data[at + 8 * plane]) for plane in range(width)}
            at += length
    assert dtypes == set(encoder.types())
    assert codings == {0, 1, 2}
    plane_0, plane_1, others = {0, 1, 2, 3, 4, 5}, {0, 1, 4, 6}, {0, 1, 4}
    assert modes == {
        *((0, mode) for mode in plane_0),
        *((1, mode) for mode in plane_1),
        *((2, mode) for mode in others),
    }


# --- round trips of whatever the encoder can be asked for ---

RANK_TABLES = (
    good_vectors.RANKS,
    good_vectors.ODD_RANKS,
    good_vectors.MANY_MAIN,
    good_vectors.ONE_MAIN,
    good_vectors.TWO_RANKS,
)
LOCAL = [f"local:{bits}:{least}" for bits, least in itertools.product((12, 13, 14), (1, 2, 9))]


@st.composite
def byte_tables(draw, kind=2, base=0):
    bits = draw(st.sampled_from((12, 13, 14)))
    return encoder.fit(draw(st.lists(st.integers(0, 255), min_size=1, max_size=300)), bits, kind, base)


@st.composite
def frames(draw):
    """A frame of coding planes with any dtype, tables and modes, and its original bytes."""
    name = draw(st.sampled_from(("BF16", "F16", "F32", "F64", "C64", "C128", "F8_E4M3", "U8", "F4")))
    dtype = encoder.types()[name]
    elements = draw(st.integers(0, 3000 // dtype.width)) * (2 if name == "F4" else 1)
    size = elements * dtype.bits // 8
    units = size // dtype.width
    kinds = ["none", "rank", "byte"] + ["joint"] * (name in ("BF16", "F32", "C64"))
    kind = draw(st.sampled_from(kinds))
    table = {
        "none": st.none(),
        "rank": st.sampled_from(RANK_TABLES),
        "byte": byte_tables(),
        "joint": st.integers(0, 192).flatmap(lambda base: byte_tables(3, base)),
    }[kind]
    one = draw(table)
    tables = [(0, one)] if one else []
    if one and draw(st.booleans()):
        tables.append((draw(st.integers(1, 3)), draw(table)))
    modes, constant = [], set()
    for _ in range(math.ceil(units / 1024)):
        head = draw(st.sampled_from(["raw", *LOCAL] + [kind] * 8 * (kind != "none")))
        rest = [draw(st.sampled_from(["raw", *LOCAL])) for _ in range(dtype.width - 1)]
        modes.append(" ".join([head, *(["six"] if head == "joint" else rest[:1]), *rest[1:]]))
    # Few symbols in some planes, one in others; planes of one symbol are constant in every chunk.
    rng = random.Random(draw(st.integers(0, 1 << 32)))
    planes = []
    for plane in range(dtype.width):
        alphabet = rng.sample(range(256), draw(st.sampled_from((1, 2, 16, 256))))
        planes.append(bytes(rng.choices(alphabet, k=units)))
        if len(alphabet) == 1 and plane > 1:
            constant.add(plane)
    modes = [
        " ".join("constant" if plane in constant else mode for plane, mode in enumerate(line.split()))
        for line in modes
    ]
    data = encoder.join(planes, dtype)
    return name, encoder.planes_frame(name, [elements], data, modes, tables), data


@settings(max_examples=60, deadline=None)
@given(frames())
def test_round_trip(case):
    name, frame, data = case
    tensor = reference.decode_frame(frame.encode())
    assert (tensor.dtype, tensor.shape, tensor.data) == (name, frame.shape, data)


byte_strings = st.lists(st.one_of(st.binary(max_size=900), st.integers(0, 3000).map(bytes)), max_size=3).map(
    b"".join
)


@settings(max_examples=40, deadline=None)
@given(byte_strings, st.integers(10, 13))
def test_round_trip_of_bytes(data, chunk_log2):
    def pack(part):
        packed = encoder.zstd_frame(part)
        return packed if len(packed) < len(part) else part

    for coding in None, pack:
        frame = encoder.bytes_frame("U8", [len(data)], data, coding, chunk_log2)
        assert reference.decode_frame(frame.encode()).data == data


# --- damage ---

SMALL = [path for path in GOOD if path.suffix == ".nzf" and path.stat().st_size < 700]


@pytest.mark.parametrize("path", SMALL[::4], ids=lambda path: path.name)
def test_every_truncation_is_refused_as_truncated(path):
    data = path.read_bytes()
    for end in range(len(data)):
        with pytest.raises(reference.Truncated):
            reference.decode_frame(data[:end])


@pytest.mark.parametrize("path", SMALL[::10], ids=lambda path: path.name)
def test_no_flipped_bit_changes_the_tensor(path):
    data, original = path.read_bytes(), raw(path)
    for position in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        # A flip survives where a tensor can be said in two ways: in zstd, or the stand-in of a patched unit.
        with contextlib.suppress(reference.Refused):
            assert reference.decode_frame(bytes(flipped)).data == original, f"bit {position}"


@pytest.mark.parametrize("name", ["container_plain.nz.safetensors", "archive_three_frames.nz"])
def test_file_truncations(name):
    data = (FORMATS / "vectors/good" / name).read_bytes()
    archived = name.endswith(".nz")
    for end in range(len(data)):
        with pytest.raises(reference.Truncated):
            (reference_archive.decode_archive if archived else reference.decode_container)(data[:end])
