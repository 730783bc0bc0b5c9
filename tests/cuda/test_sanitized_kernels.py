"""The kernels on the emulator under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.

Buffers have exactly the size that launch.h demands. To ThreadSanitizer only __syncwarp, __syncthreads and launches
order memory, so that it sees every place where a barrier is missing.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chunk_cases import CHUNK_UNITS, FEW_SIZES, Chunks, damaged, golden, matrix
from decoding import check
from emulator import replay
from encoding import check_encoding, check_sample
from planes import check_planes
from products import KERNELS, NONE, multiply, weights
from products import matrix as product_matrix
from script import ReplayError, Script

SIZES = (1, 33, 257)


@pytest.fixture(scope="module")
def memory() -> Path:
    return replay("memory")


@pytest.fixture(scope="module")
def threads() -> Path:
    if platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("no ThreadSanitizer here")
    return replay("threads")


def small(every: int = 1) -> list[Chunks]:
    """A part of the matrix, of all widths, levels and kinds of data."""
    return list(matrix(SIZES))[::every]


def test_decode_in_bounds(memory: Path) -> None:
    check(memory, [*golden("good"), *golden("bad")], [1])
    check(memory, list(matrix(FEW_SIZES)), [2])


def test_encode_in_bounds(memory: Path) -> None:
    check_encoding(memory, list(matrix(FEW_SIZES)), [1])


def test_damage_in_bounds(memory: Path) -> None:
    sources = [case for case in matrix((301,)) if "noise" not in case.name]
    check(memory, [case for source in sources for case in damaged(source, 30, seed=1)], [3], verify=False)


def test_decode_without_races(threads: Path) -> None:
    check(threads, [*golden("good")][::3] + small(3), [1])


def test_encode_without_races(threads: Path) -> None:
    check_encoding(threads, small(2), [1])


def test_many_chunks_without_races(threads: Path) -> None:
    """A warp uses its shared memory for one chunk after the other."""
    cases = [case for case in matrix((3 * CHUNK_UNITS,)) if case.layout.width == 2 and "weights" in case.name]
    check(threads, cases, [2], grid=1)
    check_encoding(threads, cases, [2], grid=1)


def check_others(program: Path) -> None:
    """Samples, planes, and products of matrices, one of which has a bad chunk."""
    check_sample(program, [case for case in small() if case.units > 256][::13], [1])
    check_planes(program, (1, 300), (2,))
    for _, dtype in KERNELS.values():
        values, x = weights(dtype, (5, 500)), weights(dtype, (2, 500), seed=1)
        weight = product_matrix(values, 10)
        broken = replace(weight, packed=b"\x09" + weight.packed[1:])
        assert multiply(program, weight, (5, 500), x).first_bad == NONE
        assert multiply(program, broken, (5, 500), x, grid=1, seed=1).first_bad == 0


def test_others_in_bounds(memory: Path) -> None:
    check_others(memory)


def test_others_without_races(threads: Path) -> None:
    check_others(threads)


def run(program: Path, kernel: str, *arguments: np.generic, words: int = 8, shared: int = 0) -> None:
    script = Script()
    out = script.buffer(np.zeros(words, np.uint32))
    script.launch(kernel, 1, 32, [out, *arguments], shared)
    script.run(program, [1])


@pytest.mark.parametrize("where", [0, 1, 2], ids=["static", "dynamic", "device"])
def test_out_of_bounds_is_seen(memory: Path, where: int) -> None:
    """In each kind of memory, one word before it and one behind it."""
    for at in (0, 7):
        run(memory, "nz_test_out_of_bounds", np.uint32(where), np.int32(at), shared=32)
    for at in (-1, 8):
        with pytest.raises(ReplayError, match="AddressSanitizer"):
            run(memory, "nz_test_out_of_bounds", np.uint32(where), np.int32(at), shared=32)


@pytest.mark.parametrize(("way", "races"), [(0, True), (1, True), (2, False), (3, False)])
def test_race_is_seen(threads: Path, way: int, races: bool) -> None:
    """A ballot orders no memory; barriers do."""
    if not races:
        run(threads, "nz_test_race", np.uint32(way))
        return
    with pytest.raises(ReplayError, match="ThreadSanitizer: data race"):
        run(threads, "nz_test_race", np.uint32(way))


@pytest.mark.parametrize(("way", "races"), [(0, True), (2, False)])
def test_race_of_stores_is_seen(threads: Path, way: int, races: bool) -> None:
    if not races:
        run(threads, "nz_test_race_of_stores", np.uint32(way))
        return
    with pytest.raises(ReplayError, match="ThreadSanitizer: data race"):
        run(threads, "nz_test_race_of_stores", np.uint32(way))


def test_undefined_behaviour_is_seen(memory: Path) -> None:
    with pytest.raises(ReplayError, match=r"runtime error: (load|store) .* misaligned"):
        run(memory, "nz_test_misaligned_store")
