"""Models larger than the memory there is: they load, generate and train compressed, and fail dense."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA bounds mappings on Linux only")


def child(action: str, file: Path) -> subprocess.CompletedProcess[str]:
    # One arena: glibc reserves 64 MB for each further one, touched or not.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    paths = [str(HERE), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, str(HERE / "ceiling.py"), action, str(file)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ceiling") / "model.nz.safetensors"
    done = child("make", path)
    assert done.returncode == 0, done.stderr
    return path


def test_compressed_below_the_size_of_the_dense_weights(file: Path):
    done = child("compressed", file)
    assert done.returncode == 0, done.stderr
    assert "grown by" in done.stdout


def test_the_ceiling_holds_off_the_dense_model(file: Path):
    done = child("dense", file)
    assert done.returncode != 0
    assert "allocate memory" in done.stderr or "MemoryError" in done.stderr
