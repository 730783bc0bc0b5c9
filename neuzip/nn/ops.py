"""The linear layer on a compressed weight: decoded in forward, again in backward, and never saved in between.

The two operators are opaque to torch.compile: were decoding an operator of its own, the partitioner would
save its dense result for backward.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from neuzip.nn.fixed_width_code import is_fixed_width, linear_fixed_width
from neuzip.nn.scratch import scratch
from neuzip.nn.team import torch_options
from neuzip.nn.weight import CHUNK_LOG2, decode
from neuzip.torch import works_on

if TYPE_CHECKING:
    from neuzip.nn.tensor import CompressedTensor


_CUT = 64
"""Rows or columns of a matrix that pieces are cut at multiples of. A product of a piece is then the piece of the whole
product, bit for bit; one of fewer rows or columns may take another kernel.
"""


def pieces(shape: Sequence[int], dtype: torch.dtype, piece_bytes: int) -> Iterator[tuple[int, int]]:
    """Row ranges of about ``piece_bytes`` dense bytes (but at least one row) that cover a weight."""
    row = torch.Size(shape[1:]).numel() * dtype.itemsize
    return _ranges(shape[0], max(1, piece_bytes // max(1, row)))


def _ranges(count: int, size: int) -> Iterator[tuple[int, int]]:
    if size >= _CUT:
        size -= size % _CUT
    starts = list(range(0, count, size))
    if len(starts) > 1 and count - starts[-1] < min(_CUT, size):
        del starts[-1]
    return itertools.pairwise([*starts, count])


def dense_pieces(
    frame: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    piece_bytes: int,
    device: torch.device | None = None,
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """The weight of a frame in pieces: first row, end row, and those rows, valid until the next piece.

    device: where they go, if not where the frame lies.
    """
    device = frame.device if device is None else device
    if device != frame.device and works_on(device):
        from neuzip.nn.device import fetched

        frame = fetched(frame, device)
    options = torch_options()
    for start, stop in pieces(shape, dtype, piece_bytes):
        yield start, stop, decode(frame, scratch((stop - start, *shape[1:]), dtype, device), options, start)


def dense_columns(
    frame: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    piece_bytes: int,
    device: torch.device | None = None,
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """A matrix in blocks of columns: first column, end column, and those columns, valid until the next block.

    A product over the rows cannot be added up from pieces of rows without rounding otherwise. Every block decodes the
    whole frame, an eighth of ``piece_bytes`` at a time. device: as of dense_pieces.
    """
    device = frame.device if device is None else device
    rows, columns = shape
    size = rows * columns * dtype.itemsize
    ranges = list(_ranges(columns, max(_CUT, piece_bytes // max(1, rows * dtype.itemsize))))
    if size <= piece_bytes or len(ranges) == 1:
        for _, _, whole in dense_pieces(frame, shape, dtype, max(1, size), device):
            yield 0, columns, whole
        return
    widest = max(stop - start for start, stop in ranges)
    memory = torch.empty(rows * widest, dtype=dtype, device=device)
    for start, stop in ranges:
        block = memory[: rows * (stop - start)].view(rows, stop - start)
        for first, last, piece in dense_pieces(frame, shape, dtype, piece_bytes // 8, device):
            block[first:last] = piece[:, start:stop]
        yield start, stop, block


def _multiply(
    x: torch.Tensor,
    frame: torch.Tensor,
    bias: torch.Tensor | None,
    shape: Sequence[int],
    dtype: torch.dtype,
    piece_bytes: int,
) -> torch.Tensor:
    if works_on(x.device):
        from neuzip.nn.device import fused_linear

        frame, fused = fused_linear(x, frame, bias, shape)
        if fused is not None:
            return fused
    elif is_fixed_width(frame) and (product := linear_fixed_width(x, frame, bias, shape[0])) is not None:
        return product
    out: torch.Tensor | None = None
    for start, stop, piece in dense_pieces(frame, shape, dtype, piece_bytes, x.device):
        part = F.linear(x, piece.to(x.dtype), None if bias is None else bias[start:stop])
        if stop - start == shape[0]:
            return part
        if out is None:
            out = x.new_empty((*x.shape[:-1], shape[0]))
        out[..., start:stop] = part
    return x.new_zeros((*x.shape[:-1], shape[0])) if out is None else out


_linear_op = torch.library.custom_op("neuzip::linear", _multiply, mutates_args=())


@_linear_op.register_fake
def _(
    x: torch.Tensor,
    frame: torch.Tensor,
    bias: torch.Tensor | None,
    shape: Sequence[int],
    dtype: torch.dtype,
    piece_bytes: int,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], shape[0]))


@torch.library.custom_op("neuzip::linear_dx", mutates_args=())
def _linear_dx_op(
    grad: torch.Tensor, frame: torch.Tensor, shape: Sequence[int], dtype: torch.dtype, piece_bytes: int
) -> torch.Tensor:
    flat = grad.reshape(-1, shape[0])
    out: torch.Tensor | None = None
    for start, stop, block in dense_columns(frame, shape, dtype, piece_bytes, grad.device):
        part = flat.mm(block.to(grad.dtype))
        if stop - start == shape[1]:
            return part.view(*grad.shape[:-1], shape[1])
        if out is None:
            out = flat.new_empty((flat.shape[0], shape[1]))
        out[:, start:stop] = part
    if out is None:
        out = flat.new_zeros((flat.shape[0], shape[1]))
    return out.view(*grad.shape[:-1], shape[1])


@_linear_dx_op.register_fake
def _(
    grad: torch.Tensor, frame: torch.Tensor, shape: Sequence[int], dtype: torch.dtype, piece_bytes: int
) -> torch.Tensor:
    return grad.new_empty((*grad.shape[:-1], shape[1]))


_EMBEDDING_BLOCK = 1 << CHUNK_LOG2
"""Elements, at most, of an embedding that are decoded for one row among them."""
_EMBEDDING_BLOCKS = 16
"""Neighbouring blocks, at most, that are decoded together."""


@torch.library.custom_op("neuzip::embedding", mutates_args=())
def _embedding_op(
    indices: torch.Tensor, frame: torch.Tensor, shape: Sequence[int], dtype: torch.dtype
) -> torch.Tensor:
    if works_on(indices.device):
        from neuzip.nn.device import embedding_there

        return embedding_there(indices, frame, shape, dtype)
    flat, host = indices.reshape(-1).cpu(), frame.cpu()
    out = torch.empty((flat.numel(), shape[1]), dtype=dtype, device=indices.device)
    if not flat.numel():
        return out.view(*indices.shape, shape[1])
    ids, order = flat.sort()
    if ids[0] < 0 or ids[-1] >= shape[0]:
        raise IndexError(f"an index is outside of the embedding's {shape[0]} rows")
    options = torch_options()
    for begin, end, start, stop in _embedding_runs(ids, shape, 1 if is_fixed_width(host) else None):
        rows = decode(host, scratch((stop - start, shape[1]), dtype), options, start)
        out[order[begin:end].to(out.device)] = rows[ids[begin:end] - start].to(out.device)
    return out.view(*indices.shape, shape[1])


def _embedding_runs(
    ids: torch.Tensor, shape: Sequence[int], block: int | None
) -> Iterator[tuple[int, int, int, int]]:
    """Ranges of sorted ids, and the range of rows to be decoded for each: neighbouring blocks of ``block`` rows.

    By default as many rows as fill about a chunk, a power of two: blocks end where chunks do, for most widths.
    """
    if block is None:
        block = 1 << (max(1, _EMBEDDING_BLOCK // max(1, shape[1])).bit_length() - 1)
    blocks = ids // block
    ends = (blocks.diff() > 1) | ((blocks // _EMBEDDING_BLOCKS).diff() > 0)
    for begin, end in itertools.pairwise([0, *(ends.nonzero().squeeze(1) + 1).tolist(), len(ids)]):
        yield begin, end, int(blocks[begin]) * block, min(int(blocks[end - 1] + 1) * block, shape[0])


@_embedding_op.register_fake
def _(indices: torch.Tensor, frame: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty((*indices.shape, shape[1]), dtype=dtype, device=indices.device)


class _Linear(torch.autograd.Function):
    """y = x Wᵀ + b with the gradients that ordinary autograd computes, by the same matrix products."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: CompressedTensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        ctx.needs = needs_x, needs_weight, needs_bias
        # A frozen weight (LoRA's base) does not need its input in backward.
        ctx.save_for_backward(x if needs_weight else None, weight)
        held = weight.weight
        result: torch.Tensor = torch.ops.neuzip.linear(
            x, held.frame, bias, held.shape, held.dtype, held.piece_bytes
        )
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs
        held = weight.weight
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            grad_x = torch.ops.neuzip.linear_dx(grad, held.frame, held.shape, held.dtype, held.piece_bytes)
        flat = grad.reshape(-1, held.shape[0])
        if needs_weight:
            grad_weight = flat.t().mm(x.reshape(-1, held.shape[1])).to(held.dtype)
        if needs_bias:
            grad_bias = flat.sum(0)
        return grad_x, grad_weight, grad_bias


def _is_immediate(x: torch.Tensor, weight: CompressedTensor, bias: torch.Tensor | None) -> bool:
    """Whether a product is wanted at once: nothing records or traces it. Operators and autograd cost some 50 µs,
    which a token would pay at every layer.
    """
    if torch.compiler.is_compiling() or type(x) is not torch.Tensor:
        return False
    operands = (x, weight) if bias is None else (x, weight, bias)
    return not (torch.is_grad_enabled() and any(each.requires_grad for each in operands))


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``F.linear`` for a compressed weight (out, in), input (…, in) and bias (out,)."""
    from neuzip.nn.tensor import CompressedTensor

    with torch._C.DisableTorchFunctionSubclass():
        if not isinstance(weight, CompressedTensor) or isinstance(x, CompressedTensor):
            return F.linear(x, weight, bias)
        if weight.dim() != 2 or not weight.is_whole():
            return F.linear(x, weight, bias)
        immediate = _is_immediate(x, weight, bias)
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
    if immediate:
        held, bias = weight.weight, bias.dense() if isinstance(bias, CompressedTensor) else bias
        return _multiply(x, held.frame, bias, held.shape, held.dtype, held.piece_bytes)
    result: torch.Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return result
