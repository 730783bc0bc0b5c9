"""Memory in pages of its own, for frames: they live long, differ in size, and training replaces them at every step.

In the heap that malloc keeps, each replaced frame leaves a hole which the next one does not quite fill and which
temporaries are put into, so that the process grows: a model of 149 MiB (bf16) took 1.15 times its dense bytes after
six steps, its frames .66 of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from neuzip._system import private_map

Bytes = npt.NDArray[np.uint8]

_LEAST = 1 << 17
"""Bytes from which memory is mapped: what is lost at the end of the last page is at most 3 % then."""


def pages(size: int) -> Bytes:
    """``size`` bytes that may be written, u8; they go back to the system with the last view of them."""
    if size < _LEAST:
        return np.empty(size, np.uint8)
    try:
        mapped = private_map(size)
    except MemoryError:  # malloc may have some left; if it has not, NumPy says so
        return np.empty(size, np.uint8)
    return np.frombuffer(mapped, np.uint8)


def in_pages(data: Bytes) -> Bytes:
    """A copy of bytes."""
    copy = pages(data.size)
    copy[:] = data
    return copy
