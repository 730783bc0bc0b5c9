"""All of ctypes: the C library of ``csrc/neuzip.h``, with statuses as exceptions.

Buffers cross as pointers into objects that the caller keeps alive; every call releases the GIL.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Sequence
from enum import IntEnum
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neuzip.errors import CorruptFrame, InvalidArgument, NeuzipError, TruncatedInput, UnsupportedFormat

ABI_VERSION = 3
TABLE_CAPACITY = 160 * 1024
MAX_SEGMENTS = 256
SEGMENT_COUNTS = 1280

_MEMORY = -4  # NZ_MEMORY

_HUGE = 1 << 22  # bytes from which large pages are asked for: two of x86-64
_FIXED_MAGIC = b"NZ12"  # kFixedMagic

# Linux's RENAME_EXCHANGE (linux/fs.h), and RENAME_SWAP of macOS (sys/stdio.h).
_EXCHANGE = 2
_AT_FDCWD = -100

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]


class EncodeJob(ctypes.Structure):
    """``nz_encode_job``."""

    _fields_ = [
        ("src", ctypes.c_void_p),
        ("units", ctypes.c_uint64),
        ("first_chunk", ctypes.c_uint64),
        ("table", ctypes.c_char_p),
        ("table_bytes", ctypes.c_uint32),
        ("layout", ctypes.c_int32),
        ("chunk_log2", ctypes.c_int32),
        ("status", ctypes.c_int32),
        ("dst", ctypes.c_void_p),
        ("capacity", ctypes.c_uint64),
        ("written", ctypes.c_uint64),
        ("index", ctypes.c_void_p),
    ]


class DecodeJob(ctypes.Structure):
    """``nz_decode_job``."""

    _fields_ = [
        ("src", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("index", ctypes.c_void_p),
        ("units", ctypes.c_uint64),
        ("first_chunk", ctypes.c_uint64),
        ("table", ctypes.c_char_p),
        ("table_bytes", ctypes.c_uint32),
        ("layout", ctypes.c_int32),
        ("chunk_log2", ctypes.c_int32),
        ("verify", ctypes.c_int32),
        ("status", ctypes.c_int32),
        ("bad_chunk", ctypes.c_uint64),
        ("dst", ctypes.c_void_p),
    ]


class Frame(ctypes.Structure):
    """``nz_frame``."""

    _fields_ = [
        ("size", ctypes.c_uint64),
        ("frame_size", ctypes.c_uint64),
        ("header_size", ctypes.c_uint64),
        ("chunks", ctypes.c_uint64),
        ("bad_chunk", ctypes.c_uint64),
        ("table_bytes", ctypes.c_uint32),
        ("required", ctypes.c_uint32),
        ("version", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("coding", ctypes.c_int32),
        ("chunk_log2", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("level", ctypes.c_int32),
        ("fault", ctypes.c_int32),
        ("shape", ctypes.c_uint64 * 32),
    ]


class HeaderFault(IntEnum):
    """``nz_header_fault``."""

    GOOD = 0
    SHORT = 1
    MAGIC = 2
    VERSION = 3
    REQUIRED = 4
    DTYPE = 5
    CODING = 6
    RANGE = 7
    RATIO = 8
    SIZE = 9
    CUT = 10
    CHECKSUM = 11
    SHAPE = 12
    PLANES = 13
    TABLE = 14
    LENGTHS = 15
    LENGTH = 16
    FRAME_CUT = 17
    FRAME_LONG = 18
    FRAME_PADDING = 19


class DecodeFrameJob(ctypes.Structure):
    """``nz_decode_frame_job``."""

    _fields_ = [
        ("src", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("dst", ctypes.c_void_p),
        ("capacity", ctypes.c_uint64),
        ("verify", ctypes.c_int32),
        ("status", ctypes.c_int32),
    ]


class EncodeFrameJob(ctypes.Structure):
    """``nz_encode_frame_job``."""

    _fields_ = [
        ("src", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("shape", ctypes.c_void_p),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("level", ctypes.c_int32),
        ("chunk_log2", ctypes.c_int32),
        ("dst", ctypes.c_void_p),
        ("capacity", ctypes.c_uint64),
        ("written", ctypes.c_uint64),
        ("status", ctypes.c_int32),
    ]


class FixedLinearJob(ctypes.Structure):
    """``nz_fixed_linear_job``."""

    _fields_ = [
        ("code", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("out_features", ctypes.c_uint64),
        ("in_features", ctypes.c_uint64),
        ("x", ctypes.c_void_p),
        ("rows", ctypes.c_uint64),
        ("bias", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
    ]


SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "nz_abi_version": (ctypes.c_int32, []),
    "nz_isa_name": (ctypes.c_char_p, [ctypes.c_int32]),
    "nz_isa_available": (ctypes.c_int32, [ctypes.c_int32]),
    "nz_isa_select": (ctypes.c_int32, [ctypes.c_int32]),
    "nz_isa_current": (ctypes.c_int32, []),
    "nz_checksum64": (ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_size_t]),
    "nz_plan": (
        ctypes.c_int32,
        [ctypes.c_int32, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p],
    ),
    "nz_plan_segments": (
        ctypes.c_int32,
        [ctypes.c_int32, ctypes.c_int32, ctypes.c_uint64, ctypes.c_void_p],
    ),
    "nz_plan_counts": (
        ctypes.c_int32,
        [ctypes.c_int32, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p],
    ),
    "nz_table_entries": (
        ctypes.c_int32,
        [ctypes.c_int32, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_void_p],
    ),
    "nz_chunk_bound": (ctypes.c_uint64, [ctypes.c_int32, ctypes.c_int32]),
    "nz_encode": (ctypes.c_int32, [ctypes.POINTER(EncodeJob), ctypes.c_size_t, ctypes.c_int32]),
    "nz_decode": (ctypes.c_int32, [ctypes.POINTER(DecodeJob), ctypes.c_size_t, ctypes.c_int32]),
    "nz_read_header": (
        ctypes.c_int32,
        [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int32, ctypes.POINTER(Frame)],
    ),
    "nz_write_header": (
        ctypes.c_int32,
        [ctypes.POINTER(Frame), ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p],
    ),
    "nz_decode_frames": (
        ctypes.c_int32,
        [ctypes.POINTER(DecodeFrameJob), ctypes.c_size_t, ctypes.c_int32],
    ),
    "nz_encode_frames": (
        ctypes.c_int32,
        [ctypes.POINTER(EncodeFrameJob), ctypes.c_size_t, ctypes.c_int32],
    ),
    "nz_frame_bound": (
        ctypes.c_uint64,
        [ctypes.c_int32, ctypes.c_int32, ctypes.c_uint64, ctypes.c_int32],
    ),
    "nz_fixed_bound": (ctypes.c_uint64, [ctypes.c_uint64]),
    "nz_fixed_encode": (
        ctypes.c_uint64,
        [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64],
    ),
    "nz_fixed_decode": (
        ctypes.c_int32,
        [
            ctypes.c_void_p,
            ctypes.c_uint64,
            ctypes.c_uint64,
            ctypes.c_uint64,
            ctypes.c_void_p,
            ctypes.c_int32,
        ],
    ),
    "nz_fixed_linear": (ctypes.c_int32, [ctypes.POINTER(FixedLinearJob), ctypes.c_int32]),
}
"""Result and argument types of every function of ``neuzip.h``; a test compares them."""


def _library_path() -> Path:
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    # An editable install keeps the built library apart from the sources; the resource loader knows where.
    path = Path(str(resources.files("neuzip").joinpath(f"_codec{suffix}")))
    if not path.exists():
        raise ImportError(f"neuzip's codec library {path.name} is not installed; reinstall neuzip-codec")
    return path


def _load() -> tuple[ctypes.CDLL, Path]:
    path = _library_path()
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if library.nz_abi_version() != ABI_VERSION:
        raise ImportError(f"{path} has ABI version {library.nz_abi_version()}, expected {ABI_VERSION}")
    return library, path


_LIBRARY, LIBRARY_PATH = _load()

_libc = ctypes.CDLL(None)


def as_bytes(buffer: Any) -> Bytes:
    """A flat uint8 view of a C-contiguous buffer; nothing is copied. Raises InvalidArgument if it cannot be."""
    if isinstance(buffer, np.ndarray) and buffer.dtype == np.uint8 and buffer.ndim == 1:
        if buffer.flags.c_contiguous:
            return buffer
        raise InvalidArgument("not a contiguous buffer")
    try:
        return np.frombuffer(buffer, dtype=np.uint8)
    except (ValueError, BufferError) as error:
        # An empty buffer is refused by frombuffer before numpy 2.
        if memoryview(buffer).nbytes == 0:
            return np.empty(0, dtype=np.uint8)
        raise InvalidArgument(f"not a contiguous buffer: {error}") from None


def isa_names() -> list[str]:
    """Names of all instruction sets the library knows, built in or not."""
    names: list[str] = []
    while name := _LIBRARY.nz_isa_name(len(names)):
        names.append(name.decode())
    return names


def isa_available(name: str) -> bool:
    """Whether this build has the loops for an instruction set and this processor runs them."""
    names = isa_names()
    return name in names and bool(_LIBRARY.nz_isa_available(names.index(name)))


def isa_select(name: str | None) -> None:
    """Forces an instruction set for all threads; ``None`` returns to the best available."""
    names = isa_names()
    if name is not None and name not in names:
        raise InvalidArgument(f"unknown instruction set {name!r}; known: {', '.join(names)}")
    if _LIBRARY.nz_isa_select(-1 if name is None else names.index(name)) != 0:
        raise InvalidArgument(f"instruction set {name!r} is not available here")


def isa_current() -> str:
    """Name of the instruction set in use."""
    name: bytes = _LIBRARY.nz_isa_name(_LIBRARY.nz_isa_current())
    return name.decode()


def checksum64(buffer: Any) -> int:
    """XXH3-64 of a buffer (spec §1)."""
    view = as_bytes(buffer)
    return int(_LIBRARY.nz_checksum64(view.ctypes.data, view.size))


def plan(layout: int, level: int, chunk_log2: int, data: Bytes, units: int) -> bytes:
    """The table blob for a tensor; empty if no table pays."""
    table = np.empty(TABLE_CAPACITY, np.uint8)
    length = _LIBRARY.nz_plan(layout, level, chunk_log2, data.ctypes.data, units, table.ctypes.data)
    if length < 0:
        raise _error(length)
    return table[:length].tobytes()


def plan_segments(layout: int, chunk_log2: int, units: int) -> npt.NDArray[np.uint64]:
    """What :func:`plan` looks at: first unit, units and number of places of each segment, one row each."""
    segments = np.empty((MAX_SEGMENTS, 3), np.uint64)
    count = _LIBRARY.nz_plan_segments(layout, chunk_log2, units, segments.ctypes.data)
    if count < 0:
        raise _error(count)
    return segments[:count]


def plan_counts(layout: int, level: int, chunk_log2: int, counts: Words, units: int) -> bytes:
    """The table blob that :func:`plan` makes, from counts made elsewhere: ``SEGMENT_COUNTS`` for each segment."""
    if counts.size != SEGMENT_COUNTS * len(plan_segments(layout, chunk_log2, units)):
        raise InvalidArgument(f"{counts.size} counts are not {SEGMENT_COUNTS} for each segment")
    counts = np.ascontiguousarray(counts, np.uint32)
    table = np.empty(TABLE_CAPACITY, np.uint8)
    length = _LIBRARY.nz_plan_counts(layout, level, chunk_log2, counts.ctypes.data, units, table.ctypes.data)
    if length < 0:
        raise _error(length)
    return table[:length].tobytes()


def table_entries(layout: int, table: bytes) -> npt.NDArray[np.uint32]:
    """Checks a table blob (spec §5): first chunk and offset in the blob of each entry, one row each."""
    entries = np.empty((int.from_bytes(table[2:4], "little"), 2), np.uint32)
    count = _LIBRARY.nz_table_entries(layout, table, len(table), entries.ctypes.data)
    if count < 0:
        raise _error(count)
    return entries[:count]


def chunk_bound(layout: int, chunk_log2: int) -> int:
    """Upper bound of one encoded chunk's bytes."""
    return int(_LIBRARY.nz_chunk_bound(layout, chunk_log2))


def encode(jobs: Sequence[EncodeJob], threads: int) -> None:
    """Runs encode jobs; raises what the first failing one has to say. Results are in the jobs."""
    _run(_LIBRARY.nz_encode, EncodeJob, jobs, threads)


def decode(jobs: Sequence[DecodeJob], threads: int) -> None:
    """Runs decode jobs; does not raise for a job's own failure: look at ``status`` with :func:`job_error`."""
    _run(_LIBRARY.nz_decode, DecodeJob, jobs, threads)


def read_header(view: Bytes, whole: bool) -> Frame:
    """The header of the frame that begins a buffer, checked; ``fault`` says which rule it breaks."""
    frame = Frame()
    if _LIBRARY.nz_read_header(view.ctypes.data, view.size, whole, frame) == _MEMORY:
        raise _error(_MEMORY)
    return frame


def write_header(frame: Frame, table: bytes, index: Words, size: int) -> bytearray:
    """The header, of ``size`` bytes, of a frame whose chunks are known."""
    header = bytearray(size)
    target = (ctypes.c_char * size).from_buffer(header)
    status = _LIBRARY.nz_write_header(frame, table, index.ctypes.data, ctypes.addressof(target))
    if status:
        raise _error(status)
    return header


def decode_frames(items: Sequence[tuple[Bytes, Bytes]], verify: bool, threads: int) -> list[int]:
    """Decodes whole frames into buffers of their original size. Returns the numbers of those it did not: damaged,
    of coding zstd, or of another size.
    """
    jobs = (DecodeFrameJob * len(items))()
    for job, (frame, out) in zip(jobs, items, strict=True):
        job.src, job.size = frame.ctypes.data, frame.size
        job.dst, job.capacity = out.ctypes.data, out.size
        job.verify = verify
    if not _LIBRARY.nz_decode_frames(jobs, len(items), threads):
        return []
    return [number for number, job in enumerate(jobs) if job.status]


def encode_frames(
    tensors: Sequence[tuple[Bytes, int, Sequence[int]]], level: int, chunk_log2: int, threads: int
) -> list[bytes]:
    """A frame for each tensor: its bytes, the code of its dtype, which is cut into planes, and its shape."""
    jobs = (EncodeFrameJob * len(tensors))()
    kept: list[Any] = []
    builders = []
    for job, (data, dtype, shape) in zip(jobs, tensors, strict=True):
        lengths = (ctypes.c_uint64 * len(shape))(*shape)
        kept.append(lengths)
        builder = BytesBuilder(_LIBRARY.nz_frame_bound(dtype, len(shape), data.size, chunk_log2))
        builders.append(builder)
        job.src, job.size = data.ctypes.data, data.size
        job.shape, job.ndim = ctypes.addressof(lengths), len(shape)
        job.dtype, job.level, job.chunk_log2 = dtype, level, chunk_log2
        job.dst, job.capacity = builder.address, builder.capacity
    status = _LIBRARY.nz_encode_frames(jobs, len(tensors), threads)
    if status:
        raise _error(status)
    return [builder.finish(job.written) for builder, job in zip(builders, jobs, strict=True)]


def is_fixed(address: int, size: int) -> bool:
    """Whether what :func:`fixed_encode` makes lies there, and not a frame."""
    return size >= len(_FIXED_MAGIC) and ctypes.string_at(address, len(_FIXED_MAGIC)) == _FIXED_MAGIC


def fixed_encode(values: Bytes) -> Bytes | None:
    """bf16 values at a fixed width, in the form of ``csrc/fixed_width.h``; None if that saves too little."""
    count = values.size // 2
    code = np.empty(_LIBRARY.nz_fixed_bound(count), np.uint8)
    size = _LIBRARY.nz_fixed_encode(values.ctypes.data, count, code.ctypes.data, code.size)
    return code[:size].copy() if size else None


def fixed_decode(code: Bytes, first: int, out: Bytes, threads: int) -> None:
    """Values ``first`` … of what :func:`fixed_encode` made, as many as ``out`` has room for."""
    count = out.size // 2
    status = _LIBRARY.nz_fixed_decode(code.ctypes.data, code.size, first, count, out.ctypes.data, threads)
    if status != 0:
        raise _error(status)


def fixed_linear(job: FixedLinearJob, threads: int) -> None:
    """A product with such values; the buffers are the caller's."""
    status = _LIBRARY.nz_fixed_linear(ctypes.byref(job), threads)
    if status != 0:
        raise _error(status)


def _run(function: Any, kind: Any, jobs: Sequence[Any], threads: int) -> None:
    array = (kind * len(jobs))(*jobs)
    function(array, len(jobs), threads)
    for job, done in zip(jobs, array, strict=True):
        ctypes.pointer(job)[0] = done


def job_error(job: EncodeJob | DecodeJob) -> NeuzipError | None:
    """The error of a finished job, or ``None``. A corrupt chunk's number counts from the job's first chunk."""
    if job.status == 0:
        return None
    error = _error(job.status)
    if isinstance(job, DecodeJob) and isinstance(error, CorruptFrame):
        error.chunk = job.bad_chunk
    return error


def _error(status: int) -> NeuzipError:
    if status == -1:
        return CorruptFrame("the compressed data is damaged")
    if status == -2:
        return TruncatedInput("the compressed data ends too early")
    if status == _MEMORY:
        raise MemoryError("no memory for the codec's scratch buffers")
    if status == -5:
        return UnsupportedFormat("this release of the codec cannot read it")
    return InvalidArgument(f"the codec refused its arguments (status {status})")


def prefer_huge_pages(address: int, size: int) -> None:
    """Asks for large pages for fresh memory that is about to be filled: touching it a small page at a time takes
    longer than decoding. Nothing happens where the system has none."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if size < _HUGE or advice is None:
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


# Prototypes of their own: other libraries set the types of the functions that ctypes.pythonapi shares.
_create = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)
_content = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(("PyBytes_AsString", ctypes.pythonapi))
_resize = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_void_p), ctypes.c_ssize_t)(
    ("_PyBytes_Resize", ctypes.pythonapi)
)
_release = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(("Py_DecRef", ctypes.pythonapi))


def file_system_type(descriptor: int) -> int | None:
    """f_type of Linux's fstatfs(2) for an open file; None elsewhere."""
    if sys.platform != "linux":
        return None
    answer = (ctypes.c_long * 64)()  # larger than any struct statfs, whose first field is f_type
    if ctypes.CDLL(None).fstatfs(descriptor, answer) != 0:
        return None
    return int(answer[0]) & 0xFFFFFFFF


class BytesBuilder:
    """A ``bytes`` object that is filled in place and then shortened: saves a copy of every compressed tensor.

    ``address`` may be written up to ``capacity`` until :meth:`finish`. Memory that is never written is
    never touched.
    """

    _object = ctypes.c_void_p(None)

    def __init__(self, capacity: int) -> None:
        # At least two bytes: shorter objects are shared by the interpreter and must not be written.
        self.capacity = max(capacity, 2)
        self._object = ctypes.c_void_p(_create(None, self.capacity))
        self.address: int = _content(self._object)
        prefer_huge_pages(self.address, self.capacity)

    def write(self, offset: int, data: bytes | bytearray) -> None:
        """Copies ``data`` to ``offset``."""
        source = np.frombuffer(data, np.uint8)
        ctypes.memmove(self.address + offset, source.ctypes.data, source.size)

    def finish(self, size: int) -> bytes:
        """The object, with its first ``size`` bytes, ``2 <= size <= capacity``."""
        _resize(ctypes.byref(self._object), size)
        result: bytes = ctypes.cast(self._object, ctypes.py_object).value
        self._let_go()
        return result

    def _let_go(self) -> None:
        _release(self._object)
        self._object = ctypes.c_void_p(None)

    def __del__(self) -> None:
        if self._object.value is not None:
            self._let_go()
