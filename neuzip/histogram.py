"""How often the exponents and leading bytes of a tensor's elements occur, and what entropy allows them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from neuzip.layouts import DType

Array = np.ndarray[Any, Any]


def entropy(counts: Array) -> float:
    """Order-0 entropy of a histogram, in bits a symbol."""
    seen = counts[counts > 0].astype(np.float64)
    if seen.size < 2:
        return 0.0
    total = seen.sum()
    return float(np.log2(total) - (seen * np.log2(seen)).sum() / total)


class Histogram:
    """Counts of a tensor's heads: the top 16 bits of each unit, or the byte of a one-byte unit."""

    def __init__(self, dtype: DType) -> None:
        self.dtype = dtype
        self.width = dtype.layout.width
        self.counts = np.zeros(256 if self.width == 1 else 1 << 16, np.int64)

    def add(self, data: Array) -> None:
        """data: uint8, whole units."""
        heads = data if self.width == 1 else data.view("<u2")[self.width // 2 - 1 :: self.width // 2]
        self.counts += np.bincount(heads, minlength=len(self.counts))

    def bound_size(self) -> float:
        """Bytes: plane 0 at its entropy, the others raw."""
        heads, counts = self._seen()
        if self.width > 1:  # rotl16 leaves bits 14 … 7 of the head in plane 0 (§3)
            heads = (heads >> 7 & 255) if self.dtype.layout.rotate else heads >> 8
        return float(counts.sum()) * (self.width - 1 + entropy(np.bincount(heads, counts)) / 8)

    def exponents(self) -> Array | None:
        """How often each exponent occurs, as it is stored, biased; None for what has no exponent."""
        bits = exponent_bits(self.dtype)
        if bits is None:
            return None
        exponent, mantissa = bits
        heads, counts = self._seen()
        shift = mantissa if self.width == 1 else 15 - exponent
        if self.dtype.bits == 4:  # two elements a byte
            heads, counts = np.concatenate([heads & 15, heads >> 4]), np.concatenate([counts, counts])
        return np.bincount(heads >> shift & (1 << exponent) - 1, counts).astype(np.int64)

    def _seen(self) -> tuple[Array, Array]:
        """The heads that occur, and how often."""
        heads = np.flatnonzero(self.counts)
        return heads, self.counts[heads]


def exponent_bits(dtype: DType) -> tuple[int, int] | None:
    """(exponent bits, mantissa bits) of a float or of a complex number's parts."""
    if dtype.numpy is None or not dtype.layout.planes:
        return None
    scalar = np.dtype(getattr(ml_dtypes, dtype.numpy, None) or dtype.numpy)
    if scalar.kind in "iub":
        return None
    info = ml_dtypes.finfo(scalar)  # type: ignore[no-untyped-call]
    return int(info.nexp), int(info.nmant)


def exponent_bias(dtype: DType) -> int:
    """The stored exponent of 1.0, for a dtype that has exponents."""
    assert dtype.numpy is not None
    scalar = np.dtype(getattr(ml_dtypes, dtype.numpy, None) or dtype.numpy)
    info = ml_dtypes.finfo(scalar)  # type: ignore[no-untyped-call]
    # Stored exponent 1 is that of the smallest normal number; a type of nothing but exponents begins with 0.
    return int(info.nmant > 0) - int(np.log2(float(info.smallest_normal)))
