"""CompressedTensor: an ordinary tensor to everyone, equal in every bit, and never dense for longer than an
operation.
"""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from models import same_bits
from torch import nn

from neuzip import InvalidArgument
from neuzip.nn import CompressedLinear, CompressedTensor
from neuzip.nn import ops as nn_ops

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def weight(shape=(96, 80), dtype=torch.bfloat16, seed=0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


def parameter(dense: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(CompressedTensor.compress(dense))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 5), (1,), (3, 5), (7, 11, 13), (300, 700)])
@pytest.mark.parametrize("level", ["default", "max"])
def test_round_trip_keeps_every_bit(dtype, shape, level):
    dense = weight(shape, dtype)
    packed = CompressedTensor.compress(dense, level)
    assert (packed.shape, packed.dtype, packed.stride(), packed.device) == (
        dense.shape,
        dense.dtype,
        dense.stride(),
        dense.device,
    )
    assert same_bits(packed.dense(), dense)


def test_every_bit_pattern_survives():
    patterns = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        dense = patterns.view(dtype).view(256, 256)
        assert same_bits(CompressedTensor.compress(dense).dense(), dense)


def test_random_bits_stay_at_raw_size():
    dense = torch.randint(-32768, 32768, (512, 512), dtype=torch.int16).view(torch.bfloat16)
    packed = CompressedTensor.compress(dense)
    assert same_bits(packed.dense(), dense)
    assert packed.weight.nbytes <= dense.nbytes * 1.001 + 256


def test_integers_are_refused():
    with pytest.raises(InvalidArgument, match="float"):
        CompressedTensor.compress(torch.arange(10))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("lead", [(5,), (2, 7), (2, 3, 4), ()])
def test_linear_equals_dense_in_value_and_gradients(bias, lead):
    dense = weight()
    packed, plain = parameter(dense), nn.Parameter(dense.clone())
    offset = nn.Parameter(weight((96,), seed=1)) if bias else None
    other = nn.Parameter(offset.detach().clone()) if bias else None
    x = weight((*lead, 80), seed=2).requires_grad_()
    y = x.detach().clone().requires_grad_()
    ours, theirs = F.linear(x, packed, offset), F.linear(y, plain, other)
    assert same_bits(ours, theirs)
    for result in (ours, theirs):
        result.float().square().sum().backward()
    assert type(packed.grad) is torch.Tensor
    assert same_bits(packed.grad, plain.grad)
    assert same_bits(x.grad, y.grad)
    assert not bias or same_bits(offset.grad, other.grad)


@pytest.mark.parametrize(
    "operation",
    [
        lambda w: w.t() @ weight((96, 3), seed=5),
        lambda w: w[3:50, ::2].float().sum(1),
        lambda w: w.sum() * 2,
        lambda w: torch.cat([w, w]).norm(),
        lambda w: w.view(-1)[7:99].exp(),
        lambda w: w.unsqueeze(0).expand(3, 96, 80).mean((0, 1)),
        lambda w: torch.einsum("oi,bi->bo", w, weight((4, 80), seed=6)),
    ],
)
def test_any_operation_and_its_gradient(operation):
    dense = weight()
    packed, plain = parameter(dense), nn.Parameter(dense.clone())
    ours, theirs = operation(packed), operation(plain)
    assert same_bits(ours, theirs)
    ours.float().sum().backward()
    theirs.float().sum().backward()
    assert same_bits(packed.grad, plain.grad)


def test_views_stay_compressed():
    packed = CompressedTensor.compress(weight())
    for view in (packed.t(), packed[2:5], packed.detach(), packed.view(-1), packed.unsqueeze(0)):
        assert isinstance(view, CompressedTensor)
        assert view.weight is packed.weight


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.mul_(1.5),
        lambda w: w.zero_(),
        lambda w: w.copy_(weight(seed=9)),
        lambda w: w[3].fill_(2.0),
        lambda w: w.t()[1].add_(w[0, 0]),
        lambda w: w.addcmul_(weight(seed=3), weight(seed=4), value=0.5),
        lambda w: torch._foreach_mul_([w], 0.5),
        lambda w: w[2:4].copy_(weight((2, 80), seed=8)),
    ],
)
def test_writes_are_compressed_again(write):
    dense = weight()
    packed = CompressedTensor.compress(dense)
    with torch.no_grad():
        write(packed)
        write(dense)
    assert same_bits(packed.dense(), dense)


def test_in_place_result_is_the_tensor_itself():
    packed = CompressedTensor.compress(weight())
    assert packed.mul_(2) is packed


def test_a_stale_saved_weight_raises():
    packed = parameter(weight())
    x = weight((4, 80), seed=2).requires_grad_()
    y = F.linear(x, packed)
    with torch.no_grad():
        packed.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.float().sum().backward()


@pytest.mark.parametrize("mode", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_equal_and_independent(mode):
    packed = parameter(weight())
    packed.grad = weight(seed=7)
    if mode == "deepcopy":
        other = copy.deepcopy(packed)
        assert same_bits(other.grad, packed.grad)
    elif mode == "pickle":
        other = pickle.loads(pickle.dumps(packed))
    else:
        file = io.BytesIO()
        torch.save(packed, file)
        other = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert isinstance(other, CompressedTensor)
    assert isinstance(other, nn.Parameter)
    assert same_bits(other.dense(), packed.dense())
    with torch.no_grad():
        other.zero_()
    assert packed.dense().count_nonzero() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_conversions_compress_the_result(dtype):
    linear = CompressedLinear.from_linear(nn.Linear(80, 96).bfloat16())
    plain = nn.Linear(80, 96).bfloat16()
    plain.load_state_dict({k: getattr(v, "dense", v.clone)() for k, v in linear.state_dict().items()})
    linear, plain = linear.to(dtype), plain.to(dtype)
    assert isinstance(linear.weight, CompressedTensor)
    assert same_bits(linear.weight.dense(), plain.weight)


def test_autocast_equals_dense():
    dense = weight(dtype=torch.float32)
    packed, plain = parameter(dense), nn.Parameter(dense.clone())
    x = weight((4, 80), torch.float32, seed=2)
    results = []
    for w in (packed, plain):
        with torch.autocast("cpu", torch.bfloat16):
            y = F.linear(x, w)
        y.float().sum().backward()
        results.append(y)
    assert same_bits(*results)
    assert same_bits(packed.grad, plain.grad)


@pytest.mark.parametrize(("rows", "columns", "count"), [(5000, 80, 9), (300, 8000, 40)])
def test_embedding_equals_dense(rows, columns, count):
    dense = weight((rows, columns))
    packed, plain = parameter(dense), nn.Parameter(dense.clone())
    ids = torch.randint(0, rows, (3, count), generator=torch.Generator().manual_seed(0))
    for weights in (packed, plain):
        (F.embedding(ids, weights).float() ** 2).sum().backward()
    assert same_bits(F.embedding(ids, packed), F.embedding(ids, plain))
    assert same_bits(packed.grad, plain.grad)
    assert F.embedding(ids[:0], packed).shape == (0, count, columns)
    for wrong in (-1, rows):
        with pytest.raises(IndexError):
            F.embedding(torch.tensor([wrong]), packed)


@pytest.mark.parametrize("kind", ["Conv1d", "Conv2d"])
def test_convolutions(kind):
    torch.manual_seed(0)
    layer = getattr(nn, kind)(4, 6, 3).bfloat16()
    x = torch.randn(2, 4, *([12] * (2 if kind == "Conv2d" else 1))).bfloat16()
    theirs = layer(x)
    theirs.float().square().sum().backward()
    grad, layer.weight.grad = layer.weight.grad, None
    layer.weight = parameter(layer.weight.detach())
    ours = layer(x)
    ours.float().square().sum().backward()
    assert same_bits(ours, theirs)
    assert same_bits(layer.weight.grad, grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(300, 200), (641, 130), (64, 1100), (1100, 50), (70, 65)])
@pytest.mark.parametrize("rows", [64, 100, 1])  # of the weight in a piece
def test_pieces_give_the_same_bits(dtype, shape, rows, monkeypatch):
    cut = []
    original = nn_ops.dense_columns

    def counted(*args):
        for start, stop, block in original(*args):
            cut.append((start, stop))
            yield start, stop, block

    monkeypatch.setattr(nn_ops, "dense_columns", counted)
    dense = weight(shape, dtype)
    piece_bytes = shape[1] * dtype.itemsize * rows
    packed = nn.Parameter(CompressedTensor.compress(dense, piece_bytes=piece_bytes))
    plain = nn.Parameter(dense.clone())
    x = weight((5, shape[1]), dtype, seed=2).requires_grad_()
    y = x.detach().clone().requires_grad_()
    results = F.linear(x, packed), F.linear(y, plain)
    if rows > 1:  # single rows are another kernel's
        assert same_bits(*results)
    for result in results:
        result.float().square().sum().backward() if rows > 1 else result.backward(torch.ones_like(result))
    assert same_bits(x.grad, y.grad)
    assert same_bits(packed.grad, plain.grad)
    assert cut[0][0] == 0 and cut[-1][1] == shape[1]
    assert len(cut) == 1 or all(stop - start >= 64 for start, stop in cut)


def test_gradients_of_gradients_are_refused():
    packed, x = parameter(weight()), weight((4, 80), seed=2).requires_grad_()
    (grad,) = torch.autograd.grad(F.linear(x, packed).float().square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.float().sum().backward()
