"""A process that may not take as much memory as the dense weights have bytes loads, runs and trains them compressed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("peft")

from ceiling import child, make_both

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts maps on Linux only"
)

CEILING = 0.95
"""Of the dense weights' bytes. The frames are .66 of them; a step adds activations, a gradient and what steps a weight.
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ceiling")


@pytest.fixture(scope="module")
def limit(folder: Path) -> int:
    return int(CEILING * make_both(folder))


def test_below_the_size_of_the_weights(folder: Path, limit: int) -> None:
    done = child(folder, "compressed", "sgd", limit)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["losses"][-1] < result["losses"][0]
    assert len(result["tokens"][0]) == 18


def test_resident_memory_stays_below_it_without_a_limit(folder: Path, limit: int) -> None:
    done = child(folder, "compressed", "sgd")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["peak"] < limit


def test_the_ordinary_model_does_not_fit(folder: Path, limit: int) -> None:
    done = child(folder, "dense", "sgd", limit)
    assert done.returncode != 0
    assert done.stdout == "ready\n"
    assert "memory" in done.stderr.lower(), done.stderr[-2000:]
