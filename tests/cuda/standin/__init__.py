"""A stand-in for GPUs: a torch device whose memory is the host's, and a driver that runs kernels on the CPU."""

from __future__ import annotations

import torch


def bits(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes: what equality means."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
