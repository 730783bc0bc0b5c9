"""Memory, the same for all contenders.

What malloc does with large memory that is freed, glibc decides by what a process has freed before, and the same
benchmark was 2.5 times as fast or not; so each process of a benchmark decides, before it measures. And a hypervisor
takes memory back that has been free for some seconds, and then gives it more slowly than the system does; so what is
asked for next has just been used.
"""

from __future__ import annotations

import ctypes
import mmap

from neuzip._system import room

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


def warm(size: int) -> None:
    """So many bytes of the system's free memory were used a moment ago."""
    memory = room(size)
    for page in range(0, size, mmap.PAGESIZE):
        memory[page] = 1
