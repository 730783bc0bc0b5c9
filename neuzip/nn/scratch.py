"""Dense memory that lasts for an operation."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

_local = threading.local()


def scratch(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
    """A dense buffer. On the CPU its contents and memory belong to this thread's next caller too.

    The CPU's is reused, because fresh memory costs more than decoding into it. On a device torch's allocator
    does that, in the order of the stream.
    """
    if torch.device(device).type != "cpu":
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    size = torch.Size(shape).numel() * dtype.itemsize
    held: torch.Tensor | None = getattr(_local, "buffer", None)
    if held is None or held.numel() < size:
        _local.buffer = held = torch.empty(size, dtype=torch.uint8)
    return held[:size].view(dtype).view(*shape)
