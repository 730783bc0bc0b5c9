"""The config.json of a compressed model, which names the quantization method (§8), and of everything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoint_files import ORIGINAL, manifest_of, snapshot

from neuzip.checkpoint import compress_file, decompress_file
from neuzip.model_config import LIMIT

METHOD = {"quant_method": "neuzip"}

NAMED = [
    b'{"model_type": "llama"}',
    b'{\r\n\t"model_type": "bert",\r\n\t"name": "\xc3\xbc \\ud83d"}\r\n\r\n',
    b'{"a": {"quantization_config": 1}, "model_type": "x", "limit": [0.0, Infinity], "a": 2}',
]

KEPT = [
    b"",
    b"{}",
    b"[]",
    b'{"_class_name": "UNet2DConditionModel"}',
    b'{"model_type": 1}',
    b' {"model_type": "llama"}',
    b'\xef\xbb\xbf{"model_type": "llama"}',
    b'{"model_type": "llama"',
    b'{"model_type": "ll\xffama"}',
    b'{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}',
    b'{"model_type": "llama", "compression_config": {}}',
    b"[" * 100_000,
    b'{"model_type": "llama", "long": "' + b"x" * LIMIT + b'"}',
]


def make(root: Path, text: bytes, weights: str = "model.safetensors") -> Path:
    model = root / "model"
    model.mkdir()
    (model / "config.json").write_bytes(text)
    (model / weights).parent.mkdir(exist_ok=True)
    (model / weights).write_bytes(ORIGINAL)
    return model


def packed_config(model: Path) -> tuple[str, bytes]:
    """How the config.json of a compressed model is coded, and its text; what it restores to is compared."""
    before = snapshot(model)
    packed = model.with_name("model.nz")
    compress_file(model, remove=True)
    result = manifest_of(packed)["files"]["config.json"]["coding"], (packed / "config.json").read_bytes()
    decompress_file(packed)
    assert snapshot(model) == before
    return result


@pytest.mark.parametrize("text", NAMED)
def test_a_model_s_config_names_the_method(tmp_path: Path, text: bytes) -> None:
    coding, written = packed_config(make(tmp_path, text))
    assert coding == "config"
    assert json.loads(written) == {"quantization_config": METHOD} | json.loads(text)


@pytest.mark.parametrize("text", KEPT, ids=lambda text: repr(text[:40]))
def test_others_are_copied(tmp_path: Path, text: bytes) -> None:
    assert packed_config(make(tmp_path, text)) == ("copy", text)


@pytest.mark.parametrize("weights", ["model.bin", "unet/model.safetensors"])
def test_a_config_without_weights_beside_it_is_copied(tmp_path: Path, weights: str) -> None:
    assert packed_config(make(tmp_path, NAMED[0], weights)) == ("copy", NAMED[0])


def test_permissions(tmp_path: Path) -> None:
    model = make(tmp_path, NAMED[0])
    (model / "config.json").chmod(0o600)
    assert packed_config(model)[0] == "config"
