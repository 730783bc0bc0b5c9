"""The C library of ``csrc/neuzip.h`` (neuzip/_abi.py), with statuses as exceptions.

Buffers cross as pointers into objects that the caller keeps alive; every call releases the GIL.
"""

from __future__ import annotations

import ctypes
import sys
from array import array
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuzip._abi import (
    ABI_VERSION,
    MAX_SEGMENTS,
    MEMORY,
    SEGMENT_COUNTS,
    SIGNATURES,
    TABLE_CAPACITY,
    DecodeFrameJob,
    DecodeJob,
    EncodeFrameJob,
    EncodeJob,
    FixedLinearJob,
    Frame,
)
from neuzip._system import BytesBuilder, address
from neuzip.errors import CorruptFrame, InvalidArgument, NeuzipError, TruncatedInput, UnsupportedFormat

_FIXED_MAGIC = b"NZ12"  # kFixedMagic

if TYPE_CHECKING:  # NumPy is half of what the command line waits for, and arrays only give results here
    import numpy as np
    import numpy.typing as npt

Bytes = Any
"""A contiguous buffer, u8, that has ``nbytes``: a memoryview or an array."""
Words = Any
"""The same of u32."""


def _library_path() -> Path:
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    name = f"_codec{suffix}"
    # An editable install keeps the built library apart from the sources; both are in the package's path.
    for folder in sys.modules["neuzip"].__path__:
        if (path := Path(folder, name)).exists():
            return path
    raise ImportError(f"neuzip's codec library {name} is not installed; reinstall neuzip-codec")


def _load() -> tuple[ctypes.CDLL, Path]:
    path = _library_path()
    library = ctypes.CDLL(str(path))
    # Asked first: a library of another version need not have all the functions.
    if (version := library.nz_abi_version()) != ABI_VERSION:
        raise ImportError(f"{path} has ABI version {version}, expected {ABI_VERSION}; reinstall neuzip-codec")
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library, path


_LIBRARY, LIBRARY_PATH = _load()


def as_bytes(buffer: Any) -> memoryview:
    """The bytes of a C-contiguous buffer; nothing is copied. Raises InvalidArgument if it cannot be."""
    view = memoryview(buffer)
    if not view.c_contiguous:
        raise InvalidArgument("not a contiguous buffer")
    if view.nbytes == 0:
        return memoryview(b"" if view.readonly else bytearray())
    try:
        return view.cast("B")
    except TypeError:  # elements that memoryview does not know, such as complex numbers
        import numpy as np

        return np.frombuffer(buffer, np.uint8).data


def set_team(parallel: int | None) -> None:
    """The address of a function that calls another on several threads, such as GOMP_parallel; None for no more."""
    _LIBRARY.nz_set_team(parallel)


def words(count: int) -> memoryview:
    """Room for u32s, all zero."""
    return memoryview(bytearray(4 * count)).cast("I")


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
    return int(_LIBRARY.nz_checksum64(address(view), view.nbytes))


def checksums32(data: Bytes, starts: array[int], sizes: array[int]) -> memoryview:
    """checksum32 (spec §1) of pieces of a buffer: u64s of where each begins, and its bytes."""
    found = words(len(starts))
    _LIBRARY.nz_checksums32(address(data), address(starts), address(sizes), len(starts), address(found))
    return found


def plan(layout: int, level: int, chunk_log2: int, data: Bytes, units: int) -> bytes:
    """The table blob for a tensor; empty if no table pays."""
    table = ctypes.create_string_buffer(TABLE_CAPACITY)
    length = _LIBRARY.nz_plan(layout, level, chunk_log2, address(data), units, ctypes.addressof(table))
    if length < 0:
        raise _error(length)
    return ctypes.string_at(table, length)


def plan_segments(layout: int, chunk_log2: int, units: int) -> npt.NDArray[np.uint64]:
    """What :func:`plan` looks at: first unit, units and number of places of each segment, one row each."""
    import numpy as np

    segments = np.empty((MAX_SEGMENTS, 3), np.uint64)
    count = _LIBRARY.nz_plan_segments(layout, chunk_log2, units, segments.ctypes.data)
    if count < 0:
        raise _error(count)
    return segments[:count]


def plan_counts(layout: int, level: int, chunk_log2: int, counts: Words, units: int) -> bytes:
    """The table blob that :func:`plan` makes, from counts made elsewhere, an array: ``SEGMENT_COUNTS`` for each
    segment.
    """
    import numpy as np

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
    import numpy as np

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
    if _LIBRARY.nz_read_header(address(view), view.nbytes, whole, frame) == MEMORY:
        raise _error(MEMORY)
    return frame


def write_header(frame: Frame, table: bytes, index: Words, size: int) -> bytearray:
    """The header, of ``size`` bytes, of a frame whose chunks are known."""
    header = bytearray(size)
    status = _LIBRARY.nz_write_header(frame, table, address(index), address(header))
    if status:
        raise _error(status)
    return header


def decode_frames(items: Sequence[tuple[Bytes, Bytes]], verify: bool, threads: int) -> list[int]:
    """Decodes whole frames into buffers of their original size. Returns the numbers of those it did not: damaged,
    of coding zstd, or of another size.
    """
    jobs = _array(DecodeFrameJob, len(items))()
    for job, (frame, out) in zip(jobs, items, strict=True):
        job.src, job.size = address(frame), frame.nbytes
        job.dst, job.capacity = address(out), out.nbytes
        job.verify = verify
    return _decode_frames(jobs, threads)


def decode_frame_jobs(jobs: bytearray, count: int, threads: int) -> list[int]:
    """As :func:`decode_frames`, of ``nz_decode_frame_job``s that the caller has filled in."""
    return _decode_frames(_array(DecodeFrameJob, count).from_buffer(jobs), threads)


def _decode_frames(jobs: Any, threads: int) -> list[int]:
    if not _LIBRARY.nz_decode_frames(jobs, len(jobs), threads):
        return []
    return [number for number, job in enumerate(jobs) if job.status]


def encode_frames(
    tensors: Sequence[tuple[Bytes, int, Sequence[int]]], level: int, chunk_log2: int, threads: int
) -> list[bytes]:
    """A frame for each tensor: its bytes, the code of its dtype, which is cut into planes, and its shape."""
    jobs = _array(EncodeFrameJob, len(tensors))()
    kept: list[Any] = []
    builders = []
    for job, (data, dtype, shape) in zip(jobs, tensors, strict=True):
        lengths = _array(ctypes.c_uint64, len(shape))(*shape)
        kept.append(lengths)
        builder = BytesBuilder(frame_bound(dtype, len(shape), data.nbytes, chunk_log2))
        builders.append(builder)
        job.src, job.size = address(data), data.nbytes
        job.shape, job.ndim = ctypes.addressof(lengths), len(shape)
        job.dtype, job.level, job.chunk_log2 = dtype, level, chunk_log2
        job.dst, job.capacity = builder.address, builder.capacity
    _encode_frames(jobs, threads)
    return [builder.finish(job.written) for builder, job in zip(builders, jobs, strict=True)]


def encode_frame_jobs(jobs: bytearray, count: int, threads: int) -> list[int]:
    """The bytes of each frame of ``nz_encode_frame_job``s that the caller has filled in."""
    array = _array(EncodeFrameJob, count).from_buffer(jobs)
    _encode_frames(array, threads)
    step, at = ctypes.sizeof(EncodeFrameJob) // 8, EncodeFrameJob.written.offset // 8
    return memoryview(jobs).cast("Q")[at::step].tolist()


def _encode_frames(jobs: Any, threads: int) -> None:
    status = _LIBRARY.nz_encode_frames(jobs, len(jobs), threads)
    if status:
        raise _error(status)


@lru_cache(maxsize=1024)
def frame_bound(dtype: int, ndim: int, size: int, chunk_log2: int) -> int:
    """Upper bound of the bytes of a frame of ``size`` original bytes."""
    return int(_LIBRARY.nz_frame_bound(dtype, ndim, size, chunk_log2))


def is_fixed(address: int, size: int) -> bool:
    """Whether what :func:`fixed_encode` makes lies there, and not a frame."""
    return size >= len(_FIXED_MAGIC) and ctypes.string_at(address, len(_FIXED_MAGIC)) == _FIXED_MAGIC


def fixed_encode(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8] | None:
    """bf16 values at a fixed width, in the form of ``csrc/fixed_width.h``; None if that saves too little."""
    import numpy as np

    count = values.size // 2
    code = np.empty(_LIBRARY.nz_fixed_bound(count), np.uint8)
    size = _LIBRARY.nz_fixed_encode(values.ctypes.data, count, code.ctypes.data, code.size)
    return code[:size].copy() if size else None


def fixed_decode(code: Bytes, first: int, out: Bytes, threads: int) -> None:
    """Values ``first`` … of what :func:`fixed_encode` made, as many as ``out`` has room for."""
    count = out.nbytes // 2
    status = _LIBRARY.nz_fixed_decode(address(code), code.nbytes, first, count, address(out), threads)
    if status != 0:
        raise _error(status)


def fixed_linear(job: FixedLinearJob, threads: int) -> None:
    """A product with such values; the buffers are the caller's."""
    status = _LIBRARY.nz_fixed_linear(ctypes.byref(job), threads)
    if status != 0:
        raise _error(status)


@lru_cache(maxsize=64)
def _array(kind: Any, length: int) -> Any:
    """The type of ctypes' arrays; ctypes itself forgets types, and making one takes longer than a small tensor."""
    return kind * length


def _run(function: Any, kind: Any, jobs: Sequence[Any], threads: int) -> None:
    array = _array(kind, len(jobs))(*jobs)
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
    if status == MEMORY:
        raise MemoryError("no memory for the codec's scratch buffers")
    if status == -5:
        return UnsupportedFormat("this release of the codec cannot read it")
    return InvalidArgument(f"the codec refused its arguments (status {status})")
