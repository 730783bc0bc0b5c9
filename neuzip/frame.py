"""Frames (spec §5): one compressed tensor with its dtype, shape, tables, chunk index and checksums."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from neuzip import _abi, _native, _system
from neuzip._abi import HeaderFault
from neuzip._native import Bytes, Words
from neuzip.codec import (
    LEVELS,
    Coding,
    DecodeRun,
    EncodeRun,
    Options,
    Plan,
    decode_runs,
    encode_runs,
    make_plan,
)
from neuzip.errors import CorruptFrame, InvalidArgument, NeuzipError, TruncatedInput, UnsupportedFormat
from neuzip.layouts import DType, dtype_by_code

MAGIC = b"NZFR"
VERSION = 1
FIXED_SIZE = 40
"""Bytes of a header before the shape."""

_MAX_NDIM = 32


@dataclass(frozen=True)
class Header:
    """A frame's header. ``lengths`` and ``checksums`` are u32, one a chunk."""

    dtype: DType
    shape: tuple[int, ...]
    level: int
    plan: Plan
    frame_size: int
    header_size: int
    """Offset of the first chunk."""
    index: Words

    @property
    def coding(self) -> Coding:
        return self.plan.coding

    @property
    def size(self) -> int:
        """Original bytes."""
        return self.plan.size

    @property
    def chunk_log2(self) -> int:
        return self.plan.chunk_log2

    @property
    def chunk_size(self) -> int:
        return self.plan.chunk_size

    @property
    def chunk_count(self) -> int:
        return self.plan.chunk_count

    @property
    def table(self) -> bytes:
        return self.plan.table

    @property
    def lengths(self) -> Words:
        return self.index[0::2]

    @property
    def checksums(self) -> Words:
        return self.index[1::2]

    @cached_property
    def offsets(self) -> list[int]:
        """Offset of each chunk in the frame, and of the end of the last."""
        return list(itertools.accumulate(self.lengths.tolist(), initial=self.header_size))


def _padded(size: int) -> int:
    return -(-size // 8) * 8


def _header_size(ndim: int, table_size: int, chunk_count: int) -> int:
    return FIXED_SIZE + 8 * ndim + table_size + 8 * chunk_count


def header_length(prefix: Any) -> int:
    """Bytes of the header that begins with ``prefix``, of which 40 are enough; at most those of its frame."""
    view = _native.as_bytes(prefix)
    found = _native.read_header(view, whole=False)
    if HeaderFault.GOOD < found.fault < HeaderFault.CUT:
        raise _refusal(found, view.nbytes)
    return int(found.header_size)


def read_header(buffer: Any, *, whole: bool = False) -> Header:
    """The header at the start of ``buffer``, checked (spec §6).

    With ``whole``, the buffer must be exactly the frame, with zero padding at its end. Raises TruncatedInput,
    CorruptFrame or UnsupportedFormat.
    """
    view = _native.as_bytes(buffer)
    found, dtype = _read_checked(view, whole)
    shape = tuple(found.shape[: found.ndim])
    length = found.header_size
    at = FIXED_SIZE + 8 * found.ndim
    table = view[at : at + found.table_bytes].tobytes()
    plan = Plan(dtype.layout, Coding(found.coding), found.chunk_log2, table, found.size)
    index = memoryview(bytes(view[length - 8 * found.chunks : length])).cast("I")
    return Header(dtype, shape, found.level, plan, found.frame_size, length, index)


def read_type(frame: Any) -> tuple[DType, tuple[int, ...]]:
    """Dtype and shape of a whole frame, of which the header is checked. Raises as :func:`read_header` does."""
    found, dtype = _read_checked(_native.as_bytes(frame), whole=True)
    return dtype, tuple(found.shape[: found.ndim])


def _read_checked(view: Bytes, whole: bool) -> tuple[_abi.Frame, DType]:
    found = _native.read_header(view, whole)
    dtype = dtype_by_code(found.dtype)
    if found.fault or dtype is None:
        raise _refusal(found, view.nbytes)
    return found, dtype


def _refusal(found: _abi.Frame, available: int) -> NeuzipError:
    """Why a header is refused, in words."""
    fault = HeaderFault(found.fault)
    if fault is HeaderFault.SHORT:
        return TruncatedInput(f"a frame header has at least {FIXED_SIZE} bytes, here are {available}")
    if fault is HeaderFault.CUT:
        return TruncatedInput(f"the frame header has {found.header_size} bytes, here are {available}")
    if fault in (HeaderFault.FRAME_CUT, HeaderFault.FRAME_LONG):
        return _length_error(found.frame_size, available)
    if fault in _UNSUPPORTED:
        return UnsupportedFormat(_UNSUPPORTED[fault](found))
    chunk = found.bad_chunk if fault is HeaderFault.LENGTH else None
    return CorruptFrame(_CORRUPT[fault](found), chunk=chunk)


_UNSUPPORTED: dict[HeaderFault, Callable[[_abi.Frame], str]] = {
    HeaderFault.MAGIC: lambda _: "not a neuzip frame: wrong magic",
    HeaderFault.VERSION: lambda found: f"frame version {found.version}, this release reads {VERSION}",
    HeaderFault.REQUIRED: lambda found: (
        f"the frame requires features this release does not have (bits {found.required:#x})"
    ),
    HeaderFault.DTYPE: lambda found: f"dtype code {found.dtype} is unknown",
    HeaderFault.CODING: lambda found: f"coding {found.coding} is unknown",
}
_CORRUPT: dict[HeaderFault, Callable[[_abi.Frame], str]] = {
    HeaderFault.RANGE: lambda _: "the frame header has impossible chunk sizes or dimensions",
    HeaderFault.RATIO: lambda found: f"the frame claims {found.size} original bytes in {found.frame_size}",
    HeaderFault.SIZE: lambda _: "the frame header is longer than its frame",
    HeaderFault.CHECKSUM: lambda _: "the frame header does not match its checksum",
    HeaderFault.SHAPE: lambda found: (
        f"shape {tuple(found.shape[: found.ndim])} of dtype {found.dtype} does not have {found.size} bytes"
    ),
    HeaderFault.PLANES: lambda found: f"dtype {found.dtype} is not cut into planes",
    HeaderFault.TABLE: lambda _: "only planes have a table",
    HeaderFault.LENGTHS: lambda _: "the chunks do not fill the frame",
    HeaderFault.LENGTH: lambda _: "a chunk has an impossible length",
    HeaderFault.FRAME_PADDING: lambda _: "padding is not zero",
}


def read_whole_header(frame: Any) -> Header:
    """As read_header with whole, of anything whose slices are buffers; of the chunks nothing is read."""
    length = header_length(frame[:FIXED_SIZE])
    header = read_header(frame[:length])
    check_length(header, len(frame))
    if any(frame[header.offsets[-1] :]):
        raise CorruptFrame("padding is not zero")
    return header


def check_length(header: Header, size: int) -> None:
    """Raises TruncatedInput or CorruptFrame unless a frame has ``size`` bytes."""
    if size != header.frame_size:
        raise _length_error(header.frame_size, size)


def _length_error(frame_size: int, available: int) -> NeuzipError:
    if available < frame_size:
        return TruncatedInput(f"the frame has {frame_size} bytes, here are {available}")
    return CorruptFrame(f"{available - frame_size} bytes follow the frame")


def decode(frame: Any, out: Any, options: Options | None = None) -> None:
    """Decodes a whole frame into ``out``, a writable buffer of exactly its original size."""
    decode_many([(frame, out)], options)


def decode_many(
    items: Sequence[tuple[Any, Any]],
    options: Options | None = None,
    names: Sequence[str | None] | None = None,
) -> None:
    """Decodes frames into buffers, all in one go over the threads. Errors name the tensor if ``names`` does."""
    options = options or Options()
    views = [(_native.as_bytes(frame), _writable(out)) for frame, out in items]
    # Those of coding zstd, and what is refused, which is looked at again to say why.
    left = _native.decode_frames(views, options.verify, options.native_threads)
    if not left:
        return
    runs = []
    for number in left:
        frame, out = views[number]
        with _named(names, number):
            header = read_header(frame, whole=True)
            chunks = frame[header.header_size : header.offsets[-1]]
            runs.append(_decode_run(header, chunks, 0, header.chunk_count, out))
    decode_runs(runs, options)
    for number, run in zip(left, runs, strict=True):
        with _named(names, number):
            if run.error is not None:
                raise run.error


@contextmanager
def _named(names: Sequence[str | None] | None, number: int) -> Iterator[None]:
    """Errors name the tensor."""
    try:
        yield
    except NeuzipError as error:
        raise error.at(tensor=names[number] if names else None) from None


def _writable(out: Any) -> Bytes:
    view = _native.as_bytes(out)
    if view.readonly:
        raise InvalidArgument("out must be a writable buffer")
    return view


def decode_chunks(
    header: Header, data: Any, first: int, count: int, out: Any, options: Options | None = None
) -> None:
    """Decodes chunks ``first`` … ``first + count − 1``, whose bytes are ``data``, into ``out``."""
    run = _decode_run(header, _native.as_bytes(data), first, count, out)
    decode_runs([run], options or Options())
    if run.error is not None:
        if run.error.chunk is not None:
            run.error.chunk += first
        raise run.error


def _decode_run(header: Header, data: Bytes, first: int, count: int, out: Any) -> DecodeRun:
    if first < 0 or count < 0 or first + count > header.chunk_count:
        raise InvalidArgument(f"chunks {first} to {first + count} of {header.chunk_count}")
    start, end = (min(chunk * header.chunk_size, header.size) for chunk in (first, first + count))
    target = _native.as_bytes(out)
    if target.nbytes != end - start or target.readonly:
        raise InvalidArgument(f"out must be a writable buffer of {end - start} bytes")
    if data.nbytes != header.offsets[first + count] - header.offsets[first]:
        raise TruncatedInput(f"chunks {first} to {first + count} have other lengths than {data.nbytes} bytes")
    return DecodeRun(header.plan, data, header.index[2 * first : 2 * (first + count)], target, first)


def _checked(data: Any, dtype: DType, shape: Sequence[int]) -> Bytes:
    """A tensor's bytes. Raises InvalidArgument if they are not its shape's."""
    view = _native.as_bytes(data)
    _check_size(view.nbytes, dtype, shape)
    return view


def _check_size(size: int, dtype: DType, shape: Sequence[int]) -> None:
    if not all(0 <= length < 1 << 64 for length in shape):
        raise InvalidArgument(f"shape {tuple(shape)} has impossible lengths")
    if dtype.nbytes(shape) != size:
        raise InvalidArgument(f"shape {tuple(shape)} of {dtype.name} does not have {size} bytes")
    if len(shape) > _MAX_NDIM:
        raise InvalidArgument(f"{len(shape)} dimensions; at most {_MAX_NDIM} are allowed")


def header_bytes(dtype: DType, shape: Sequence[int], plan: Plan, level: str, index: Words) -> bytearray:
    """The header of a frame whose chunks are known."""
    found = _abi.Frame(
        size=plan.size,
        dtype=dtype.code,
        coding=plan.coding,
        chunk_log2=plan.chunk_log2,
        ndim=len(shape),
        level=LEVELS.index(level),
        table_bytes=len(plan.table),
    )
    found.shape[: len(shape)] = shape
    size = _header_size(len(shape), len(plan.table), plan.chunk_count)
    return _native.write_header(found, plan.table, index, size)


def encode(data: Any, dtype: DType, shape: Sequence[int], options: Options | None = None) -> bytes:
    """One whole frame of a C-contiguous buffer with the bytes of a tensor of ``shape`` elements of
    ``dtype``.
    """
    return encode_many([(data, dtype, shape)], options)[0]


def encode_many(
    items: Sequence[tuple[Any, DType, Sequence[int]]], options: Options | None = None
) -> list[bytes]:
    """A frame for each of the tensors, all encoded in one go over the threads."""
    options = options or Options()
    tensors = [(_checked(data, dtype, shape), dtype, shape) for data, dtype, shape in items]
    floats = [(view, dtype.code, shape) for view, dtype, shape in tensors if dtype.layout.planes]
    level = LEVELS.index(options.level)
    coded = iter(_native.encode_frames(floats, level, options.chunk_log2, options.native_threads))
    others = iter(_encode_others([tensor for tensor in tensors if not tensor[1].layout.planes], options))
    return [next(coded if dtype.layout.planes else others) for _, dtype, _ in tensors]


def _encode_others(
    tensors: Sequence[tuple[Bytes, DType, Sequence[int]]], options: Options
) -> Iterator[bytes]:
    """Frames of what is not cut into planes."""
    runs, builders = [], []
    for view, dtype, shape in tensors:
        plan = make_plan(view, dtype.layout, options)
        header_size = _header_size(len(shape), 0, plan.chunk_count)
        builder = _system.BytesBuilder(header_size + plan.capacity + 8)
        index = _native.words(2 * plan.chunk_count)
        runs.append(EncodeRun(plan, view, builder.address + header_size, index))
        builders.append(builder)
    encode_runs(runs, options)
    for (_, dtype, shape), run, builder in zip(tensors, runs, builders, strict=True):
        header = header_bytes(dtype, shape, run.plan, options.level, run.index)
        end = len(header) + run.written
        builder.write(0, header)
        builder.write(end, bytes(-end % 8))
        yield builder.finish(_padded(end))


class Encoder:
    """Encodes one tensor piece by piece, holding one batch of chunks at a time.

    Write :meth:`batches` one after another from ``header_size`` bytes behind the frame's start; when they are
    exhausted, :meth:`header` is what belongs at the start.
    """

    def __init__(
        self,
        data: Any,
        dtype: DType,
        shape: Sequence[int],
        options: Options | None = None,
        plan: Plan | None = None,
    ) -> None:
        """plan: how to code it; then `data` need not be a buffer, only its slices."""
        self._view = data if plan else _checked(data, dtype, shape)
        _check_size(len(self._view), dtype, shape)
        self._dtype, self._shape, self._options = dtype, tuple(shape), options or Options()
        self._plan = plan or make_plan(self._view, dtype.layout, self._options)
        self._index = _native.words(2 * self._plan.chunk_count)
        self.header_size = _header_size(len(shape), len(self._plan.table), self._plan.chunk_count)
        self.frame_size = self.header_size
        """Bytes of the frame so far; final when the batches are exhausted."""

    def batches(self, batch_size: int, scratch: _system.Scratch) -> Iterator[memoryview]:
        """Compressed bytes of about ``batch_size`` original bytes at a time. Each is valid until the next."""
        plan = self._plan
        chunks = max(1, batch_size // plan.chunk_size)
        buffer = scratch.room(plan.run_capacity(min(chunks * plan.chunk_size, plan.size)) + 8)
        target = _system.address(buffer)
        for first in range(0, plan.chunk_count, chunks):
            source = _native.as_bytes(
                self._view[first * plan.chunk_size : (first + chunks) * plan.chunk_size]
            )
            index = self._index[2 * first : 2 * (first + chunks)]
            run = EncodeRun(plan, source, target, index, first)
            encode_runs([run], self._options)
            written = run.written
            if first + chunks >= plan.chunk_count:
                padded = _padded(self.frame_size + written) - self.frame_size
                buffer[written:padded] = bytes(padded - written)
                written = padded
            self.frame_size += written
            yield buffer[:written]

    def header(self) -> bytes:
        """The frame's header, once the batches are exhausted."""
        return bytes(header_bytes(self._dtype, self._shape, self._plan, self._options.level, self._index))
