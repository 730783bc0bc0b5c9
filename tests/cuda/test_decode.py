"""The decoding kernels on the emulator: the same bytes as the CPU's coder, and the same chunks refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from chunk_cases import CHUNK_UNITS, FEW_SIZES, PLANED, Chunks, damaged, encode, golden, matrix, table, units
from decoding import check, outcomes
from emulator import replay

SEEDS = (0, *range(1, 9))
"""Of the order of threads, and of what shared memory begins with."""


@pytest.fixture(scope="module")
def program() -> Path:
    return replay()


def test_golden_vectors(program: Path) -> None:
    cases = list(golden("good"))
    assert len(cases) >= 80
    check(program, cases, SEEDS)


def test_bad_vectors(program: Path) -> None:
    """Each has a chunk that is refused."""
    cases = list(golden("bad"))
    assert len(cases) >= 60
    assert all(None in outcomes(case, verify=True) for case in cases)
    check(program, cases, SEEDS[:3])
    check(program, cases, SEEDS[:1], verify=False)


def test_matrix_has_every_mode() -> None:
    """Of every width and plane that may have it (spec §4): what the matrix does not have, it does not test."""
    found: set[tuple[int, int, int]] = set()
    for case in [*matrix(FEW_SIZES), *golden("good")]:
        found |= case.modes()
    for width in (1, 2, 4, 8):
        assert {mode for w, plane, mode in found if (w, plane) == (width, 0)} >= {0, 1, 2, 3, 4}
        if width > 1:
            assert {mode for w, plane, mode in found if w == width and plane} >= {0, 1, 4}
        if width in (2, 4):
            assert (width, 0, 5) in found
            assert (width, 1, 6) in found


def test_matrix(program: Path) -> None:
    check(program, list(matrix()), SEEDS[:2])


def test_matrix_in_many_orders(program: Path) -> None:
    check(program, list(matrix(FEW_SIZES)), SEEDS[2:])


@pytest.mark.parametrize("grid", [1, 2, 7, 50])
def test_any_grid(program: Path, grid: int) -> None:
    """Fewer blocks than tasks, or more; with tables of chunks' own between uses of the tensor's."""
    sizes = (CHUNK_UNITS * 3 + 5, CHUNK_UNITS * 9)
    cases = [case for case in matrix(sizes) if "weights" in case.name or "skewed" in case.name]
    check(program, cases, [grid], grid=grid)


def test_large_chunks(program: Path) -> None:
    """Positions of 16 bits, to the last."""
    cases = []
    for layout in PLANED[:2]:
        for level in (0, 1):
            blob = table(layout, "weights", level)
            original = units(layout, "patched", (1 << 16) + 5)
            cases.append(encode(f"{layout.name} large {level}", layout, original, blob, log2=16))
    check(program, cases, [1])


@pytest.mark.parametrize("verify", [False, True])
def test_damage(program: Path, verify: bool) -> None:
    """The kernels refuse what the CPU refuses, and make the same of the rest."""
    cases = [case for source in damage_sources() for case in damaged(source, 60)]
    check(program, cases, [5], verify=verify)


def damage_sources() -> list[Chunks]:
    """A chunk of every layout, level and kind of data."""
    return [case for case in matrix((301,)) if "noise" not in case.name]
