"""bench/train_demo.py on a model of two layers: its four trainings agree, and it says so if they do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("matplotlib")

from safetensors.torch import save_file
from transformers import BertConfig, BertModel

SCRIPT = Path(__file__).parents[2] / "bench" / "train_demo.py"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import train_demo

    return train_demo


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A sentence transformer that knows letters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{each}" for each in letters)]
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=32,
    )
    folder = tmp_path / "model"
    folder.mkdir()
    state = BertModel(config, add_pooling_layer=False).state_dict()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizerFast"}')
    return folder


def test_the_demo(model: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    command = [sys.executable, str(SCRIPT), "--model", str(model), "--steps", "3", "--plot", str(plot)]
    environment = {**os.environ, "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    for way in ("ordinary", "compressed", "ordinary LoRA", "compressed LoRA"):
        assert f"│ {way} " in done.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_it_names_what_differs(demo: ModuleType) -> None:
    results = {way: {"losses": [1.0, 2.0], "weights": "a"} for way in demo.WAYS}
    assert demo.differences(results) == []
    results["compressed"] = {"losses": [1.0, 2.0], "weights": "b"}
    results["compressed LoRA"] = json.loads('{"losses": [1.0, 2.5], "weights": "a"}')
    assert demo.differences(results) == ["compressed: weights", "compressed LoRA: losses"]
