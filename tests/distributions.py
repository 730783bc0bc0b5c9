"""Bytes of tensors as the codec may meet them: named distributions, for any dtype and number of units."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from neuzip.layouts import DTYPES, DType

# numpy's float of a layout that is cut into planes; bf16 is the upper half of fp32.
_FLOATS = {"fp16": "<f2", "bf16": "<f4", "fp32": "<f4", "fp64": "<f8"}
_NANS = {"fp16": 0x7C01, "bf16": 0x7F81, "fp32": 0x7F800001, "fp64": 0x7FF0000000000001}

Generator = np.random.Generator
Values = np.ndarray


def unit_width(dtype: DType) -> int:
    """Bytes of a unit (spec §2): of a complex number's half, of a packed type's byte."""
    return dtype.layout.width if dtype.layout.planes else max(dtype.bits // 8, 1)


def shape_of(dtype: DType, size: int) -> tuple[int, ...]:
    """A shape of one dimension with ``size`` bytes."""
    assert 8 * size % dtype.bits == 0
    return (8 * size // dtype.bits,)


def _as_units(values: Values, dtype: DType) -> bytes:
    layout = dtype.layout.name
    if layout not in _FLOATS:
        width = unit_width(dtype)
        return np.round(values).astype(np.int64).astype(f"<i{width}").tobytes()
    with np.errstate(over="ignore"):
        floats = values.astype(_FLOATS[layout])
    return (floats.view("<u4") >> 16).astype("<u2").tobytes() if layout == "bf16" else floats.tobytes()


def _scale(dtype: DType) -> float:
    return 0.02 if dtype.layout.name in _FLOATS else 6.0


def _weights(rng: Generator, dtype: DType, units: int) -> bytes:
    return _as_units(rng.normal(0, _scale(dtype), units), dtype)


def _rows(rng: Generator, dtype: DType, units: int) -> bytes:
    """Weights whose scale changes along the tensor: several tables pay."""
    scale = _scale(dtype) * np.exp2(-6.0 * (np.arange(units) // 4096 % 3))
    return _as_units(rng.normal(0, 1, units) * scale, dtype)


def _bounded(rng: Generator, dtype: DType, units: int) -> bytes:
    """Mantissas that begin with 00, but for a few: they are worth coding with the exponent."""
    mantissas = np.where(rng.random(units) < 0.997, rng.uniform(1, 1.25, units), rng.uniform(1, 2, units))
    signs = rng.integers(0, 2, units) * 2 - 1
    return _as_units(4 * signs * mantissas * np.exp2(-rng.geometric(0.5, units)), dtype)


def _outliers(rng: Generator, dtype: DType, units: int) -> bytes:
    """Weights with a few units of any bits among them: patches."""
    data = np.frombuffer(_weights(rng, dtype, units), np.uint8).reshape(units, unit_width(dtype)).copy()
    at = rng.random(units) < 0.003
    data[at] = rng.integers(0, 256, (int(at.sum()), data.shape[1]), np.uint8)
    return data.tobytes()


def _constant(rng: Generator, dtype: DType, units: int) -> bytes:
    return rng.bytes(unit_width(dtype)) * units


def _zeros(rng: Generator, dtype: DType, units: int) -> bytes:
    return bytes(unit_width(dtype) * units)


def _sparse(rng: Generator, dtype: DType, units: int) -> bytes:
    values = rng.normal(0, _scale(dtype), units)
    return _as_units(np.where(rng.random(units) < 0.9, 0, values), dtype)


def _nans(rng: Generator, dtype: DType, units: int) -> bytes:
    """NaNs of either sign with any payload; noise where a type has none."""
    layout = dtype.layout.name
    if layout not in _NANS:
        return _noise(rng, dtype, units)
    width = unit_width(dtype)
    noise = np.frombuffer(rng.bytes(units * width), f"<u{width}")
    return (noise | np.array(_NANS[layout], noise.dtype)).tobytes()


def _noise(rng: Generator, dtype: DType, units: int) -> bytes:
    return rng.bytes(unit_width(dtype) * units)


def _wide(rng: Generator, dtype: DType, units: int) -> bytes:
    """Exponents over much of their range."""
    spread = {"fp16": 8.0, "fp64": 200.0}.get(dtype.layout.name, 40.0)
    return _as_units(rng.normal(0, 1, units) * np.exp2(rng.uniform(-spread, spread / 2, units)), dtype)


def _steps(rng: Generator, dtype: DType, units: int) -> bytes:
    """Few different values, as quantised weights have: tables of single planes pay."""
    return _as_units(rng.integers(-7, 8, units) * _scale(dtype), dtype)


_DISTRIBUTIONS: dict[str, Callable[[Generator, DType, int], bytes]] = {
    "weights": _weights,
    "rows": _rows,
    "bounded": _bounded,
    "outliers": _outliers,
    "constant": _constant,
    "zeros": _zeros,
    "sparse": _sparse,
    "nans": _nans,
    "noise": _noise,
    "wide": _wide,
    "steps": _steps,
}

NAMES = tuple(_DISTRIBUTIONS)


def make(name: str, dtype: str, units: int, seed: int = 0) -> bytes:
    """``units`` units of a dtype, cut so that they are whole elements."""
    kind = DTYPES[dtype]
    data = _DISTRIBUTIONS[name](np.random.default_rng([seed, units]), kind, units)
    return data[: len(data) - len(data) % _element_bytes(kind)]


def _element_bytes(dtype: DType) -> int:
    """The least number of bytes that holds whole elements."""
    size = 1
    while 8 * size % dtype.bits:
        size += 1
    return size
