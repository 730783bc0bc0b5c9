"""Weights of a fixed width: every bit comes back, products are torch's, nothing of the form is ever written."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from models import batch, make, same_bits
from torch import nn

from neuzip import _native
from neuzip.errors import InvalidArgument
from neuzip.nn import (
    CompressedLinear,
    CompressedTensor,
    FixedWidthTensor,
    compress_model,
    compress_model_fixed_width,
    compress_model_lossy,
    decompress_model,
)
from neuzip.nn import fixed_width_code as code
from neuzip.nn.weight import decode
from neuzip.torch import load_file, save_file

ISAS = [name for name in ("scalar", "avx2", "avx512", "neon") if _native.isa_available(name)]
SPECIALS = [0x0000, 0x8000, 0x0001, 0x807F, 0x7F80, 0xFF80, 0x7F81, 0xFFFF, 0x7FC0, 0x7F7F, 0xFF7F, 0x0080]


@pytest.fixture(autouse=True)
def best_isa() -> Iterator[None]:
    yield
    _native.isa_select(None)


def bits(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def weights(*shape: int, seed: int = 0, specials: bool = False) -> torch.Tensor:
    dense = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.03).bfloat16()
    if specials and dense.numel() >= 2000:
        dense.view(-1)[7 : 7 + 150 * len(SPECIALS) : 150][: len(SPECIALS)] = bits(*SPECIALS)
    return dense


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "shape", [(64,), (1,), (63,), (65,), (3, 5, 7), (100, 130), (257, 64), (70_000, 3), (200, 4096)]
)
def test_every_bit_comes_back(shape: tuple[int, ...], isa: str) -> None:
    _native.isa_select(isa)
    dense = weights(*shape, specials=True)
    packed = FixedWidthTensor.compress(dense)
    assert same_bits(packed.dense(), dense)
    if dense.numel() > 4000:
        assert code.is_fixed_width(packed.weight.frame)
        assert packed.weight.nbytes < 0.77 * dense.nbytes


@pytest.mark.parametrize("isa", ISAS)
def test_every_pattern_comes_back(isa: str) -> None:
    """Each of the 65,536, among ordinary values."""
    _native.isa_select(isa)
    dense = weights(65 * 65536)
    dense[::65] = bits(*range(65536))
    packed = FixedWidthTensor.compress(dense)
    assert code.is_fixed_width(packed.weight.frame)
    assert same_bits(packed.dense(), dense)


@pytest.mark.parametrize("isa", ISAS)
def test_any_rows(isa: str) -> None:
    _native.isa_select(isa)
    dense = weights(37, 91, specials=True)
    held = FixedWidthTensor.compress(dense).weight
    for first, last in ((0, 37), (0, 1), (1, 2), (36, 37), (5, 30), (4, 4)):
        out = torch.full((last - first, 91), 7.0, dtype=torch.bfloat16)
        decode(held.frame, out, first_row=first)
        assert same_bits(out, dense[first:last])


def test_what_saves_nothing_is_a_frame() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(-(2**15), 2**15, (300, 128), generator=generator).short().view(torch.bfloat16)
    packed = FixedWidthTensor.compress(noise)
    assert not code.is_fixed_width(packed.weight.frame)
    assert same_bits(packed.dense(), noise)
    x = weights(3, 128)
    assert same_bits(F.linear(x, packed), F.linear(x, noise))
    with torch.no_grad():  # and a weight may become so, and ordinary again
        packed = FixedWidthTensor.compress(weights(300, 128))
        for value in noise, weights(300, 128, seed=3):
            packed.copy_(value)
            assert same_bits(packed.dense(), value)
    assert code.is_fixed_width(packed.weight.frame)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [(), (1,), (1, 1), (2,), (5,), (2, 3), (40,), (0,)])
@pytest.mark.parametrize("features", [(64, 1), (128, 300), (1024, 130), (100, 40), (4096, 20)])
def test_products_are_those_of_torch(features: tuple[int, int], rows: tuple[int, ...], bias: bool) -> None:
    inner, outer = features
    dense, x = weights(outer, inner, specials=rows == (5,)), weights(*rows, inner, seed=1) * 30
    added = weights(outer, seed=2) if bias else None
    packed = FixedWidthTensor.compress(dense)
    threads = torch.get_num_threads()
    try:
        for count in 1, 3:
            torch.set_num_threads(count)
            assert same_bits(F.linear(x, packed, added), F.linear(x, dense, added))
    finally:
        torch.set_num_threads(threads)


def test_products_of_what_is_not_plain() -> None:
    dense = weights(96, 128)
    packed = FixedWidthTensor.compress(dense)
    x, bias = weights(6, 256, seed=1), weights(96, seed=2)
    framed = CompressedTensor.compress(bias)
    for case in x[:, :128], x[::2, 128:], x[:, :128].float().requires_grad_(), x.T[:128].T:
        assert same_bits(F.linear(case, packed.to(case.dtype)), F.linear(case, dense.to(case.dtype)))
    row = x[:1, :128].contiguous()
    assert same_bits(F.linear(row, packed, framed), F.linear(row, dense, bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert same_bits(F.linear(row.float(), packed), F.linear(row.float(), dense))


@pytest.mark.skipif("avx2" not in ISAS, reason="the fused loops are for AVX2")
def test_loops_are_tried_and_used() -> None:
    """On a processor whose torch sums otherwise, the loops must know; on the others, they must be used."""
    dense, x = weights(96, 128), weights(2, 128, seed=1)
    packed = FixedWidthTensor.compress(dense).weight.frame
    product = code.linear_fixed_width(x, packed, None, 96)
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        assert product is None
        return
    assert product is not None
    assert same_bits(product, F.linear(x, dense))
    assert code.linear_fixed_width(x[:, :100].contiguous(), packed, None, 96) is None
    assert code.linear_fixed_width(x.float(), packed, None, 96) is None
    _native.isa_select("scalar")
    assert code.linear_fixed_width(x, packed, None, 96) is None


@pytest.mark.parametrize("isa", ISAS)
def test_loops_agree(isa: str) -> None:
    """Those of each instruction set, on values whose products overflow, vanish and are no numbers."""
    dense, x = weights(50, 256, specials=True), weights(3, 256, seed=1)
    x[1] *= 1e-38
    x[2] *= 1e38
    bias = weights(50, seed=2)
    packed = FixedWidthTensor.compress(dense).weight.frame
    _native.isa_select("scalar")
    expected = code._multiply(x, packed, bias, 50), code._multiply(x[:1], packed, None, 50)
    _native.isa_select(isa)
    found = code._multiply(x, packed, bias, 50), code._multiply(x[:1], packed, None, 50)
    for one, other in zip(expected, found, strict=True):
        assert same_bits(one, other)


def test_products_that_are_refused() -> None:
    packed = FixedWidthTensor.compress(weights(8, 128)).weight.frame
    x = weights(1, 128)
    for wrong, out_features in ((packed[:-8], 8), (packed, 9), (packed[:40].clone(), 8), (packed + 1, 8)):
        with pytest.raises(InvalidArgument):
            code._multiply(x, wrong, None, out_features)
    with pytest.raises(InvalidArgument):
        _native.fixed_decode(packed.numpy(), 8 * 128, torch.zeros(2, dtype=torch.uint8).numpy(), 1)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_models_answer_as_before(tied: bool, bias: bool) -> None:
    model = make(tied=tied, bias=bias).eval()
    packed = compress_model_fixed_width(copy.deepcopy(model))
    again = compress_model_fixed_width(compress_model(copy.deepcopy(model)))
    assert sum(isinstance(p, FixedWidthTensor) for p in packed.parameters()) > 8
    assert isinstance(packed.blocks[0].qkv, CompressedLinear)
    assert tied == (packed.head.weight is packed.embed.weight)
    ids = batch(0)
    with torch.no_grad():
        expected = model.logits(ids)
        for ours in packed, again, compress_model_fixed_width(packed):
            assert same_bits(ours.logits(ids), expected)
            assert same_bits(ours.logits(ids[:1, :1]), model.logits(ids[:1, :1]))
    for name, parameter in decompress_model(packed).named_parameters():
        assert same_bits(parameter.detach(), model.get_parameter(name).detach())


def test_gradients_pass_through() -> None:
    """As to adapters below a layer."""
    dense, x = weights(96, 128), weights(4, 128, seed=1).requires_grad_()
    packed = FixedWidthTensor.compress(dense)
    F.linear(x, packed).float().square().sum().backward()
    found, x.grad = x.grad, None
    F.linear(x, dense).float().square().sum().backward()
    assert same_bits(found, x.grad)


def test_files_and_pickles_hold_frames(tmp_path) -> None:
    model = make(tied=True)
    packed = compress_model_fixed_width(copy.deepcopy(model))
    state = packed.state_dict()
    save_file({name: value for name, value in state.items() if name != "head.weight"}, tmp_path / "a.nz")
    for name, value in load_file(tmp_path / "a.nz").items():
        assert same_bits(value, model.state_dict()[name])
    buffer = io.BytesIO()
    torch.save(state, buffer)
    assert b"NZ12" not in buffer.getvalue() and b"NZFR" in buffer.getvalue()
    buffer.seek(0)
    loaded = torch.load(buffer)
    assert all(type(value) in (CompressedTensor, torch.Tensor) for value in loaded.values())
    other = compress_model_fixed_width(make(seed=5, tied=True))
    other.load_state_dict(loaded)
    for name, value in other.state_dict().items():
        assert same_bits(value, model.state_dict()[name])
    assert isinstance(other.head.weight, FixedWidthTensor)
    clone = copy.deepcopy(packed)
    assert isinstance(clone.head.weight, FixedWidthTensor) and clone.head.weight is clone.embed.weight


def test_what_is_refused() -> None:
    packed = FixedWidthTensor.compress(weights(80, 64))
    with pytest.raises(InvalidArgument, match="takes no gradient"):
        packed.requires_grad_()
    with pytest.raises(InvalidArgument, match="float32"):
        FixedWidthTensor.compress(weights(80, 64).float())
    with pytest.raises(InvalidArgument, match="meta"):
        compress_model_fixed_width(nn.Linear(80, 80, device="meta", dtype=torch.bfloat16))
    with pytest.raises(InvalidArgument, match="lossy"):
        compress_model_fixed_width(compress_model_lossy(make(), mantissa_bits=3))
    model = compress_model_fixed_width(nn.Linear(80, 80))  # of another dtype: compressed as ever
    assert type(model.weight.data) is CompressedTensor
