"""One process of a group, each with a device of its own: ``python group_worker.py RANK WORLD FOLDER [LIBRARY]``.

Trains models on the device, dense and compressed, and leaves what became of them in FOLDER/result-RANK.json.
LIBRARY: the emulator's, for a stand-in device; CUDA without it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hardware import Gpus, Recorded
from standin import bits, dense, group
from standin.driver import StandIn
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from neuzip.cuda import driver, trust
from neuzip.nn import CompressedTensor, compress_model
from neuzip.optim import fused

STEPS = 2


class Mlp(nn.Module):
    """Layers in blocks, as fully_shard wants them; the last block's rows do not divide among the ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(64, 96), nn.Linear(96, 51)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[1](self.blocks[0](x).relu()).float().pow(2).mean()


def model(device: torch.device, packed: bool) -> nn.Module:
    torch.manual_seed(0)
    made = Mlp().to(torch.bfloat16)
    return (compress_model(made, min_size=64) if packed else made).to(device)


def ddp(device: torch.device, packed: bool) -> nn.Module:
    return DistributedDataParallel(model(device, packed), device_ids=[device.index])


def fsdp(device: torch.device, packed: bool) -> nn.Module:
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    made = model(device, packed)
    for block in made.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(made, mesh=mesh)


def adamw(made: nn.Module) -> Any:
    return torch.optim.AdamW(made.parameters(), lr=1e-3)


def fused_adamw(made: nn.Module) -> Any:
    return fused(made, torch.optim.AdamW, lr=1e-3, in_backward=False)


def local(parameter: torch.Tensor) -> torch.Tensor:
    tensor = parameter.detach()
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def digest(parameter: torch.Tensor) -> str:
    return hashlib.sha256(bits(dense(local(parameter)))).hexdigest()


def train(made: nn.Module, optimizer: Any, device: torch.device) -> list[Any]:
    record: list[Any] = []
    opt = optimizer(made)
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
        loss = made(torch.randn(4, 64, generator=generator).to(torch.bfloat16).to(device))
        loss.backward()
        opt.step()
        opt.zero_grad()
        record.append(loss.item())
    return [*record, {name: digest(each) for name, each in made.named_parameters()}]


def case(wrap: Callable[..., nn.Module], optimizer: Any, device: torch.device, gpu: Gpus) -> Any:
    theirs = train(wrap(device, False), adamw, device)
    gpu.launches.clear()
    made = wrap(device, True)
    ours = train(made, optimizer, device)
    parts = [local(parameter) for parameter in made.parameters()]
    return {
        "theirs": theirs,
        "ours": ours,
        "compressed": sum(isinstance(part, CompressedTensor) for part in parts),
        "devices": sorted({str(part.device) for part in parts}),
        "kernels": sorted({launch.kernel for launch in gpu.launches}),
        "launched_on": sorted({launch.index for launch in gpu.launches}),
    }


def main(rank: int, world: int, folder: Path, library: Path | None) -> None:
    torch.set_num_threads(1)
    gpu = Recorded() if library is None else StandIn(kernels=library)
    driver.install(gpu)
    passed = trust.Verdict(True, "taken for granted")
    trust._verdicts.update({(gpu, index): passed for index in range(gpu.count())})
    backend = "nccl"
    if library is not None:
        group.register()
        backend = group.NAME
    device = torch.device(gpu.device_type, rank)
    torch.accelerator.set_device_index(rank)
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group(
        f"cpu:{'gloo' if library is None else backend},{device.type}:{backend}",
        store=store,
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    try:
        results = {
            "ddp": case(ddp, adamw, device, gpu),
            "ddp fused": case(ddp, fused_adamw, device, gpu),
            "fsdp": case(fsdp, adamw, device, gpu),
            "fsdp fused": case(fsdp, fused_adamw, device, gpu),
        }
        dist.barrier()
    finally:
        dist.destroy_process_group()
    (folder / f"result-{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]) if sys.argv[4:] else None)
