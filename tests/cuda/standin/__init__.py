"""A stand-in for GPUs: a torch device whose memory is the host's, and a driver that runs kernels on the CPU."""

from __future__ import annotations

import torch

from neuzip.nn import CompressedTensor


def bits(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes: what equality means."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's values, decoded if it is compressed."""
    return tensor.dense() if isinstance(tensor, CompressedTensor) else tensor
