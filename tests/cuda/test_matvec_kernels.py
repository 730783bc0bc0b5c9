"""Products with compressed matrices, emulated: right, the same for any grid, and bad chunks flagged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import chunk_cases as cases
import ml_dtypes
import numpy as np
import pytest
from emulator import replay
from products import KERNELS, NONE, matrix, multiply, weights

from neuzip.cuda.jobs import MATVEC_BATCH
from neuzip.layouts import LAYOUTS


@pytest.fixture(scope="module")
def program() -> Path:
    return replay()


SHAPES = ((1, 4), (3, 1000), (7, 1024), (300, 12), (40, 516), (2, 9000))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product(program: Path, name: str, shape: tuple[int, int]) -> None:
    """Rows within chunks, and chunks within rows; any grid gives the same bytes."""
    dtype = KERNELS[name][1]
    values = weights(dtype, shape)
    for log2, level, batch in ((10, 0, 1), (12, 1, 3), (10, 1, MATVEC_BATCH)):
        x = weights(dtype, (batch, shape[1]), seed=batch) * dtype.type(50)
        weight = matrix(values, log2, level)
        product = multiply(program, weight, shape, x)
        assert not product.status.any() and product.first_bad == NONE
        wide_x, wide_values = x.astype(np.float64), values.astype(np.float64)
        exact = wide_x @ wide_values.T
        # fp32 sums, in whatever order, and one rounding to the type.
        sums = shape[1] * np.finfo(np.float32).eps * (np.abs(wide_x) @ np.abs(wide_values).T)
        rounding = ml_dtypes.finfo(dtype).eps / 2 * np.abs(exact) + float(
            ml_dtypes.finfo(dtype).smallest_subnormal
        )
        assert (np.abs(product.y.astype(np.float64) - exact) <= sums + rounding).all()
        for grid, seed in ((1, 3), (5, 4)):
            again = multiply(program, weight, shape, x, grid=grid, seed=seed)
            assert again.y.tobytes() == product.y.tobytes()


@pytest.mark.parametrize("name", KERNELS)
def test_conversions(program: Path, name: str) -> None:
    """Rows of a single value: it and the product with it are widened and rounded as IEEE 754 says."""
    dtype = KERNELS[name][1]
    bits = np.unique(
        np.r_[np.arange(0, 1 << 16, 101), np.arange(0, 1 << 16, 1 << 10), 0x7BFF, 0x7C01, 0x03FF, 0x7F7F]
    )
    values = np.zeros((len(bits), 4), dtype)
    values[:, 0] = bits.astype(np.uint16).view(dtype)
    factors = np.array([1, -1, 1 + 2**-7, 1 + 2**-10, 2**-8, 1.5 * 2**-14, 1000, 0.333]).astype(dtype)
    x = np.zeros((len(factors), 4), dtype)
    x[:, 0] = factors
    y = multiply(program, matrix(values, 12), values.shape, x).y
    with np.errstate(all="ignore"):
        products = factors.astype(np.float32)[:, None] * values[:, 0].astype(np.float32)
        expected = (products + np.float32(0)).astype(dtype)
    known = ~np.isnan(expected.astype(np.float32))
    assert (np.isnan(y.astype(np.float32)) == ~known).all()
    assert (y.view(np.uint16)[known] == expected.view(np.uint16)[known]).all()


@pytest.mark.parametrize("kind", ["skewed", "constant", "wide"])
def test_other_modes(program: Path, kind: str) -> None:
    """Planes with tables of their own are decoded to their places in shared memory."""
    dtype, shape = KERNELS["bf16"][1], (5, 1000)
    data = np.frombuffer(cases.units(LAYOUTS["bf16"], kind, 5000), dtype).reshape(shape)
    x = np.zeros((2, 1000), dtype)
    x[0, 3] = x[1, 998] = 1
    y = multiply(program, matrix(data, 10), shape, x).y
    assert (y.astype(np.float32) == data[:, [3, 998]].T.astype(np.float32)).all()


def test_bad_chunk(program: Path) -> None:
    """It is flagged, what it adds to is NaN, and other rows are as ever."""
    shape = (12, 512)
    values = weights(KERNELS["bf16"][1], shape)
    weight, x = matrix(values, 10), weights(KERNELS["bf16"][1], (2, 512), 1)
    good = multiply(program, weight, shape, x)
    packed = bytearray(weight.packed)
    packed[int(weight.records["offset"][2])] = 9
    bad = multiply(program, replace(weight, packed=bytes(packed)), shape, x)
    assert bad.status.tolist() == [0, 0, 1, 0, 0, 0] and bad.first_bad == 2
    touched = np.isin(np.arange(12), (4, 5))
    assert np.isnan(bad.y[:, touched].astype(np.float32)).all()
    assert bad.y[:, ~touched].tobytes() == good.y[:, ~touched].tobytes()
