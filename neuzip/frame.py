"""Frames (spec §5): one compressed tensor with its dtype, shape, tables, chunk index and checksums."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from neuzip import _native
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

_FIXED = struct.Struct("<4sBBBBHBBIQQQ")
_CHECKSUM = slice(32, 40)
_MAX_NDIM = 32
_MAX_RATIO_LOG2 = 17  # §6: size ≤ 2^17 · frame_size


@dataclass(frozen=True)
class Header:
    """A frame's header. ``lengths`` and ``checksums`` are u32 arrays, one entry a chunk."""

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


@dataclass(frozen=True)
class _Fixed:
    """The first 40 bytes of a header, as far as they can be checked alone."""

    dtype: DType
    plan: Plan  # without its table
    ndim: int
    level: int
    table_size: int
    frame_size: int
    checksum: int

    @property
    def header_size(self) -> int:
        return _header_size(self.ndim, self.table_size, self.plan.chunk_count)


def _read_fixed(view: Bytes) -> _Fixed:
    if view.size < FIXED_SIZE:
        raise TruncatedInput(f"a frame header has at least {FIXED_SIZE} bytes, here are {view.size}")
    (
        magic,
        version,
        code,
        coding,
        chunk_log2,
        required,
        ndim,
        level,
        table_size,
        size,
        frame_size,
        checksum,
    ) = _FIXED.unpack_from(view)
    if magic != MAGIC:
        raise UnsupportedFormat("not a neuzip frame: wrong magic")
    if version != VERSION:
        raise UnsupportedFormat(f"frame version {version}, this release reads {VERSION}")
    if required:
        raise UnsupportedFormat(
            f"the frame requires features this release does not have (bits {required:#x})"
        )
    dtype = dtype_by_code(code)
    if dtype is None:
        raise UnsupportedFormat(f"dtype code {code} is unknown")
    if coding > Coding.ZSTD:
        raise UnsupportedFormat(f"coding {coding} is unknown")
    if not 10 <= chunk_log2 <= (16 if coding == Coding.PLANES else 20) or ndim > _MAX_NDIM:
        raise CorruptFrame("the frame header has impossible chunk sizes or dimensions")
    if size > frame_size << _MAX_RATIO_LOG2:
        raise CorruptFrame(f"the frame claims {size} original bytes in {frame_size}")
    plan = Plan(dtype.layout, Coding(coding), chunk_log2, b"", size)
    fixed = _Fixed(dtype, plan, ndim, level, table_size, frame_size, checksum)
    if fixed.header_size > frame_size:
        raise CorruptFrame("the frame header is longer than its frame")
    return fixed


def header_length(prefix: Any) -> int:
    """Bytes of the header that begins with ``prefix``, of which 40 are enough; at most those of its frame."""
    return _read_fixed(_native.as_bytes(prefix)).header_size


def read_header(buffer: Any, *, whole: bool = False) -> Header:
    """The header at the start of ``buffer``, checked (spec §6).

    With ``whole``, the buffer must be exactly the frame, with zero padding at its end. Raises TruncatedInput,
    CorruptFrame or UnsupportedFormat.
    """
    view = _native.as_bytes(buffer)
    fixed = _read_fixed(view)
    length = fixed.header_size
    if view.size < length:
        raise TruncatedInput(f"the frame header has {length} bytes, here are {view.size}")
    raw = bytearray(view[:length])
    raw[_CHECKSUM] = bytes(8)
    if _native.checksum64(raw) != fixed.checksum:
        raise CorruptFrame("the frame header does not match its checksum")
    shape = struct.unpack_from(f"<{fixed.ndim}Q", raw, FIXED_SIZE)
    at = FIXED_SIZE + 8 * fixed.ndim
    plan = replace(fixed.plan, table=bytes(raw[at : at + fixed.table_size]))
    index = np.frombuffer(raw, "<u4", offset=length - 8 * plan.chunk_count)
    header = Header(fixed.dtype, shape, fixed.level, plan, fixed.frame_size, length, index)
    _check_header(header)
    if whole:
        _check_whole(header, view)
    return header


def _check_header(header: Header) -> None:
    plan = header.plan
    if header.dtype.nbytes(header.shape) != plan.size:
        raise CorruptFrame(f"shape {header.shape} of {header.dtype.name} does not have {plan.size} bytes")
    if plan.coding is Coding.PLANES and not plan.layout.planes:
        raise CorruptFrame(f"{header.dtype.name} is not cut into planes")
    if plan.coding is not Coding.PLANES and plan.table:
        raise CorruptFrame("only planes have a table")
    if _padded(header.offsets[-1]) != header.frame_size:
        raise CorruptFrame("the chunks do not fill the frame")
    last = plan.size - (plan.chunk_count - 1) * plan.chunk_size
    if plan.coding is not Coding.PLANES and plan.chunk_count:
        # A stored chunk has its original length, a zstd chunk at most that.
        most = np.full(plan.chunk_count, plan.chunk_size, np.uint64)
        most[-1] = last
        wrong = header.lengths > most if plan.coding is Coding.ZSTD else header.lengths != most
        if wrong.any():
            raise CorruptFrame("a chunk has an impossible length", chunk=int(wrong.argmax()))


def check_length(header: Header, size: int) -> None:
    """Raises TruncatedInput or CorruptFrame unless a frame has ``size`` bytes."""
    if size < header.frame_size:
        raise TruncatedInput(f"the frame has {header.frame_size} bytes, here are {size}")
    if size > header.frame_size:
        raise CorruptFrame(f"{size - header.frame_size} bytes follow the frame")


def _check_whole(header: Header, view: Bytes) -> None:
    check_length(header, view.size)
    if view[header.offsets[-1] :].any():
        raise CorruptFrame("padding is not zero")


def decode(frame: Any, out: Any, options: Options | None = None, header: Header | None = None) -> None:
    """Decodes a whole frame into ``out``, a writable buffer of exactly its original size.

    header: the frame's, if it was read as a whole frame's before.
    """
    view = _native.as_bytes(frame)
    header = header or read_header(view, whole=True)
    decode_chunks(header, _all_chunks(header, view), 0, header.chunk_count, out, options)


def _all_chunks(header: Header, frame: Bytes) -> Bytes:
    return frame[header.header_size : header.offsets[-1]]


def decode_many(
    items: Sequence[tuple[Any, Any]],
    options: Options | None = None,
    names: Sequence[str | None] | None = None,
) -> None:
    """Decodes frames into buffers, all in one go over the threads. Errors name the tensor if ``names`` does."""
    options = options or Options()
    runs = []
    for number, (frame, out) in enumerate(items):
        try:
            view = _native.as_bytes(frame)
            header = read_header(view, whole=True)
            runs.append(_decode_run(header, _all_chunks(header, view), 0, header.chunk_count, out))
        except NeuzipError as error:
            raise error.at(tensor=names[number] if names else None) from None
    decode_runs(runs, options)
    for number, run in enumerate(runs):
        if run.error is not None:
            raise run.error.at(tensor=names[number] if names else None)


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
    if target.size != end - start or not target.flags.writeable:
        raise InvalidArgument(f"out must be a writable buffer of {end - start} bytes")
    if data.size != header.offsets[first + count] - header.offsets[first]:
        raise TruncatedInput(f"chunks {first} to {first + count} have other lengths than {data.size} bytes")
    return DecodeRun(header.plan, data, header.index[2 * first : 2 * (first + count)], target, first)


def _check_source(view: Bytes, dtype: DType, shape: Sequence[int]) -> None:
    if not all(0 <= length < 1 << 64 for length in shape):
        raise InvalidArgument(f"shape {tuple(shape)} has impossible lengths")
    if dtype.nbytes(shape) != view.size:
        raise InvalidArgument(f"shape {tuple(shape)} of {dtype.name} does not have {view.size} bytes")
    if len(shape) > _MAX_NDIM:
        raise InvalidArgument(f"{len(shape)} dimensions; at most {_MAX_NDIM} are allowed")


def header_bytes(dtype: DType, shape: Sequence[int], plan: Plan, level: str, index: Words) -> bytearray:
    """The header of a frame whose chunks are known."""
    size = _header_size(len(shape), len(plan.table), plan.chunk_count)
    frame_size = _padded(size + int(index[0::2].sum(dtype=np.uint64)))
    raw = bytearray(size)
    fields = (plan.coding, plan.chunk_log2, 0, len(shape), LEVELS.index(level), len(plan.table), plan.size)
    _FIXED.pack_into(raw, 0, MAGIC, VERSION, dtype.code, *fields, frame_size, 0)
    struct.pack_into(f"<{len(shape)}Q", raw, FIXED_SIZE, *shape)
    at = FIXED_SIZE + 8 * len(shape)
    raw[at : at + len(plan.table)] = plan.table
    raw[size - 8 * plan.chunk_count :] = index.astype("<u4", copy=False).tobytes()
    raw[_CHECKSUM] = _native.checksum64(raw).to_bytes(8, "little")
    return raw


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
    runs, builders, sizes = [], [], []
    for data, dtype, shape in items:
        view = _native.as_bytes(data)
        _check_source(view, dtype, shape)
        plan = make_plan(view, dtype.layout, options)
        header_size = _header_size(len(shape), len(plan.table), plan.chunk_count)
        builder = _native.BytesBuilder(header_size + plan.capacity + 8)
        runs.append(
            EncodeRun(plan, view, builder.address + header_size, np.empty(2 * plan.chunk_count, np.uint32))
        )
        builders.append(builder)
        sizes.append(header_size)
    encode_runs(runs, options)
    frames = []
    for (_, dtype, shape), run, builder, size in zip(items, runs, builders, sizes, strict=True):
        header = header_bytes(dtype, shape, run.plan, options.level, run.index)
        builder.write(0, header)
        builder.write(size + run.written, bytes(-(size + run.written) % 8))
        frames.append(builder.finish(_padded(size + run.written)))
    return frames


class Encoder:
    """Encodes one tensor piece by piece, holding one batch of chunks at a time.

    Write :meth:`batches` one after another from ``header_size`` bytes behind the frame's start; when they are
    exhausted, :meth:`header` is what belongs at the start.
    """

    def __init__(self, data: Any, dtype: DType, shape: Sequence[int], options: Options | None = None) -> None:
        self._view = _native.as_bytes(data)
        _check_source(self._view, dtype, shape)
        self._dtype, self._shape, self._options = dtype, tuple(shape), options or Options()
        self._plan = make_plan(self._view, dtype.layout, self._options)
        self._index = np.zeros(2 * self._plan.chunk_count, np.uint32)
        self.header_size = _header_size(len(shape), len(self._plan.table), self._plan.chunk_count)
        self.frame_size = self.header_size
        """Bytes of the frame so far; final when the batches are exhausted."""

    def batches(self, batch_size: int = 1 << 26) -> Iterator[memoryview]:
        """Compressed bytes of about ``batch_size`` original bytes at a time. Each is valid until the next."""
        plan = self._plan
        chunks = max(1, batch_size // plan.chunk_size)
        buffer = np.empty(plan.run_capacity(min(chunks * plan.chunk_size, plan.size)) + 8, np.uint8)
        for first in range(0, plan.chunk_count, chunks):
            source = self._view[first * plan.chunk_size : (first + chunks) * plan.chunk_size]
            index = self._index[2 * first : 2 * (first + chunks)]
            run = EncodeRun(plan, source, buffer.ctypes.data, index, first)
            encode_runs([run], self._options)
            written = run.written
            if first + chunks >= plan.chunk_count:
                padded = _padded(self.frame_size + written) - self.frame_size
                buffer[written:padded] = 0
                written = padded
            self.frame_size += written
            yield buffer[:written].data

    def header(self) -> bytes:
        """The frame's header, once the batches are exhausted."""
        return bytes(header_bytes(self._dtype, self._shape, self._plan, self._options.level, self._index))
