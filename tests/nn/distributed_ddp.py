"""DistributedDataParallel: the same training, dense and compressed, on each rank."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from distributed_group import digests, gradients, plain_names
from models import TinyLlama, batch, make
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from neuzip import InvalidArgument
from neuzip.nn import CompressedTensor, compress_model
from neuzip.optim import fused


class Adapted(nn.Module):
    """A frozen linear layer and a low-rank update of it."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features).to(base.weight.dtype) / rank)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, dtype=base.weight.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + (x @ self.a.t()) @ self.b.t()


def adapt(model: TinyLlama) -> TinyLlama:
    model.requires_grad_(False)
    for block in model.blocks:
        block.qkv, block.down = Adapted(block.qkv), Adapted(block.down)
    return model


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def train(
    model: TinyLlama,
    optimizer: Any,
    steps: int = 3,
    accumulate: int = 1,
    clip: float | None = None,
    **options: Any,
) -> list[Any]:
    rank, record = dist.get_rank(), []
    parallel = DistributedDataParallel(model, **options)
    opt = optimizer(parallel)
    for step in range(steps):
        for part in range(accumulate):
            last = part == accumulate - 1
            with contextlib.nullcontext() if last else parallel.no_sync():
                loss = parallel(batch(10 * step + 2 * part + rank))
                loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(parallel.parameters(), clip)
        record.append([loss.item(), gradients(model)])
        opt.step()
        opt.zero_grad()
    return [*record, digests(model)]


def both(optimizer: Any, fused_class: Any = None, model: Any = None, **options: Any) -> dict[str, Any]:
    """The records of a dense and a compressed run. Ranks start from different weights; the first's count."""
    settings = {"layers": 1, **(model or {})}
    theirs = train(make(dist.get_rank(), **settings), optimizer, **options)
    packed = compress_model(make(dist.get_rank(), **settings), min_size=64)
    ours = train(packed, fused_class or optimizer, **options)
    return {"theirs": theirs, "ours": ours, "plain": plain_names(packed)}


def full_adamw(folder: Path) -> Any:
    return both(adamw, model={"tied": True, "bias": True, "layers": 2})


def full_momentum(folder: Path) -> Any:
    return both(momentum, accumulate=2, clip=0.5, gradient_as_bucket_view=True)


def fused_after_backward(folder: Path) -> Any:
    return both(adamw, lambda model: fused(model, torch.optim.AdamW, lr=1e-3, in_backward=False))


def fused_in_backward(folder: Path) -> Any:
    try:
        fused(DistributedDataParallel(compress_model(make(layers=1))), torch.optim.SGD, lr=1e-3)
    except InvalidArgument as error:
        return str(error)
    return None


def adapters(folder: Path) -> Any:
    theirs = train(adapt(make(0, layers=1)), adamw)
    model = adapt(compress_model(make(0, layers=1), min_size=64))
    frozen = {id(p): p.weight.frame.clone() for p in model.parameters() if isinstance(p, CompressedTensor)}
    ours = train(model, adamw, init_sync=False)
    untouched = all(
        torch.equal(p.weight.frame, frozen[id(p)])
        for p in model.parameters()
        if isinstance(p, CompressedTensor)
    )
    return {"theirs": theirs, "ours": ours, "untouched": untouched, "frozen": len(frozen)}


CASES = (full_adamw, full_momentum, fused_after_backward, fused_in_backward, adapters)
