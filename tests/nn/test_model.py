"""Whole models: compressed, used, saved, loaded and decompressed, always with the same bits."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from models import TinyLlama, batch, make, same_bits
from safetensors.torch import save_file
from torch import nn

import neuzip
import neuzip.torch
from neuzip import InvalidArgument
from neuzip.nn import CompressedLinear, CompressedTensor, compress_model, decompress_model, load_model


def dense_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.dense() if isinstance(v, CompressedTensor) else v for k, v in model.state_dict().items()}


def assert_same(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = dense_state(a), dense_state(b)
    assert list(ours) == list(theirs)
    for name in ours:
        assert same_bits(ours[name], theirs[name]), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_gradients_equal_dense(tied, bias):
    plain, packed = make(tied=tied, bias=bias), compress_model(make(tied=tied, bias=bias))
    ids = batch(0)
    losses = [model(ids) for model in (plain, packed)]
    assert same_bits(*losses)
    for loss in losses:
        loss.backward()
    for (name, p), (_, q) in zip(plain.named_parameters(), packed.named_parameters(), strict=True):
        assert same_bits(p.grad, q.grad), name
    assert (packed.head.weight is packed.embed.weight) == tied


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_plain_optimizers_equal_dense(name):
    plain, packed = make(), compress_model(make())
    optimizers = [getattr(torch.optim, name)(m.parameters(), lr=1e-2) for m in (plain, packed)]
    for step in range(4):
        for model, optimizer in zip((plain, packed), optimizers, strict=True):
            model(batch(step)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    assert isinstance(packed.head.weight, CompressedTensor)
    assert_same(packed, plain)


def test_selection():
    model = compress_model(make(), include=["blocks.*"], exclude=["*.down.*"], min_size=5000)
    packed = {name for name, p in model.named_parameters() if isinstance(p, CompressedTensor)}
    assert packed == {f"blocks.{i}.{n}.weight" for i in (0, 1) for n in ("qkv", "gate", "up")}
    assert isinstance(model.blocks[0].gate, CompressedLinear)
    assert type(model.blocks[0].down) is nn.Linear


def test_decompress_gives_the_ordinary_model_back():
    plain = make(tied=True)
    model = decompress_model(compress_model(make(tied=True)))
    assert not any(isinstance(p, CompressedTensor) for p in model.parameters())
    assert type(model.head) is nn.Linear
    assert model.head.weight is model.embed.weight
    assert_same(model, plain)


def test_frozen_parameters_stay_frozen():
    model = make()
    model.embed.requires_grad_(False)
    compress_model(model)
    assert not model.embed.weight.requires_grad
    model(batch(0)).backward()
    assert model.embed.weight.grad is None
    assert decompress_model(model).embed.weight.requires_grad is False


def test_state_dicts_go_both_ways():
    plain, packed = make(seed=1), compress_model(make(seed=2))
    packed.load_state_dict(plain.state_dict())
    assert_same(packed, plain)
    assert isinstance(packed.head.weight, CompressedTensor)
    other = make(seed=3)
    other.load_state_dict(packed.state_dict())
    assert_same(other, plain)
    third = compress_model(make(seed=4))
    third.load_state_dict(packed.state_dict())
    assert_same(third, plain)


def test_torch_save_and_deepcopy():
    packed = compress_model(make(tied=True))
    assert_same(copy.deepcopy(packed), packed)
    file = io.BytesIO()
    torch.save(packed.state_dict(), file)
    assert file.tell() < 0.75 * sum(v.nbytes for v in dense_state(packed).values())
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    other = compress_model(make(seed=5, tied=True))
    other.load_state_dict(loaded)
    assert_same(other, packed)


def test_save_file_writes_what_the_dense_model_would(tmp_path):
    plain, packed = make(), compress_model(make())
    neuzip.torch.save_file(packed.state_dict(), tmp_path / "packed.nz.safetensors")
    neuzip.decompress_file(tmp_path / "packed.nz.safetensors", tmp_path / "packed.safetensors")
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    assert (tmp_path / "packed.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("start", ["meta", "cpu"])
def test_load_model(tmp_path, compressed, start):
    plain = make(tied=True)
    state = {name: value for name, value in plain.state_dict().items() if name != "head.weight"}
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    if compressed:
        neuzip.compress_file(path)
        path = tmp_path / "model.nz.safetensors"
    with torch.device(start):
        model = TinyLlama(tied=True)
    load_model(model, path)
    assert isinstance(model.head.weight, CompressedTensor)
    assert model.head.weight is model.embed.weight
    assert_same(model, plain)
    assert same_bits(model(batch(0)), plain(batch(0)))


def test_load_model_takes_frames_as_they_are(tmp_path, monkeypatch):
    save_file(make().state_dict(), tmp_path / "m.safetensors")
    neuzip.compress_file(tmp_path / "m.safetensors")

    def refuse(*args, **kwargs):
        raise AssertionError("a compressed tensor was decoded or encoded")

    monkeypatch.setattr("neuzip.frame.encode_many", refuse)
    monkeypatch.setattr("neuzip.container_writer.encode_run", refuse)
    monkeypatch.setattr("neuzip.frame.decode_chunks", refuse)
    with torch.device("meta"):
        model = TinyLlama()
    load_model(model, tmp_path / "m.nz.safetensors")


def test_save_file_writes_frames_as_they_are(tmp_path, monkeypatch):
    model = compress_model(make())

    def refuse(data, places, *others):
        if any(place.size >= 8192 for place in places):
            raise AssertionError("a compressed tensor was encoded again")
        return []

    monkeypatch.setattr("neuzip.container_writer.encode_run", refuse)
    neuzip.torch.save_file({"head": model.head.weight, "gate": model.blocks[0].gate.weight}, tmp_path / "m")
    monkeypatch.undo()
    loaded = neuzip.torch.load_file(tmp_path / "m")
    assert same_bits(loaded["head"], model.head.weight.dense())


def test_load_model_refuses_what_does_not_fit(tmp_path):
    state = make().state_dict()
    path = tmp_path / "m.safetensors"
    save_file({k: v for k, v in state.items() if k != "norm.weight"}, path)
    with pytest.raises(InvalidArgument, match=r"norm\.weight"):
        load_model(make(), path)
    save_file({**state, "extra": torch.zeros(3)}, path)
    with pytest.raises(InvalidArgument, match="extra"):
        load_model(make(), path)
    save_file({**state, "norm.weight": torch.zeros(3).bfloat16()}, path)
    with pytest.raises(InvalidArgument, match=r"norm\.weight.*shape"):
        load_model(make(), path)


def test_meta_parameters_are_refused():
    with torch.device("meta"):
        model = TinyLlama()
    with pytest.raises(InvalidArgument, match="meta"):
        compress_model(model)
