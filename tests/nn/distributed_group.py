"""What the cases of test_distributed.py share: comparing a compressed run with a dense one on each rank."""

from __future__ import annotations

import torch
from models import digest
from torch import nn
from torch.distributed.tensor import DTensor

from neuzip.nn import CompressedTensor


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
