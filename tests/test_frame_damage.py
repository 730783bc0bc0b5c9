"""Damaged frames: flipped bits, cut bytes, moved pieces, false lengths. Each time a NeuzipError or the
original bytes; with the header's checksum made right again, so that all that stands behind it is reached.
"""

from __future__ import annotations

import random
from typing import Any

import frame_header
import pytest
from distributions import make, shape_of

from neuzip import frame
from neuzip.codec import Coding, Options
from neuzip.errors import CorruptFrame, NeuzipError, TruncatedInput, UnsupportedFormat
from neuzip.layouts import DTYPES

ONE_THREAD = Options(threads=1, chunk_log2=10)


def packed(dtype: str, data: bytes, options: Options = ONE_THREAD) -> bytes:
    return frame.encode(data, DTYPES[dtype], shape_of(DTYPES[dtype], len(data)), options)


def unpacked(data: Any, options: Options = ONE_THREAD) -> bytes:
    header = frame.read_header(data, whole=True)
    # Damage may claim any size, but none that the frame does not justify (spec §6).
    assert header.size <= len(data) << 17
    if header.size > 1 << 24:
        return b""
    out = bytearray(header.size)
    frame.decode(data, out, options)
    return bytes(out)


# One of each coding and kind of table, small enough to try every bit.
SMALL = {
    "stored": ("BF16", "weights", 50, "default"),
    "zstd": ("I32", "steps", 200, "default"),
    "zstd raw": ("I32", "noise", 100, "default"),
    "rank": ("BF16", "weights", 400, "default"),
    "byte": ("F16", "steps", 400, "default"),
    "fp8": ("F8_E4M3", "weights", 900, "default"),
    "joint": ("BF16", "bounded", 500, "max"),
    "local": ("F32", "steps", 600, "default"),
    "constant": ("F64", "constant", 3000, "default"),
    "empty": ("F32", "weights", 0, "default"),
}


def small(case: str) -> tuple[bytes, bytes]:
    """A small frame and its original bytes."""
    dtype, name, units, level = SMALL[case]
    data = make(name, dtype, units, 5)
    return packed(dtype, data, Options(level, threads=1, chunk_log2=10)), data


def same_or_refused(made: bytes, original: bytes) -> bool:
    """Whether a damaged frame is refused; otherwise it must have the original bytes."""
    try:
        decoded = unpacked(made)
    except NeuzipError as error:
        assert str(error)
        return True
    assert decoded == original
    return False


def test_small_frames_have_every_coding_and_table() -> None:
    headers = [frame.read_header(small(case)[0]) for case in SMALL]
    assert {header.coding for header in headers} == set(Coding)
    assert {header.table[0] for header in headers if header.table} == {1, 2, 3}
    assert max(header.frame_size for header in headers) < 2000


@pytest.mark.parametrize("case", SMALL)
def test_every_flipped_bit(case: str) -> None:
    made, original = small(case)
    assert unpacked(made) == original
    unnoticed = 0
    for bit in range(8 * len(made)):
        flipped = bytearray(made)
        flipped[bit // 8] ^= 1 << bit % 8
        unnoticed += not same_or_refused(flipped, original)
    # Only zstd has bits of no meaning: its frames may say the same in several ways.
    assert unnoticed == 0 or case == "zstd"


@pytest.mark.parametrize("case", SMALL)
def test_every_flipped_bit_of_a_header_that_fits(case: str) -> None:
    """With its checksum made right again, so that everything behind the checksum is reached."""
    made, original = small(case)
    header = frame.read_header(made)
    for bit in range(8 * header.header_size):
        flipped = bytearray(made)
        flipped[bit // 8] ^= 1 << bit % 8
        stamped = frame_header.stamp(flipped, header.header_size)
        try:
            decoded = unpacked(stamped)
        except NeuzipError:
            continue
        changed = frame.read_header(stamped)
        # Another dtype of the same width, another shape of the same size, another level: the header's word.
        assert decoded == original or changed.dtype is not header.dtype
        assert changed.size == header.size


@pytest.mark.parametrize("case", SMALL)
def test_every_truncation(case: str) -> None:
    made, _ = small(case)
    for length in range(len(made)):
        with pytest.raises((TruncatedInput, UnsupportedFormat) if length < 4 else TruncatedInput):
            unpacked(made[:length])


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("verify", [True, False])
def test_random_splices(case: str, verify: bool) -> None:
    made, original = small(case)
    header_size = frame.read_header(made).header_size
    rng = random.Random(case)
    options = Options(threads=1, chunk_log2=10, verify=verify)
    for _ in range(500):
        copy = bytearray(made)
        for _ in range(rng.randint(1, 3)):
            at, source, length = (
                rng.randrange(len(copy)),
                rng.randrange(len(copy)),
                rng.choice([1, 2, 4, 8, 40]),
            )
            piece = rng.choice([copy[source : source + length], rng.randbytes(length), bytes(length)])
            at = min(at, rng.choice([48, len(copy)]))
            copy[at : at + len(piece)] = piece
        del copy[len(made) :]
        stamped = frame_header.stamp(copy, header_size)
        try:
            decoded = unpacked(stamped, options)
        except NeuzipError:
            continue
        except MemoryError:
            pytest.fail("a damaged frame asked for memory that it does not justify")
        before, after = frame.read_header(made), frame.read_header(stamped)
        alike = before.dtype is after.dtype and before.checksums == after.checksums
        assert decoded == original or not (alike and verify)


@pytest.mark.parametrize("case", SMALL)
def test_lengths_that_lie(case: str) -> None:
    """Chunk boundaries moved, frames lengthened: the header agrees with itself each time."""
    made, original = small(case)
    header = frame.read_header(made)
    index = header.index.tolist()
    body = made[header.header_size : int(header.offsets[-1])]
    for chunk in range(header.chunk_count):
        for change in (-64, -8, -4, -1, 1, 4, 8, 64):
            for neighbour in {None, (chunk + 1) % header.chunk_count}:
                lengths = list(index)
                lengths[2 * chunk] += change
                if neighbour is not None:
                    lengths[2 * neighbour] -= change
                if neighbour == chunk or min(lengths[0::2]) < 0:
                    continue
                head = frame_header.build(
                    dtype=header.dtype.code,
                    coding=header.coding,
                    chunk_log2=header.chunk_log2,
                    shape=header.shape,
                    size=header.size,
                    index=lengths,
                    table=header.table,
                    level=header.level,
                )
                content = (body + bytes(64))[: sum(lengths[0::2])]
                whole = head + content + bytes(-len(head + content) % 8)
                assert same_or_refused(whole, original)


@pytest.mark.parametrize("case", SMALL)
def test_a_frame_is_no_longer_than_its_parts(case: str) -> None:
    made, _ = small(case)
    header_size = frame.read_header(made).header_size
    for more in 8, 16, 80:
        longer = bytearray(made + bytes(more))
        longer[24:32] = len(longer).to_bytes(8, "little")
        with pytest.raises(CorruptFrame):
            unpacked(frame_header.stamp(longer, header_size))


def test_without_checksums_damage_is_found_where_it_shows() -> None:
    """Options(verify=False): the structure is still checked, and nothing else."""
    made, original = small("rank")
    header = frame.read_header(made)
    quick = Options(threads=1, verify=False)
    changed = bytearray(made)
    changed[int(header.offsets[0]) + 16 + 5] ^= 1  # a byte of the raw plane
    with pytest.raises(CorruptFrame):
        unpacked(changed)
    assert sum(a != b for a, b in zip(unpacked(changed, quick), original, strict=True)) == 1
    changed = bytearray(made)
    changed[int(header.offsets[0])] = 7  # no mode
    with pytest.raises(CorruptFrame):
        unpacked(changed, quick)
