"""transformers: loaded, run, trained and saved compressed, always with the same bits."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from language_models import (
    IDS,
    KINDS,
    assert_same,
    compressed_names,
    llama,
    load,
    logits,
    trained,
)
from models import same_bits
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AutoConfig, AutoModelForSequenceClassification, core_model_loading

import neuzip
from neuzip import CorruptFrame, InvalidArgument, NeuzipConfig
from neuzip.container import Container
from neuzip.integrations import conversion
from neuzip.integrations.transformers import adopt
from neuzip.nn import CompressedLinear, compress_model, load_model
from neuzip.nn import weight as nn_weight
from neuzip.nn.model import MIN_SIZE


@pytest.fixture(params=list(KINDS))
def plain(request, tmp_path) -> Path:
    """A checkpoint as transformers saves it."""
    KINDS[request.param]().save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


@pytest.fixture
def folder(tmp_path) -> Path:
    llama().save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.fixture
def coded(monkeypatch) -> list[str]:
    """The encodings and decodings of tensors large enough to be compressed parameters."""
    calls: list[str] = []
    encode, decompress = nn_weight.encode, conversion.decompress

    def counted_encode(dense, *rest):
        calls.append("encode")
        return encode(dense, *rest)

    def counted_decompress(frame):
        dense = decompress(frame)
        if dense.numel() >= MIN_SIZE:
            calls.append("decode")
        return dense

    monkeypatch.setattr(nn_weight, "encode", counted_encode)
    monkeypatch.setattr(conversion, "decompress", counted_decompress)
    return calls


def save_compressed(folder: Path, target: Path, **options: object) -> Path:
    load(folder, quantization_config=NeuzipConfig()).save_pretrained(target, **options)
    return target


def test_a_model_is_compressed_while_it_loads(plain):
    reference, model = load(plain), load(plain, quantization_config=NeuzipConfig())
    assert compressed_names(model) == {n for n, p in reference.named_parameters() if p.numel() >= 4096}
    assert_same(model, reference)
    assert same_bits(logits(model), logits(reference))
    assert model.get_output_embeddings().__class__ is CompressedLinear
    tied = reference.lm_head.weight is reference.get_input_embeddings().weight
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied


def test_generate(plain):
    options = {"max_new_tokens": 6, "do_sample": False}
    expected = load(plain).generate(IDS, **options)
    assert load(plain, quantization_config=NeuzipConfig()).generate(IDS, **options).equal(expected)


@pytest.mark.parametrize("compressed", [True, False])
def test_one_weight_at_a_time_is_dense_while_loading(folder, monkeypatch, compressed):
    alive, peak, original = [], [], core_model_loading._materialize_copy

    def counted(*args, **options):
        alive[:] = [reference for reference in alive if not reference.expired()]
        tensor = original(*args, **options)
        if tensor.numel() >= 4096:
            alive.append(StorageWeakRef(tensor.untyped_storage()))
        peak.append(len(alive))
        return tensor

    monkeypatch.setattr(core_model_loading, "_materialize_copy", counted)
    # Another dtype than the file's: else the dense tensor is a view of the mapped file.
    options = {"quantization_config": NeuzipConfig()} if compressed else {}
    model = load(folder, dtype=torch.float32, **options)
    assert (max(peak) == 1) if compressed else (max(peak) > 4)
    assert len(compressed_names(model)) == (12 if compressed else 0)


def test_options(folder):
    config = NeuzipConfig(
        ["lm_head"], include=["*.layers.*", "lm_head.*"], exclude=["*.q_proj.*"], min_size=8192
    )
    model = load(folder, quantization_config=config)
    parts = ("gate_proj", "up_proj", "down_proj")
    assert compressed_names(model) == {
        f"model.layers.{i}.mlp.{part}.weight" for i in (0, 1) for part in parts
    }
    assert_same(model, load(folder))
    small = load(folder, quantization_config=NeuzipConfig(min_size=1, level="max"))
    assert compressed_names(small) == {name for name, _ in small.named_parameters()}
    assert small.lm_head.weight.weight.level == "max"


def test_another_dtype_is_cast_as_transformers_casts(folder, tmp_path):
    neuzip.compress_file(folder, tmp_path / "nz")
    reference = load(folder, dtype=torch.float16)
    # A compressed checkpoint's own options count.
    for path, count in ((folder, 10), (tmp_path / "nz", 12)):
        model = load(path, dtype=torch.float16, quantization_config=NeuzipConfig(exclude=["*.up_proj.*"]))
        assert_same(model, reference)
        assert len(compressed_names(model)) == count


def test_a_missing_head_is_initialised_as_ever(folder):
    models = []
    for config in (None, NeuzipConfig()):
        torch.manual_seed(3)
        options = {} if config is None else {"quantization_config": config}
        models.append(AutoModelForSequenceClassification.from_pretrained(folder, num_labels=80, **options))
    assert_same(*models)
    assert "score.weight" in compressed_names(models[1])


def test_saved_and_loaded_without_coding(plain, tmp_path, coded):
    first = load(plain, quantization_config=NeuzipConfig(level="max"))
    coded.clear()
    first.save_pretrained(tmp_path / "saved")
    # The digest of the original file (spec §7) is of dense bytes: decoded one at a time, never encoded.
    assert "encode" not in coded
    coded.clear()
    second = load(tmp_path / "saved")
    assert coded == []
    assert_same(second, load(plain))
    assert compressed_names(second) == compressed_names(first)
    assert second.config.quantization_config.level == "max"
    assert second.lm_head.weight.weight.level == "max"
    assert (
        json.loads((tmp_path / "saved" / "config.json").read_text())["quantization_config"]["quant_method"]
        == "neuzip"
    )
    for name in compressed_names(first) & set(dict(second.named_parameters())):
        assert first.get_parameter(name).frame.equal(second.get_parameter(name).frame)


def test_saved_files_are_containers(plain, tmp_path):
    file = save_compressed(plain, tmp_path / "saved") / "model.safetensors"
    with Container.open(file) as container:
        assert container.compressed
        assert container.metadata == {"format": "pt"}
    assert file.stat().st_size < 0.72 * (plain / "model.safetensors").stat().st_size
    neuzip.verify_file(file)
    # Decompressed, it is a checkpoint that needs no neuzip.
    (tmp_path / "restored").mkdir()
    neuzip.decompress_file(file, tmp_path / "restored" / "model.safetensors")
    load(plain).config.save_pretrained(tmp_path / "restored")
    assert_same(load(tmp_path / "restored"), load(plain))


def test_shards(plain, tmp_path):
    saved = save_compressed(plain, tmp_path / "saved", max_shard_size="60KB")
    shards = sorted(saved.glob("model-0*.safetensors"))
    assert len(shards) > 2
    assert set(json.loads((saved / "model.safetensors.index.json").read_text())["weight_map"].values()) == {
        shard.name for shard in shards
    }
    for shard in shards:
        neuzip.verify_file(shard)
    model = load(saved)
    assert_same(model, load(plain))
    model.save_pretrained(saved)
    assert list(saved.glob("model-0*")) == []
    assert_same(load(saved), model)


def test_the_original_format_of_stacked_experts(tmp_path):
    KINDS["qwen3_moe"]().save_pretrained(tmp_path / "plain")
    saved = save_compressed(tmp_path / "plain", tmp_path / "saved", save_original_format=True)
    with (
        Container.open(saved / "model.safetensors") as ours,
        Container.open(tmp_path / "plain" / "model.safetensors") as theirs,
    ):
        assert set(ours.original.entries) == set(theirs.original.entries)
    assert_same(load(saved), load(tmp_path / "plain"))


@pytest.mark.parametrize("options", [{}, {"quantization_config": NeuzipConfig()}], ids=["as it is", "named"])
def test_a_compressed_directory_is_loaded_as_it_is(plain, tmp_path, coded, options):
    packed = tmp_path / "plain.nz"
    neuzip.compress_file(plain, packed)
    expected = load(plain)
    model = load(packed, **options)
    # transformers stacks experts, which needs them decoded; everything else is taken as it is.
    assert ("encode" in coded) == (expected.config.model_type == "qwen3_moe")
    assert_same(model, expected)
    assert same_bits(logits(model), logits(expected))
    neuzip.decompress_file(packed, tmp_path / "restored")
    for file in plain.iterdir():
        assert file.read_bytes() == (tmp_path / "restored" / file.name).read_bytes()


def test_without_the_method_transformers_refuses_a_compressed_directory(folder, tmp_path):
    neuzip.compress_file(folder, tmp_path / "nz")
    shutil.copy(folder / "config.json", tmp_path / "nz")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load(tmp_path / "nz")


@pytest.mark.parametrize("named", [False, True])
def test_load_model_takes_a_configuration(folder, tmp_path, coded, named):
    neuzip.compress_file(folder, tmp_path / "nz")
    config = AutoConfig.from_pretrained(tmp_path / ("nz" if named else "llama"))
    assert hasattr(config, "quantization_config") == named
    model = load_model(config, tmp_path / "nz")
    assert coded == []
    single = load_model(config, tmp_path / "nz" / "model.safetensors", exclude=["*.mlp.*"])
    for loaded, count in ((model, 12), (single, 6)):
        assert_same(loaded, load(folder))
        assert len(compressed_names(loaded)) == count
        assert not hasattr(loaded.config, "transformers_weights")


def test_damage_is_noticed(folder, tmp_path):
    saved = save_compressed(folder, tmp_path / "saved")
    file = saved / "model.safetensors"
    with Container.open(file) as container:
        entry = container.header.entries["lm_head.weight"]
        start = container.header.data_start + entry.start
        end = container.header.data_start + entry.end
    sound = file.read_bytes()
    file.write_bytes(
        sound[: end - 200] + bytes(byte ^ 0x55 for byte in sound[end - 200 : end - 100]) + sound[end - 100 :]
    )
    damaged = load(saved)
    with pytest.raises(CorruptFrame):
        logits(damaged)
    file.write_bytes(sound[: start + 8] + bytes(16) + sound[start + 24 :])
    with pytest.raises(RuntimeError, match="CONVERSION"):
        load(saved)


def test_copies_save_themselves(folder, tmp_path):
    reference = load(folder)
    model = copy.deepcopy(load(folder, quantization_config=NeuzipConfig()))
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for number, each in enumerate((model, torch.load(stream, weights_only=False))):
        with torch.no_grad():
            each.lm_head.weight.mul_(2)
        each.save_pretrained(tmp_path / str(number))
        again = load(tmp_path / str(number))
        assert_same(again, each)
        assert not same_bits(again.lm_head.weight.dense(), reference.lm_head.weight)


def test_a_model_compressed_by_hand_is_adopted(folder, tmp_path):
    model = adopt(compress_model(load(folder)))
    model.save_pretrained(tmp_path / "saved")
    assert_same(load(tmp_path / "saved"), load(folder))
    assert compressed_names(load(tmp_path / "saved")) == compressed_names(model)


def test_dequantize(folder, tmp_path):
    model = load(folder, quantization_config=NeuzipConfig()).dequantize()
    assert compressed_names(model) == set()
    assert_same(model, load(folder))
    model.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert_same(load(tmp_path / "saved"), model)


def test_stock_save_pretrained_writes_a_dense_checkpoint(folder, tmp_path):
    model = load(folder, quantization_config=NeuzipConfig())
    type(model).save_pretrained(model, tmp_path / "dense")
    with Container.open(tmp_path / "dense" / "model.safetensors") as container:
        assert not container.compressed
    assert_same(load(tmp_path / "dense"), model)


def test_refusals(folder, tmp_path):
    model = load(folder, quantization_config=NeuzipConfig())
    with pytest.raises(InvalidArgument, match="push_to_hub"):
        model.save_pretrained(tmp_path / "saved", push_to_hub=True)
    with pytest.raises(InvalidArgument, match="disk"):
        load(folder, quantization_config=NeuzipConfig(), device_map={"model": "cpu", "lm_head": "disk"})
    with pytest.raises(InvalidArgument, match="quant_method"):
        NeuzipConfig(quant_method="gptq")


@pytest.mark.parametrize("kind", list(KINDS))
def test_trainer_trains_all_weights(kind, tmp_path):
    KINDS[kind]().save_pretrained(tmp_path / "plain")
    reference, model = (load(tmp_path / "plain", **o) for o in ({}, {"quantization_config": NeuzipConfig()}))
    names = compressed_names(model)
    assert trained(model, tmp_path / "ours") == trained(reference, tmp_path / "theirs")
    assert_same(model, reference)
    assert compressed_names(model) == names
    assert not same_bits(load(tmp_path / "plain").lm_head.weight, reference.lm_head.weight)
    with Container.open(tmp_path / "ours" / "checkpoint-2" / "model.safetensors") as container:
        assert container.compressed


def test_trainer_with_checkpointing_and_accumulation(folder, tmp_path):
    reference, model = (load(folder, **o) for o in ({}, {"quantization_config": NeuzipConfig()}))
    options = {"activation_checkpointing": True, "gradient_accumulation_steps": 2}
    assert trained(model, tmp_path / "ours", **options) == trained(reference, tmp_path / "theirs", **options)
    assert_same(model, reference)


def test_trainer_resumes(folder, tmp_path):
    whole, resumed = (load(folder, quantization_config=NeuzipConfig()) for _ in range(2))
    losses = trained(whole, tmp_path / "run")
    assert trained(resumed, tmp_path / "run", tmp_path / "run" / "checkpoint-2")[-1:] == losses[-1:]
    assert_same(resumed, whole)
    assert len(compressed_names(resumed)) == 12


def test_importing_patches_nothing():
    code = """
import sys
import neuzip
assert "transformers" not in sys.modules and "torch" not in sys.modules
import accelerate, peft, safetensors.torch, torch, transformers
from transformers import PreTrainedModel, Trainer, core_model_loading, modeling_utils
from transformers.quantizers import auto
watched = [PreTrainedModel, Trainer, core_model_loading, modeling_utils, auto, safetensors.torch,
           torch.Tensor, torch.nn.Linear, torch.nn.Module, accelerate, peft]
before = [dict(vars(thing)) for thing in watched]
neuzip.NeuzipConfig
assert [dict(vars(thing)) for thing in watched] == before
assert "neuzip" in auto.AUTO_QUANTIZER_MAPPING
assert type(modeling_utils.__spec__.loader).__name__ == "SourceFileLoader"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("imports", ["neuzip, transformers", "transformers.modeling_utils, neuzip"])
def test_a_compressed_directory_needs_only_the_import(folder, tmp_path, imports):
    neuzip.compress_file(folder, tmp_path / "nz")
    code = f"""
import sys
import {imports}
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(type(model.lm_head.weight).__name__, type(model.lm_head).__name__)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "nz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "CompressedTensor CompressedLinear\n"


def test_a_transformers_that_is_too_old_is_left_alone(tmp_path):
    package = tmp_path / "transformers"
    package.mkdir()
    for name, text in (("__init__", ""), ("modeling_utils", "loaded = True")):
        (package / f"{name}.py").write_text(text)
    code = """
import neuzip
from transformers import modeling_utils
assert modeling_utils.loaded
try:
    neuzip.NeuzipConfig
except ImportError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "transformers" in done.stdout
