"""Frames decoded, encoded and multiplied with on an NVIDIA GPU: the same bytes as on the CPU (spec §4, §5).

The kernels of ``csrc/cuda/`` are compiled on first use, tested on this GPU before they are trusted, and run on torch's
current device and stream. Whatever stands in the way is told in one warning, and the CPU does the work.
"""

from __future__ import annotations

__all__ = ["check", "why_off"]


def why_off(index: int = 0) -> str | None:
    """Why the CPU does the work of a CUDA device, in one line; None if it does not.

    The first question about a GPU, driver and version of the kernels runs a self-test, which takes seconds.
    """
    from neuzip.cuda.obstacle import torch_obstacle

    reason = torch_obstacle()
    if reason is not None:
        return reason
    from neuzip.cuda import trust

    return trust.why_off(index)


def check() -> None:
    """Waits for what layers and optimizers have decoded so far. Raises CorruptFrame if a chunk was damaged.

    Without it, damage is raised by one of the next decodes: nothing waits for the device only to look.
    """
    from neuzip.cuda.decoding import watch

    watch.check()
