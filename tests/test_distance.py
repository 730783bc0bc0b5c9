"""Distances in ULP: against the order of the values themselves, for every type."""

from __future__ import annotations

import itertools
import math

import ml_dtypes
import numpy as np
import pytest

from neuzip.distance import Distance, DistanceTally
from neuzip.layouts import DTYPES

BYTE_FLOATS = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0")
WIDE_FLOATS = {"F16": (5, 10), "BF16": (8, 7), "F32": (8, 23), "F64": (11, 52)}
INTEGERS = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")


def measure(dtype: str, left: np.ndarray, right: np.ndarray) -> Distance:
    tally = DistanceTally(DTYPES[dtype])
    tally.add(*(np.ascontiguousarray(side).reshape(-1).view(np.uint8) for side in (left, right)))
    return tally.total()


def bucket(steps: int) -> int:
    return steps.bit_length()


@pytest.mark.parametrize("dtype", BYTE_FLOATS)
def test_every_pair_of_byte_floats(dtype: str) -> None:
    """The oracle ranks the values that ml_dtypes gives the 256 codes."""
    scalar = getattr(ml_dtypes, DTYPES[dtype].numpy)
    codes = np.arange(256, dtype=np.uint8)
    values = codes.view(scalar).astype(np.float64)
    ranks = {value: rank for rank, value in enumerate(sorted({v for v in values if not math.isnan(v)}))}
    signs = np.signbit(values)
    left, right = (np.array(side, np.uint8) for side in zip(*itertools.product(codes, codes), strict=True))
    expected = np.zeros(65, np.int64)
    flips = nans = 0
    for a, b in itertools.product(codes.tolist(), codes.tolist()):
        if math.isnan(values[a]) or math.isnan(values[b]):
            nans += a != b
        elif a != b:
            expected[bucket(abs(ranks[values[a]] - ranks[values[b]]))] += 1
            flips += signs[a] != signs[b]
    found = measure(dtype, left, right)
    assert found.elements == 1 << 16
    assert found.differing == (1 << 16) - 256
    assert found.nan_left + found.nan_right + found.nan_both == nans
    assert found.buckets == tuple(expected[: len(found.buckets)].tolist())
    assert expected[len(found.buckets) :].sum() == 0
    assert found.signs == flips
    assert found.bits == sum((a ^ b).bit_count() for a in range(256) for b in range(256))
    assert found.largest == len(ranks) - 1


@pytest.mark.parametrize("dtype", WIDE_FLOATS)
def test_edges_of_wide_floats(dtype: str) -> None:
    exponent, mantissa = WIDE_FLOATS[dtype]
    bits = 1 + exponent + mantissa
    sign, infinity = 1 << (bits - 1), ((1 << exponent) - 1) << mantissa
    cases = [  # left, right, distance (None: NaN)
        (0, sign, 0),
        (1, sign | 1, 2),
        (0x3, 0x4, 1),
        (infinity - 1, infinity, 1),
        (infinity, sign | infinity, 2 * infinity),
        (infinity, infinity + 1, None),
        (sign | infinity | 1, 5, None),
        (infinity + 1, sign | infinity | 1, None),
    ]
    left, right = (
        np.array(side, f"<u{bits // 8}") for side in zip(*[case[:2] for case in cases], strict=True)
    )
    found = measure(dtype, left, right)
    steps = [case[2] for case in cases if case[2] is not None]
    assert found.largest == max(steps)
    assert {k: n for k, n in enumerate(found.buckets) if n} == {0: 1, 1: 2, 2: 1, bucket(2 * infinity): 1}
    assert (found.nan_left, found.nan_right, found.nan_both) == (1, 1, 1)
    assert found.signs == 3
    assert found.differing == len(cases)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_neighbours_of_half_floats_are_one_apart(dtype: str) -> None:
    scalar = ml_dtypes.bfloat16 if dtype == "BF16" else np.float16
    codes = np.arange(1 << 16, dtype="<u2")
    values = codes.view(scalar).astype(np.float32)
    order = np.argsort(values[~np.isnan(values)], kind="stable")
    finite = codes[~np.isnan(values)][order]
    found = measure(dtype, finite[:-1], finite[1:])
    assert found.buckets == (1, len(finite) - 2)  # −0 and +0, and everything else
    assert found.signs == 3  # −tiny, +0, −0, +tiny


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_differ_by_their_difference(dtype: str) -> None:
    scalar = np.dtype(DTYPES[dtype].numpy)
    if scalar.kind == "b":
        low, high = 0, 1
    else:
        low, high = np.iinfo(scalar).min, np.iinfo(scalar).max
    found = measure(dtype, np.array([low, high, low], scalar), np.array([high, low, low], scalar))
    assert found.largest == int(high) - int(low)
    assert found.differing == 2
    assert found.signs == 0
    assert sum(found.buckets) == found.buckets[-1] == 2


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2"])
def test_packed_floats_are_taken_apart(dtype: str) -> None:
    bits = DTYPES[dtype].bits
    codes = list(itertools.product(range(1 << bits), repeat=2))

    def pack(side: int) -> np.ndarray:
        whole = sum(code[side] << (bits * number) for number, code in enumerate(codes))
        return np.frombuffer(whole.to_bytes(len(codes) * bits // 8, "little"), np.uint8)

    sign = 1 << (bits - 1)

    def rank(code: int) -> int:
        return -(code - sign) if code & sign else code

    found = measure(dtype, pack(0), pack(1))
    expected: dict[int, int] = {}
    for a, b in codes:
        if a != b:
            place = bucket(abs(rank(a) - rank(b)))
            expected[place] = expected.get(place, 0) + 1
    assert found.elements == len(codes)
    assert {k: n for k, n in enumerate(found.buckets) if n} == expected
    assert found.signs == sum((a ^ b) & sign != 0 for a, b in codes)
    assert found.nan_left == found.nan_right == found.nan_both == 0


@pytest.mark.parametrize(("dtype", "scalar"), [("C64", np.complex64), ("C128", np.complex128)])
def test_parts_of_complex_numbers(dtype: str, scalar: type) -> None:
    left = np.array([1 + 1j, 2 + 2j, complex(np.nan, 0)], scalar)
    right = left.copy()
    right[1] = complex(2, np.nextafter(left[1].imag, 3))
    right[2] = complex(np.nan, -0.0)
    found = measure(dtype, left, right)
    assert (found.elements, found.differing, found.bits) == (6, 2, 2)
    assert (found.buckets, found.signs, found.nan_both) == ((1, 1), 1, 0)


def test_slices_add_up() -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.integers(0, 256, 60_000).astype(np.uint8) for _ in range(2))
    for dtype in DTYPES.values():
        whole, cut = DistanceTally(dtype), DistanceTally(dtype)
        whole.add(left, right)
        for start in range(0, left.size, 4_800):
            cut.add(left[start : start + 4_800], right[start : start + 4_800])
        assert whole.total() == cut.total(), dtype.name


def test_nothing_differs() -> None:
    data = np.arange(240, dtype=np.uint8)
    for dtype in DTYPES.values():
        tally = DistanceTally(dtype)
        tally.add(data, data)
        found = tally.total()
        assert found.elements > 0
        assert (found.differing, found.bits, found.buckets, found.largest) == (0, 0, (), 0)
