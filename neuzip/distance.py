"""How far two tensors of one type and shape are apart: differing elements and bits, signs, NaNs, distances in ULP.

The distance of two numbers is the number of steps between them in the order of their type's values: 1 between
neighbouring floats (a unit in the last place) and between neighbouring integers, 0 between −0 and +0. It is exact,
in integers, for every pair of numbers. A NaN has no distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from neuzip._native import Bytes
from neuzip.layouts import DType

Array = np.ndarray[Any, Any]

BUCKETS = 65  # of distances: 0, 1, 2 … 3, 4 … 7, up to 64 bits

_SET_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)
# The distances 2^k at which bucket k + 1 begins.
_BUCKET_STARTS = np.left_shift(np.uint64(1), np.arange(64, dtype=np.uint64))
_COMPLEX = ("C64", "C128")


@dataclass(frozen=True)
class Distance:
    """What differs between two tensors. Everything but bits counts elements, of a complex type the parts.

    bits: that differ. signs: numbers whose sign bits differ, −0 and +0 among them; 0 for integers.
    nan_left, nan_right: NaN on that side only; nan_both: NaNs of other bits. buckets: of the numbers, by distance:
    entry 0 counts distance 0, entry k distances 2^(k−1) to 2^k − 1. largest: the largest distance.
    """

    elements: int
    differing: int
    bits: int
    signs: int
    nan_left: int
    nan_right: int
    nan_both: int
    buckets: tuple[int, ...]
    largest: int


class DistanceTally:
    """Adds up the Distance of two tensors, some of their bytes at a time."""

    def __init__(self, dtype: DType) -> None:
        self._scale = Scale.of(dtype)
        self._elements = self._differing = self._bits = self._signs = self._largest = 0
        self._nans = [0, 0, 0]
        self._buckets = np.zeros(BUCKETS, np.int64)

    def add(self, left: Bytes, right: Bytes) -> None:
        """left, right: u8, equally long, whole elements."""
        scale = self._scale
        self._elements += left.size * 8 // scale.bits
        if np.array_equal(left, right):
            return
        self._bits += int(_SET_BITS[left ^ right].sum(dtype=np.int64))
        a, b = scale.codes(left), scale.codes(right)
        differs = a != b
        a, b = a[differs], b[differs]
        self._differing += a.size
        nan_a, nan_b = scale.is_nan(a), scale.is_nan(b)
        for number, found in enumerate((nan_a & ~nan_b, nan_b & ~nan_a, nan_a & nan_b)):
            self._nans[number] += int(np.count_nonzero(found))
        numbers = ~(nan_a | nan_b)
        a, b = a[numbers], b[numbers]
        if a.size == 0:
            return
        if scale.order == "float":
            self._signs += int(np.count_nonzero((a ^ b) & scale.top))
        steps = scale.distances(a, b)
        self._largest = max(self._largest, int(steps.max()))
        places = np.searchsorted(_BUCKET_STARTS, steps.astype(np.uint64), side="right")
        self._buckets += np.bincount(places, minlength=BUCKETS)

    def total(self) -> Distance:
        """The sum so far."""
        last = int(np.flatnonzero(self._buckets).max(initial=-1)) + 1
        nan_left, nan_right, nan_both = self._nans
        return Distance(
            elements=self._elements,
            differing=self._differing,
            bits=self._bits,
            signs=self._signs,
            nan_left=nan_left,
            nan_right=nan_right,
            nan_both=nan_both,
            buckets=tuple(self._buckets[:last].tolist()),
            largest=self._largest,
        )


@dataclass(frozen=True)
class Scale:
    """The order of a type's values. bits: of an element, of a complex type of a part.

    order: "float" (sign and magnitude), "signed" (two's complement) or "unsigned". nan_above: the magnitude above
    which everything is NaN, None for a type without such. nans: codes of NaN in a type of one byte.
    """

    bits: int
    order: str
    nan_above: int | None
    nans: Array | None

    @classmethod
    def of(cls, dtype: DType) -> Scale:
        bits = dtype.bits // 2 if dtype.name in _COMPLEX else dtype.bits
        order = "float"
        if dtype.name in ("BOOL", "F8_E8M0") or dtype.name.startswith("U"):
            order = "unsigned"
        elif dtype.name.startswith("I"):
            order = "signed"
        if dtype.numpy is None or not dtype.name.startswith(("F", "BF", "C")) or bits < 8:
            return cls(bits, order, None, None)
        scalar = np.dtype(getattr(ml_dtypes, dtype.numpy, None) or dtype.numpy)
        if bits == 8:
            return cls(bits, order, None, np.isnan(np.arange(256, dtype=np.uint8).view(scalar)))
        infinity = np.array(np.inf).astype(scalar)
        part = infinity.real if dtype.name in _COMPLEX else infinity
        return cls(bits, order, int(part.view(f"<u{bits // 8}")), None)

    @property
    def top(self) -> Any:
        """The highest bit, as a code."""
        return self._code(1 << (self.bits - 1))

    def codes(self, data: Bytes) -> Array:
        """The elements as unsigned integers. Elements of less than a byte are packed from the low bits on."""
        if self.bits >= 8:
            codes: Array = data.view(f"<u{self.bits // 8}")
            return codes
        single = np.unpackbits(data, bitorder="little").reshape(-1, self.bits)
        return np.packbits(single, axis=1, bitorder="little").reshape(-1)

    def is_nan(self, codes: Array) -> Array:
        if self.nans is not None:
            found: Array = self.nans[codes]
            return found
        if self.nan_above is None:
            return np.zeros(codes.shape, bool)
        above: Array = (codes & (self.top - self._code(1))) > self._code(self.nan_above)
        return above

    def distances(self, left: Array, right: Array) -> Array:
        """The distances of numbers, unsigned."""
        a, b = self._ranks(left), self._ranks(right)
        steps: Array = np.maximum(a, b) - np.minimum(a, b)
        return steps

    def _ranks(self, codes: Array) -> Array:
        """Unsigned integers in the order of the values; −0 and +0 have the same."""
        if self.order == "unsigned":
            return codes
        if self.order == "signed":
            biased: Array = codes ^ self.top
            return biased
        magnitudes = codes & (self.top - self._code(1))
        ranks: Array = np.where(codes & self.top, self.top - magnitudes, self.top + magnitudes)
        return ranks

    def _code(self, value: int) -> Any:
        return np.dtype(f"<u{max(self.bits, 8) // 8}").type(value)
