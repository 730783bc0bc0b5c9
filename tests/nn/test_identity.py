"""Losses, every gradient and every weight of ordinary training, in a process that is killed and one that resumes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")

import identity
from identity import CASES, STEPS


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return identity.compare(tmp_path_factory.mktemp("states"), "small", list(CASES))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", CASES)
def test_killed_and_resumed_training_is_the_ordinary_one(results: dict[str, Any], name: str) -> None:
    result = results[name]
    ordinary, compressed = result["ordinary"], result["compressed"]
    assert len(ordinary) == len(compressed) == STEPS
    for theirs, ours in zip(ordinary, compressed, strict=True):
        assert ours == theirs
    assert result["identical"]
    # It trains at all: no two steps have the same loss, gradient or weights.
    for what in ("losses", "gradients", "weights"):
        assert len({str(step[what]) for step in ordinary}) == STEPS
    assert len(ordinary[0]["gradients"]) > 5
