"""Functions of the operating system and of the interpreter that Python itself does not offer, through ctypes."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HUGE = 1 << 22  # bytes from which large pages are asked for: two of x86-64

# Linux's RENAME_EXCHANGE (linux/fs.h), and RENAME_SWAP of macOS (sys/stdio.h).
_EXCHANGE = 2
_AT_FDCWD = -100

# Bytes from which memory is mapped and not taken from the heap.
_MAPPED = 1 << 17
_LINE = 64  # bytes of a cache line

_libc = ctypes.CDLL(None)


def private_map(size: int) -> mmap.mmap:
    """Fresh memory from the system. mmap's default is shared memory, which has no large pages. Raises MemoryError."""
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:  # no memory, or no more mappings (vm.max_map_count)
        raise MemoryError(f"no {size} bytes of memory") from error


def room(size: int) -> memoryview:
    """Bytes that may be written, from a cache line on. What is never written of many is never touched."""
    if size < _MAPPED:
        memory = memoryview(bytearray(size + _LINE - 1))
        start = -address(memory) % _LINE
        return memory[start : start + size]
    mapped = private_map(size)
    if hasattr(mmap, "MADV_HUGEPAGE") and size >= HUGE:
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(mapped)


def places(sizes: Iterable[int]) -> list[int]:
    """Where results begin that share a room, each on a cache line; and at last the bytes of the room."""
    return list(itertools.accumulate((-(-size // _LINE) * _LINE for size in sizes), initial=0))


class Scratch:
    """Memory that is kept for the next use: fresh memory takes longer than coding."""

    def __init__(self) -> None:
        self._memory = memoryview(b"")

    def room(self, size: int) -> memoryview:
        """At least so many bytes that may be written, the same as before if they suffice."""
        if size > len(self._memory):
            self._memory = room(size)
        return self._memory


def equal(left: memoryview, right: memoryview) -> bool:
    """Whether two buffers of one size have the same bytes; memoryviews compare a byte at a time."""
    first, second = (ctypes.c_void_p(address(view)) for view in (left, right))
    return bool(_libc.memcmp(first, second, ctypes.c_size_t(left.nbytes)) == 0)


def prefer_huge_pages(address: int, size: int) -> None:
    """Asks for large pages for fresh memory that is about to be filled: touching it a small page at a time takes
    longer than decoding. Nothing happens where the system has none."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if size < HUGE or advice is None:
        return
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
    _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)


def exchange_paths(first: Path, second: Path) -> bool:
    """Lets two paths change places in one step. False, and nothing is done, where the system cannot."""
    paths = os.fsencode(first), os.fsencode(second)
    if hasattr(_libc, "renameat2"):
        return bool(_libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _EXCHANGE) == 0)
    if hasattr(_libc, "renamex_np"):
        return bool(_libc.renamex_np(*paths, _EXCHANGE) == 0)
    return False


def trim_heap() -> None:
    """Returns the free pages of malloc's heap to the system, in a few milliseconds, where malloc can (glibc).

    For moments at which much has been let go: free memory below the heap's end stays with the process otherwise.
    """
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)


def file_system_type(descriptor: int) -> int | None:
    """f_type of Linux's fstatfs(2) for an open file; None elsewhere."""
    if sys.platform != "linux":
        return None
    answer = (ctypes.c_long * 64)()  # larger than any struct statfs, whose first field is f_type
    if _libc.fstatfs(descriptor, answer) != 0:
        return None
    return int(answer[0]) & 0xFFFFFFFF


class _Buffer(ctypes.Structure):
    """``Py_buffer`` of the interpreter's C interface."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


# Prototypes of their own: other libraries set the types of the functions that ctypes.pythonapi shares.
_get_buffer = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p, ctypes.c_int)(
    ("PyObject_GetBuffer", ctypes.pythonapi)
)
_release_buffer = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(("PyBuffer_Release", ctypes.pythonapi))


def address(buffer: Any) -> int:
    """Where a contiguous buffer's bytes lie, as long as something keeps it alive. BufferError for another."""
    found = _Buffer()
    try:
        _get_buffer(buffer, ctypes.byref(found), 0)  # PyBUF_SIMPLE
    finally:  # also after a signal: a buffer that is held cannot be closed any more
        _release_buffer(ctypes.byref(found))
    return found.buf or 0


_create = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)
_content = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(("PyBytes_AsString", ctypes.pythonapi))
_resize = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_void_p), ctypes.c_ssize_t)(
    ("_PyBytes_Resize", ctypes.pythonapi)
)
# Of an object that is one already: the object itself. ctypes.cast is ten times as slow.
_bytes = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p)(("PyBytes_FromObject", ctypes.pythonapi))
_hold = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(("Py_IncRef", ctypes.pythonapi))
_release = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(("Py_DecRef", ctypes.pythonapi))


class BytesBuilder:
    """A ``bytes`` object that is filled in place and then shortened: saves a copy of every compressed tensor.

    ``address`` may be written up to ``capacity`` until :meth:`finish`. Memory that is never written is
    never touched.
    """

    def __init__(self, capacity: int) -> None:
        # At least two bytes: shorter objects are shared by the interpreter and must not be written.
        self.capacity = max(capacity, 2)
        self._data: bytes = _create(None, self.capacity)
        self.address: int = _content(self._data)
        prefer_huge_pages(self.address, self.capacity)

    def write(self, offset: int, data: bytes | bytearray) -> None:
        """Copies ``data`` to ``offset``."""
        ctypes.memmove(self.address + offset, address(data), len(data))

    def finish(self, size: int) -> bytes:
        """The object, with its first ``size`` bytes, ``2 <= size <= capacity``."""
        # Only an object with one reference can be resized, and it may move. From here on that is not Python's: a signal
        # may lose the object, but nothing lets go of it twice.
        held = ctypes.c_void_p(id(self._data))
        _hold(held)
        del self._data
        _resize(ctypes.byref(held), size)
        result: bytes = _bytes(held)
        _release(held)
        return result
