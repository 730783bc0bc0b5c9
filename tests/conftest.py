"""Checkpoints on disk, and programs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import ORIGINAL
from compiled import Builder
from safetensors_file import Tensor, build, model

from neuzip.checkpoint import compress_file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if {"cuda", "nn"} <= {item.path.parent.name for item in items}:
        raise pytest.UsageError(
            "tests/cuda makes a kind of device that stays with its process, and tests/nn must not see it: "
            "run them apart, as tests/run does"
        )


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    return Builder(tmp_path_factory.mktemp("compiled"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(ORIGINAL)
    return path


@pytest.fixture
def packed(source: Path) -> Path:
    """A container beside its original."""
    compress_file(source)
    return source.with_name("model.nz.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sharded checkpoint as transformers writes it, and more."""
    root = tmp_path / "llama"
    (root / "sub" / "deep").mkdir(parents=True)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for number, name in enumerate(names):
        (root / name).write_bytes(build(model(["BF16", "F16"], 2048 + 8 * number), {"format": "pt"}))
    weight_map = {"a": names[0], "b": names[1], "c": names[0]}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    (root / "config.json").write_text('{"model_type": "llama"}')
    (root / "tokenizer ü.json").write_bytes(b"{}\n")
    (root / "empty").write_bytes(b"")
    (root / "sub" / "adapter.safetensors").write_bytes(ORIGINAL)
    (root / "sub" / "deep" / "run.sh").write_text("#!/bin/sh\n")
    (root / "sub" / "deep" / "run.sh").chmod(0o750)
    noise = np.random.default_rng(0).bytes(10_000)
    (root / "noise.safetensors").write_bytes(build([Tensor("n", "I32", (2500,), noise)]))
    return root
