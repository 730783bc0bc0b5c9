"""fully_shard (FSDP2): the same training on dense and on compressed shards."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from distributed_ddp import adamw, adapt, momentum
from distributed_group import digests, gradients, local, plain_names
from models import batch, make
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

from neuzip import InvalidArgument
from neuzip.nn import CompressedTensor, compress_model
from neuzip.optim import fused


def shard(model: nn.Module, **options: Any) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def train(
    model: Any,
    optimizer: Any,
    steps: int = 2,
    first: int = 0,
    accumulate: int = 1,
    clip: float | None = None,
    in_backward: bool = False,
) -> list[Any]:
    rank, record = dist.get_rank(), []
    opt = optimizer(model)
    for step in range(first, first + steps):
        for part in range(accumulate):
            model.set_requires_gradient_sync(part == accumulate - 1)
            loss = model(batch(10 * step + 2 * part + rank))
            loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        record.append([loss.item(), None if in_backward else gradients(model)])
        opt.step()
        opt.zero_grad()
    return [*record, digests(model)]


def both(
    optimizer: Any, ours: Any = None, model: Any = None, options: Any = None, **training: Any
) -> dict[str, Any]:
    settings = {"layers": 1, **(model or {})}
    dense = shard(make(0, **settings), **(options or {}))
    packed = shard(compress_model(make(0, **settings), min_size=64), **(options or {}))
    theirs = train(dense, optimizer, **training)
    return {
        "theirs": theirs,
        "ours": train(packed, ours or optimizer, **training),
        "plain": plain_names(packed),
    }


def full_adamw(folder: Path) -> Any:
    return both(adamw, model={"tied": True, "bias": True, "layers": 3}, steps=3)


def odd_rows(folder: Path) -> Any:
    return both(adamw, model={"vocab": 513, "hidden": 161})


def kept_after_forward(folder: Path) -> Any:
    return both(momentum, options={"reshard_after_forward": False}, accumulate=2, clip=0.5)


def mixed_precision(folder: Path) -> Any:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return both(adamw, model={"dtype": torch.float32, "vocab": 513}, options={"mp_policy": policy})


def fp32(folder: Path) -> Any:
    return both(momentum, model={"dtype": torch.float32})


def other_dimension(folder: Path) -> Any:
    return both(
        adamw,
        options={"shard_placement_fn": lambda p: Shard(1) if p.dim() == 2 and p.shape[0] > 100 else Shard(0)},
    )


def offloaded(folder: Path) -> Any:
    return both(adamw, model={"vocab": 513}, options={"offload_policy": CPUOffloadPolicy(pin_memory=False)})


def fused_in_backward(folder: Path) -> Any:
    options = {"lr": 1e-3}
    return both(adamw, lambda model: fused(model, torch.optim.AdamW, **options), in_backward=True)


def adapters(folder: Path) -> Any:
    theirs = train(shard(adapt(make(0, layers=1))), adamw)
    model = shard(adapt(compress_model(make(0, layers=1), min_size=1024)))
    ours = train(model, adamw)
    return {"theirs": theirs, "ours": ours, "frozen": len(list(model.parameters())) - len(plain_names(model))}


def growing_frames(folder: Path) -> Any:
    """Frames that outgrow their place in the all-gather: weights that were zeros become random bits."""
    records = []
    for packed in (False, True):
        model = make(0, layers=1)
        with torch.no_grad():
            model.head.weight.zero_()
        model = shard(compress_model(model) if packed else model)
        first = [model(batch(0)).item(), model(batch(1)).item()]
        model.reshard()
        part = local(model.head.weight)
        generator = torch.Generator().manual_seed(dist.get_rank())
        noise = torch.randint(-(1 << 15), 1 << 15, part.shape, generator=generator, dtype=torch.int16)
        with torch.no_grad():
            part.copy_((noise & ~0x4000).view(torch.bfloat16))  # below 2, and random otherwise
        size = part.weight.nbytes / part.weight.dense_nbytes if packed else 1.0
        last = [model(batch(step)).item() for step in (2, 3)]
        records.append([first, last, digests_after_reshard(model), size])
    return {"theirs": records[0][:3], "ours": records[1][:3], "size": records[1][3]}


def without_gradients(folder: Path) -> Any:
    records = []
    for packed in (False, True):
        model = shard(
            compress_model(make(0, vocab=513, layers=1)) if packed else make(0, vocab=513, layers=1)
        )
        losses = []
        for mode in (torch.no_grad, torch.inference_mode, torch.inference_mode, torch.no_grad):
            with mode():
                losses.append(model(batch(0)).item())
        records.append([losses, train(model, adamw)])
    return {"theirs": records[0], "ours": records[1]}


def inference_first(folder: Path) -> Any:
    records = []
    for packed in (False, True):
        model = shard(compress_model(make(0, layers=1)) if packed else make(0, layers=1))
        with torch.inference_mode():
            losses = [model(batch(step)).item() for step in range(2)]
        records.append(losses)
    return {"theirs": records[0], "ours": records[1]}


def digests_after_reshard(model: Any) -> dict[str, str]:
    model.reshard()
    return digests(model)


def memory(folder: Path) -> Any:
    """Dense bytes of bf16 tensors between steps: compressed shards, and ordinary ones as the control."""
    counts = []
    for packed in (True, False):
        model = make(0, vocab=2048)
        model = shard(compress_model(model, min_size=1024) if packed else model)
        opt = torch.optim.SGD(model.parameters(), lr=0.01)
        for step in range(2):
            model(batch(step, vocab=2048)).backward()
            opt.step()
            opt.zero_grad()
        counts.append(_dense_bytes())
        frames = sum(
            local(p).weight.nbytes for p in model.parameters() if isinstance(local(p), CompressedTensor)
        )
        if packed:
            compressed = frames
        del model, opt
    return {"packed": counts[0], "control": counts[1], "frames": compressed}


def _dense_bytes() -> int:
    gc.collect()
    storages = {}
    for value in gc.get_objects():
        if (
            type(value) in (torch.Tensor, nn.Parameter)
            and value.dtype == torch.bfloat16
            and not value.is_meta
        ):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(size for pointer, size in storages.items() if pointer)


def sharded_first(folder: Path) -> Any:
    try:
        compress_model(shard(make(0, layers=1)))
    except InvalidArgument as error:
        return str(error)
    return None


CASES = (
    full_adamw,
    odd_rows,
    kept_after_forward,
    mixed_precision,
    fp32,
    other_dimension,
    offloaded,
    fused_in_backward,
    adapters,
    growing_frames,
    without_gradients,
    inference_first,
    memory,
    sharded_first,
)
