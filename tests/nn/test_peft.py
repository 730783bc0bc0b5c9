"""PEFT, unmodified, on compressed models: the adapters of a dense model to the bit, the base untouched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from language_models import (
    KINDS,
    VOCAB,
    assert_same,
    compressed_names,
    load,
    logits,
    trained,
)
from models import same_bits
from safetensors.torch import load_file

pytest.importorskip("peft")

from peft import LoraConfig, PeftModel, get_peft_model

from neuzip import NeuzipConfig
from neuzip.nn import compress_model

TARGETS = {
    "llama": {"target_modules": "all-linear"},
    "tied": {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["norm"]},
    "gpt2": {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    "qwen3_moe": {
        "target_modules": ["q_proj", "v_proj"],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    },
}


def adapted(base, kind: str, **options: object):
    torch.manual_seed(5)
    config = LoraConfig(
        r=4, lora_alpha=8, init_lora_weights=False, task_type="CAUSAL_LM", **TARGETS[kind], **options
    )
    return get_peft_model(base, config)


def steps(model) -> list[float]:
    """Three steps of AdamW."""
    torch.manual_seed(6)  # dropout
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for step in range(3):
        ids = torch.randint(0, VOCAB, (2, 16), generator=torch.Generator().manual_seed(step))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.fixture(params=list(TARGETS))
def kind(request) -> str:
    return request.param


@pytest.fixture
def folder(kind, tmp_path) -> Path:
    KINDS[kind]().save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def test_lora(kind, folder, tmp_path):
    dense, base = load(folder), load(folder, quantization_config=NeuzipConfig())
    names = compressed_names(base)
    weights = [base.get_parameter(name) for name in names]
    frames = [weight.frame.clone() for weight in weights]
    reference, model = adapted(dense, kind), adapted(base, kind)
    assert steps(model) == steps(reference)
    assert same_bits(logits(model), logits(reference))
    for weight, frame in zip(weights, frames, strict=True):
        assert weight.frame.equal(frame) and weight.grad is None

    for each, place in ((model, "ours"), (reference, "theirs")):
        each.save_pretrained(tmp_path / place)
    ours, theirs = (load_file(tmp_path / p / "adapter_model.safetensors") for p in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(same_bits(ours[name], theirs[name]) for name in ours)
    again = PeftModel.from_pretrained(load(folder, quantization_config=NeuzipConfig()), tmp_path / "theirs")
    assert same_bits(logits(again), logits(reference))

    merged = model.merge_and_unload()
    assert_same(merged, reference.merge_and_unload())
    assert compressed_names(merged) == names
    merged.save_pretrained(tmp_path / "merged")
    assert_same(load(tmp_path / "merged"), merged)


def test_a_model_compressed_by_hand(tmp_path):
    KINDS["llama"]().save_pretrained(tmp_path)
    reference, model = adapted(load(tmp_path), "llama"), adapted(compress_model(load(tmp_path)), "llama")
    assert steps(model) == steps(reference)
    assert_same(model.merge_and_unload(), reference.merge_and_unload())


def test_merging_and_unmerging(tmp_path):
    KINDS["llama"]().save_pretrained(tmp_path)
    models = [adapted(load(tmp_path, **o), "llama") for o in ({}, {"quantization_config": NeuzipConfig()})]
    for model in models:
        model.merge_adapter()
    assert_same(*models)
    for model in models:
        model.unmerge_adapter()
    assert_same(*models)


def test_trainer(tmp_path):
    KINDS["llama"]().save_pretrained(tmp_path / "plain")
    reference, model = (
        adapted(load(tmp_path / "plain", **o), "llama", lora_dropout=0.1)
        for o in ({}, {"quantization_config": NeuzipConfig()})
    )
    options = {"activation_checkpointing": True}
    assert trained(model, tmp_path / "ours", **options) == trained(reference, tmp_path / "theirs", **options)
    assert_same(model, reference)
    assert (tmp_path / "ours" / "checkpoint-2" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "ours" / "checkpoint-2" / "model.safetensors").exists()


def test_transformers_own_adapters(tmp_path):
    KINDS["llama"]().save_pretrained(tmp_path / "plain")
    models = [load(tmp_path / "plain", **o) for o in ({}, {"quantization_config": NeuzipConfig()})]
    for number, model in enumerate(models):
        torch.manual_seed(5)
        model.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj"]))
        model.save_pretrained(tmp_path / str(number))
    ours, theirs = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("1", "0"))
    assert ours.keys() == theirs.keys()
    assert all(same_bits(ours[name], theirs[name]) for name in ours)
    again = load(tmp_path / "plain", quantization_config=NeuzipConfig())
    again.load_adapter(tmp_path / "1")
    assert same_bits(logits(again), logits(models[0]))
