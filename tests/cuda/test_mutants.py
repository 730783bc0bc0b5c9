"""Some of the seeded bugs of mutants.py: the emulated tests notice them. All of them: python tests/cuda/mutants.py."""

from __future__ import annotations

import pytest
from mutants import MUTANTS, Mutant, caught_by, check_unchanged

QUICK = ("lanes_below", "patch_twice", "payload_limit", "table_forgotten", "any_bad", "renormalise_late")
"""One of each kind, of files that compile quickly or together; all under the build without sanitizers."""


@pytest.fixture(scope="module", autouse=True)
def unchanged() -> None:
    """The kernels as they are pass, so that what a mutant does not pass is its own fault."""
    check_unchanged("plain")


@pytest.mark.parametrize(
    "mutant", [each for each in MUTANTS if each.name in QUICK], ids=lambda each: each.name
)
def test_is_caught(mutant: Mutant) -> None:
    assert caught_by(mutant) is not None, f"{mutant.name}, {mutant.why}: not noticed"


def test_each_is_one_change() -> None:
    """Of a place that is there once: kernels move on, and a mutant must not become none."""
    for mutant in MUTANTS:
        mutant.apply()
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 30
