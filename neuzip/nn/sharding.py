"""FSDP2 on compressed parameters: what a shard sends, and how the shards make the parameter again.

``fully_shard`` gives each rank its rows as a compressed tensor and asks it for all-gather inputs and for the
parameter made of all ranks' outputs. Its buffers keep the size they had at the first all-gather, equal on all
ranks, while frames differ in size between ranks and steps. So a fixed part of each frame travels through
FSDP's own all-gather, and what is beyond it, if there is any, in a second one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from neuzip.errors import InvalidArgument
from neuzip.nn.ops import dense_pieces
from neuzip.nn.weight import Weight

if TYPE_CHECKING:
    from neuzip.nn.tensor import CompressedTensor

_PREFIX = 8
"""Bytes of the frame's size, int64, before its first part."""

_RESERVED_EIGHTHS = {2: 6, 4: 7}
"""Eighths of a shard's dense bytes reserved for its frame, by element size. Trained bf16 weights take two
thirds, fp32 five sixths; what takes more pays for a second all-gather."""

_HEADER = 256
"""Bytes reserved beside that for the header and the chunk table of small shards."""

_PIECE_BYTES = 4 << 20
"""Dense bytes decoded at a time on their way into the parameter: few enough to stay in the cache."""


@dataclass(frozen=True)
class Sent:
    """What a rank remembers of its shard between the two halves of an all-gather.

    weight: the shard's. frame: as it was sent; None if dense rows were. group: of ranks, for a second
    all-gather.
    """

    weight: Weight
    frame: torch.Tensor | None
    group: Any


def reserved_bytes(weight: Weight) -> int:
    """Bytes of a shard's fixed part: equal on all ranks, in all steps."""
    eighths = _RESERVED_EIGHTHS.get(weight.dtype.itemsize, 8)
    return _PREFIX + _HEADER + weight.dense_nbytes * eighths // 8


def pre_all_gather(
    shard: CompressedTensor, mesh: Any, outer_size: torch.Size, policy: Any
) -> tuple[tuple[torch.Tensor, ...], Sent]:
    """FSDP's inputs of a shard: the fixed part of its frame, uint8 (reserved_bytes,).

    Where frames cannot be put together by rows, or a cast would shrink the dense rows below them, the dense
    shard is sent, padded to the same size on all ranks: if rows do not divide by the ranks, if another
    dimension is sharded, or with a mixed precision policy.
    """
    weight = shard.weight
    cast = policy.param_dtype
    by_rows = tuple(outer_size) == (weight.shape[0] * mesh.size(), *weight.shape[1:])
    if not by_rows or cast not in (None, weight.dtype):
        return (weight.dense().to(cast or weight.dtype),), Sent(weight, None, None)
    frame = weight.frame
    sent = frame.new_zeros(reserved_bytes(weight))
    sent[:_PREFIX].view(torch.int64).fill_(frame.numel())
    part = frame[: sent.numel() - _PREFIX]
    sent[_PREFIX : _PREFIX + part.numel()] = part
    return (sent,), Sent(weight, frame, mesh.get_group())


def post_all_gather(
    outputs: Sequence[torch.Tensor], sent: Sent, dtype: torch.dtype, out: torch.Tensor | None
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]] | None:
    """The dense parameter of all shards, and the tensors that FSDP frees after use; written to ``out`` if
    given.

    Raises CorruptFrame and the like for what another rank has sent.
    """
    (gathered,) = outputs
    if sent.frame is None:
        if gathered.dtype != dtype:
            raise InvalidArgument(f"shards were sent as {gathered.dtype}, the parameter is {dtype}")
        return None if out is not None else (gathered, ())  # FSDP owns this memory; out is a view of it
    frames = _frames(gathered.view(-1, reserved_bytes(sent.weight)), sent)
    rows, *others = sent.weight.shape
    if out is None:
        whole = torch.empty((rows * len(frames), *others), dtype=sent.weight.dtype, device=gathered.device)
    else:
        whole = out.detach()
    # Backward finds the same values in it, decoded again; tensors of inference mode count no versions.
    versioned = () if out is None or out.is_inference() else (out,)
    with _unsafe_preserve_version_counter(versioned):
        for rank, frame in enumerate(frames):
            _decode_rows(frame, whole[rank * rows : (rank + 1) * rows], sent.weight)
    # The frames are of no use any more; FSDP gives them memory again before the next all-gather.
    gathered.untyped_storage().resize_(0)
    return None if out is not None else (whole, (whole,))


def _frames(parts: torch.Tensor, sent: Sent) -> list[torch.Tensor]:
    """All ranks' frames: their fixed parts (ranks, reserved_bytes), and a second all-gather if need be."""
    room = parts.shape[1] - _PREFIX
    sizes = [int(part[:_PREFIX].clone().view(torch.int64)) for part in parts]
    excess = max(sizes) - room  # the same on all ranks, so all of them take the same branch
    if excess <= 0:
        return [part[_PREFIX : _PREFIX + size] for part, size in zip(parts, sizes, strict=True)]
    assert sent.frame is not None
    mine = parts.new_zeros(excess)
    rest = sent.frame[room:]
    mine[: rest.numel()] = rest
    others = parts.new_empty((parts.shape[0], excess))
    dist.all_gather(list(others), mine, group=sent.group)
    return [
        torch.cat([part[_PREFIX:], other])[:size]
        for part, other, size in zip(parts, others, sizes, strict=True)
    ]


def _decode_rows(frame: torch.Tensor, out: torch.Tensor, weight: Weight) -> None:
    # Through copies, because FSDP resizes both storages, and torch pins down any that NumPy has seen.
    for start, stop, piece in dense_pieces(frame.clone(), weight.shape, weight.dtype, _PIECE_BYTES):
        out[start:stop].copy_(piece)
