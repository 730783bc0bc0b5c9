"""Lossy weights: what is kept, what it costs, what is refused."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from models import batch, make, same_bits

from neuzip.errors import InvalidArgument, NeuzipError
from neuzip.nn import (
    CompressedLinear,
    CompressedTensor,
    LossyTensor,
    compress_model,
    compress_model_lossy,
    decompress_model,
)
from neuzip.nn.lossy_code import precision_of
from neuzip.torch import load_file, memory, save_file

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def weights(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.03).to(dtype)


def lossy(dense: torch.Tensor, bits: int = 3, block: int = 512, **options: object) -> LossyTensor:
    return LossyTensor.compress_lossy(dense, bits, block, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [1, 7, 512, 100_000])
@pytest.mark.parametrize("bits", [0, 1, 2, 3])
def test_error_is_within_the_bound(bits: int, block: int, dtype: torch.dtype):
    dense = weights(120, 331, dtype=dtype)
    dense[3] = 0
    dense[5] *= 1e-3
    held = lossy(dense, bits, block).dense()
    assert held.dtype == dtype and held.shape == dense.shape
    before, after = dense.double().flatten(), held.double().flatten()
    padded = torch.nn.functional.pad(before.abs(), (0, -before.numel() % block)).view(-1, block)
    scale = padded.amax(1).repeat_interleave(block)[: before.numel()]
    rounding = torch.finfo(dtype).eps
    bound = 2.0 ** -(bits + 1) * before.abs() + 2.0 ** (1 - 2 ** (7 - bits)) * scale
    slack = rounding * before.abs() + torch.finfo(dtype).smallest_normal * rounding
    assert ((after - before).abs() <= bound + slack * 2).all()
    largest = before.abs() == scale
    assert torch.equal(after[largest], before[largest])


@pytest.mark.parametrize("bits", [0, 1, 2, 3])
def test_kept_bits_are_what_was_asked(bits: int):
    held = lossy(weights(256, 512, dtype=torch.float64), bits).dense().view(-1, 512)
    quotients = held / held.abs().amax(1, keepdim=True)
    fractions, _ = torch.frexp(quotients[quotients != 0])
    units = fractions.abs() * 2 ** (bits + 1)
    assert torch.allclose(units, units.round(), rtol=1e-12)
    assert len(units.round().unique()) == 2**bits


@pytest.mark.parametrize(("bits", "most"), [(0, 3.8), (1, 4.8), (2, 5.8), (3, 6.8)])
def test_size(bits: int, most: float):
    dense = weights(1024, 1024)
    assert lossy(dense, bits).weight.nbytes * 8 / dense.numel() < most


def test_rounding_twice_changes_nothing():
    once = lossy(weights(64, 1000), 1, 100).dense()
    assert same_bits(lossy(once, 1, 100).dense(), once)


def test_zero_and_signs():
    dense = torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30])
    assert lossy(dense, 3).dense().tolist() == [0.0, 0.0, 1.0, -1.0, 0.0, 0.0]
    assert lossy(torch.zeros(5)).dense().tolist() == [0.0] * 5
    assert lossy(torch.zeros(0, 3)).dense().shape == (0, 3)


@pytest.mark.parametrize("value", [3e38, 1e-38, 1e-41])
def test_extreme_scales(value: float):
    dense = torch.tensor([value, -value, value / 2, 0.0])
    assert torch.equal(lossy(dense).dense(), dense)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused(bad: float):
    model = make()
    with torch.no_grad():
        model.blocks[1].gate.weight[3, 4] = bad
    with pytest.raises(InvalidArgument, match=r"blocks.1.gate.weight"):
        compress_model_lossy(model, mantissa_bits=3)


@pytest.mark.parametrize("options", [{"mantissa_bits": 4}, {"mantissa_bits": 1, "block_size": 0}])
def test_bad_options_are_refused(options: dict[str, int]):
    with pytest.raises(InvalidArgument):
        compress_model_lossy(make(), **options)


def test_model_computes_with_the_rounded_weights():
    model = compress_model_lossy(make(bias=True, tied=True), mantissa_bits=1, block_size=64)
    assert isinstance(model.blocks[0].gate, CompressedLinear)
    assert model.head.weight is model.embed.weight
    assert not any(p.requires_grad for p in model.parameters() if isinstance(p, LossyTensor))
    plain = decompress_model(copy.deepcopy(model))
    original = make(bias=True, tied=True)
    with torch.inference_mode():
        logits = model.logits(batch(0))
        assert same_bits(logits, plain.logits(batch(0)))
        assert not torch.equal(logits, original.logits(batch(0)))


def test_pieces_and_rows():
    dense = weights(700, 1024)
    whole, parts = lossy(dense, 3, 700), lossy(dense, 3, 700, piece_bytes=1 << 18)
    x = weights(4, 1024, seed=1)
    assert same_bits(torch.nn.functional.linear(x, whole), x @ whole.dense().t())
    assert torch.allclose(torch.nn.functional.linear(x, parts), x @ whole.dense().t())
    rows = torch.empty(3, 1024, dtype=torch.bfloat16)
    assert same_bits(whole.weight.rows(501, rows), whole.dense()[501:504])


def test_compressed_models_are_taken_too():
    a = compress_model_lossy(compress_model(make()), mantissa_bits=0)
    b = compress_model_lossy(make(), mantissa_bits=0)
    with torch.inference_mode():
        assert same_bits(a.logits(batch(0)), b.logits(batch(0)))
    with pytest.raises(InvalidArgument, match="lossy already"):
        compress_model_lossy(a, mantissa_bits=0)


def test_gradients_are_refused():
    held = lossy(weights(64, 64))
    for ask in (
        lambda: held.requires_grad_(),
        lambda: held.requires_grad_(True),
        lambda: setattr(held, "requires_grad", True),
        lambda: torch.nn.Parameter(held),
    ):
        with pytest.raises(InvalidArgument, match="inference"):
            ask()
    held.requires_grad_(False)
    held.requires_grad_(requires_grad=False)
    assert not held.requires_grad
    with pytest.raises(InvalidArgument, match="compress_lossy"):
        LossyTensor.compress(weights(64, 64))


def test_gradients_flow_past_it():
    held, x = lossy(weights(64, 64)), weights(4, 64, seed=1).requires_grad_()
    torch.nn.functional.linear(x, held).sum().backward()
    gradient = x.grad
    x.grad = None
    torch.nn.functional.linear(x, held.dense()).sum().backward()
    assert same_bits(gradient, x.grad)


def test_copies_stay_lossy():
    model = compress_model_lossy(make(), mantissa_bits=1, block_size=32)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file)
    for other in (copy.deepcopy(model).state_dict(), state):
        weight = other["blocks.0.gate.weight"]
        assert isinstance(weight, LossyTensor)
        assert same_bits(weight.dense(), model.blocks[0].gate.weight.dense())
    model.load_state_dict(state)
    half = model.half().blocks[0].gate.weight
    assert isinstance(half, LossyTensor) and half.dtype == torch.float16
    precision = half.weight.precision
    assert (precision.mantissa_bits, precision.block_size) == (1, 32)


def test_a_new_value_is_rounded():
    model, other = compress_model_lossy(make(), mantissa_bits=1), make(seed=1)
    model.load_state_dict(compress_model(other).state_dict())
    held = model.blocks[0].gate.weight
    assert isinstance(held, LossyTensor)
    assert same_bits(held.dense(), lossy(other.blocks[0].gate.weight, 1).dense())


def test_files_hold_the_rounded_value(tmp_path):
    held = lossy(weights(64, 64), 0)
    save_file({"w": held}, tmp_path / "w.nz.safetensors")
    assert same_bits(load_file(tmp_path / "w.nz.safetensors")["w"], held.dense())


def test_compiled():
    torch._dynamo.reset()
    model = compress_model_lossy(make(layers=1), mantissa_bits=3)
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(compiled(batch(0)), model(batch(0)))


def test_damage_is_noticed():
    held = lossy(weights(64, 64))
    data = held.weight.frame
    assert precision_of(memory(data)).mantissa_bits == 3
    for position in range(0, len(data), 61):
        damaged = data.clone()
        damaged[position] ^= 0x55
        weight = held.weight.with_frame(damaged)
        with pytest.raises(NeuzipError):
            weight.check()
            weight.dense()
    for size in (0, 3, 20, 100, len(data) - 8):
        with pytest.raises(NeuzipError):
            held.weight.with_frame(data[:size]).check()


def test_lossless_stays_the_default():
    assert not any(isinstance(p, LossyTensor) for p in compress_model(make()).parameters())
    assert type(CompressedTensor.compress(weights(64, 64))) is CompressedTensor
