"""What the processes of test_distributed.py share: joining, and comparing a compressed run with a dense one.

Each worker script runs as ``python script.py RANK WORLD FOLDER`` and leaves its results in FOLDER/result-RANK.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from models import digest
from torch import nn
from torch.distributed.tensor import DTensor

from neuzip.nn import CompressedTensor

Case = Callable[[Path], Any]


def main(cases: dict[str, Case]) -> None:
    """Joins the group of processes, runs all cases and writes what they return."""
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=30))
    try:
        results = {name: case(folder) for name, case in cases.items()}
        dist.barrier()
    finally:
        dist.destroy_process_group()
    (folder / f"result-{rank}.json").write_text(json.dumps(results))


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor, compressed if it is."""
    tensor = tensor.detach()
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor, as an ordinary tensor."""
    part = local(tensor)
    return part.dense() if isinstance(part, CompressedTensor) else part


def digests(model: nn.Module) -> dict[str, str]:
    return {name: digest(dense(parameter)) for name, parameter in model.named_parameters()}


def gradients(model: nn.Module) -> dict[str, str]:
    return {
        name: digest(dense(parameter.grad))
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def plain_names(model: nn.Module) -> list[str]:
    """The parameters whose part on this rank is not compressed."""
    return [name for name, p in model.named_parameters() if not isinstance(local(p), CompressedTensor)]
