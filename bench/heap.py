"""What malloc does with large memory that is freed. glibc decides by what a process has freed before, and the same
benchmark was 2.5 times as fast or not; so each process of a benchmark decides, before it measures.
"""

from __future__ import annotations

import ctypes

_libc = ctypes.CDLL(None)
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of mallopt(3)
_DEFAULT_BYTES = 128 << 10
_NEVER = (1 << 31) - 1


def give_back() -> None:
    """It goes back to the system: what is asked for next is fresh. So it is for any result above 32 MiB that no other
    happens to have left room for. Elsewhere than with glibc nothing happens.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_MMAP_THRESHOLD, _DEFAULT_BYTES)
        _libc.malloc_trim(0)


def keep() -> None:
    """It is kept, and given away again. Elsewhere than with glibc nothing happens."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_MMAP_MAX, 0)
        _libc.mallopt(_TRIM_THRESHOLD, _NEVER)
