"""accelerate: device maps and offloading keep the compressed form."""

from __future__ import annotations

import pytest
import torch
from language_models import compressed_names, llama, load, logits
from models import same_bits
from transformers import AutoModelForCausalLM

import neuzip
from neuzip import NeuzipConfig
from neuzip.integrations.accelerate import OffloadedWeights
from neuzip.nn import CompressedTensor

pytest.importorskip("accelerate")

from accelerate import cpu_offload, dispatch_model, init_empty_weights


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_maps(tmp_path, device_map):
    llama().save_pretrained(tmp_path)
    model = load(tmp_path, quantization_config=NeuzipConfig(), device_map=device_map)
    assert len(compressed_names(model)) == 12
    assert same_bits(logits(model), logits(load(tmp_path)))


@pytest.mark.parametrize("tied", [False, True])
def test_offloaded_weights_stay_compressed(tmp_path, tied):
    llama(tied).save_pretrained(tmp_path / "plain")
    expected = logits(load(tmp_path / "plain"))
    model = load(tmp_path / "plain", quantization_config=NeuzipConfig())
    held = {name: value for name, value in model.state_dict().items() if isinstance(value, CompressedTensor)}
    cpu_offload(model, execution_device=torch.device("cpu"), state_dict=model.state_dict())
    assert all(parameter.is_meta for parameter in model.parameters())
    assert all(isinstance(parameter, torch.nn.Parameter) for parameter in model.parameters())
    assert same_bits(logits(model), expected)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.lm_head._hf_hook.weights_map["weight"].weight is held["lm_head.weight"].weight
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert same_bits(logits(again), expected)
    places = {"model": "cpu", "lm_head": "cpu"}
    dispatch_model(again, places, main_device="cpu", force_hooks=True)
    assert same_bits(logits(again), expected)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["60KB", "1GB"])
def test_weights_stay_on_disk_compressed(tmp_path, tied, shard):
    llama(tied).save_pretrained(tmp_path / "plain", max_shard_size=shard)
    neuzip.compress_file(tmp_path / "plain", tmp_path / "nz")
    reference = load(tmp_path / "plain")
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(reference.config, dtype=torch.bfloat16)
    with OffloadedWeights(tmp_path / "nz", model.all_tied_weights_keys) as weights:
        assert set(weights) == set(reference.state_dict()) and len(weights) == len(set(weights))
        assert isinstance(weights["lm_head.weight"], CompressedTensor)
        assert same_bits(weights["lm_head.weight"].dense(), reference.lm_head.weight)
        with pytest.raises(KeyError):
            weights["other"]
        cpu_offload(model, execution_device=torch.device("cpu"), state_dict=weights)
        assert same_bits(logits(model), logits(reference))
        assert all(parameter.is_meta for parameter in model.parameters())
