"""Runs of chunks: original bytes to compressed ones and back, over all cores (spec §4, §5).

A *run* is any number of consecutive chunks of one tensor. Nothing here knows frames, files or tensor shapes.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any

import zstandard

from neuzip import _abi, _native
from neuzip._native import Bytes, Words
from neuzip._system import address
from neuzip.errors import CorruptFrame, InvalidArgument, NeuzipError
from neuzip.layouts import Layout
from neuzip.worker import Worker

LEVELS = ("default", "max")
_ZSTD_CHUNK_LOG2 = 20
_ZSTD_LEVEL = 3


class Coding(IntEnum):
    """How a frame's chunks are coded (spec §5)."""

    STORED = 0
    PLANES = 1
    ZSTD = 2


@dataclass(frozen=True)
class Options:
    """How to compress and decompress.

    level: ``"default"`` codes exponents; ``"max"`` codes leading mantissa bits with them, smaller and slower.
    threads: at most this many; ``None`` means one for each processor this process may use.
    chunk_log2: units of a chunk, as a power of two, 10 … 16.
    verify: compare every chunk's checksum when decoding.
    backend: how files are read: "mmap"; "read", plain reads; None, plain reads on network file systems.
    team: work on the threads that the library was given (nz_set_team), if it was.
    """

    level: str = "default"
    threads: int | None = None
    chunk_log2: int = 16
    verify: bool = True
    backend: str | None = None
    team: bool = False

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise InvalidArgument(f"unknown level {self.level!r}; levels are {', '.join(LEVELS)}")
        if self.threads is not None and self.threads < 1:
            raise InvalidArgument(f"threads must be at least 1, not {self.threads}")
        if not 10 <= self.chunk_log2 <= 16:
            raise InvalidArgument(f"chunk_log2 must be 10 to 16, not {self.chunk_log2}")

    @property
    def thread_count(self) -> int:
        return self.threads or _processors()

    @property
    def native_threads(self) -> int:
        """``threads`` of the C interface."""
        return self.thread_count + (_abi.TEAM if self.team else 0)


@cache
def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Plan:
    """How one tensor's chunks are coded: everything a run needs besides its bytes."""

    layout: Layout
    coding: Coding
    chunk_log2: int
    table: bytes
    size: int
    """Original bytes of the whole tensor."""

    @property
    def chunk_size(self) -> int:
        """Original bytes of a full chunk."""
        return (self.layout.width if self.coding is Coding.PLANES else 1) << self.chunk_log2

    @property
    def chunk_count(self) -> int:
        return -(-self.size // self.chunk_size)

    @property
    def capacity(self) -> int:
        """Bytes that suffice for all chunks."""
        return self.run_capacity(self.size)

    def run_capacity(self, size: int) -> int:
        """Bytes that suffice for a run of ``size`` original bytes."""
        if self.coding is not Coding.PLANES:
            return size
        overhead = _native.chunk_bound(self.layout.id, self.chunk_log2) - self.chunk_size
        return size + -(-size // self.chunk_size) * overhead


def is_coded(size: int, layout: Layout) -> bool:
    """Whether a tensor of ``size`` bytes is cut into planes."""
    return layout.planes and size >= _abi.SMALL


def make_plan(data: Bytes, layout: Layout, options: Options) -> Plan:
    """Looks at a tensor's bytes and decides how to code them."""
    if data.nbytes < _abi.SMALL:
        return Plan(layout, Coding.STORED, _ZSTD_CHUNK_LOG2, b"", data.nbytes)
    if not layout.planes:
        return Plan(layout, Coding.ZSTD, _ZSTD_CHUNK_LOG2, b"", data.nbytes)
    level = LEVELS.index(options.level)
    table = _native.plan(layout.id, level, options.chunk_log2, data, data.nbytes // layout.width)
    return Plan(layout, Coding.PLANES, options.chunk_log2, table, data.nbytes)


@dataclass
class EncodeRun:
    """A run to encode. ``source`` begins at chunk ``first`` and ends at a chunk boundary or the tensor's end;
    ``index`` receives length and checksum of each chunk; ``target`` is the address of at least
    ``plan.run_capacity(source.nbytes)`` bytes."""

    plan: Plan
    source: Bytes
    target: int
    index: Words
    first: int = 0
    written: int = 0


@dataclass
class DecodeRun:
    """A run from chunk ``first`` to decode into ``target``, which has exactly its original size."""

    plan: Plan
    source: Bytes
    index: Words
    target: Bytes
    first: int = 0
    error: NeuzipError | None = None


def encode_runs(runs: Sequence[EncodeRun], options: Options) -> None:
    """Encodes runs of any tensors, splitting them over threads; fills in ``written`` and ``index``."""
    native = [run for run in runs if run.plan.coding is Coding.PLANES]
    jobs = [_encode_job(run) for run in native]
    _native.encode(jobs, options.native_threads)
    for run, job in zip(native, jobs, strict=True):
        if (error := _native.job_error(job)) is not None:
            raise error
        run.written = job.written
    _in_threads(_encode_other, [run for run in runs if run.plan.coding is not Coding.PLANES], options)


def decode_runs(runs: Sequence[DecodeRun], options: Options) -> None:
    """Decodes runs of any tensors, splitting them over threads. A failing run's ``error`` is set; none is
    raised.
    """
    native = [run for run in runs if run.plan.coding is Coding.PLANES]
    jobs = [_decode_job(run, options.verify) for run in native]
    _native.decode(jobs, options.native_threads)
    for run, job in zip(native, jobs, strict=True):
        run.error = _native.job_error(job)
    others = [run for run in runs if run.plan.coding is not Coding.PLANES]
    _in_threads(lambda run: _decode_other(run, options.verify), others, options)


def _encode_job(run: EncodeRun) -> _abi.EncodeJob:
    plan = run.plan
    return _abi.EncodeJob(
        src=address(run.source),
        units=run.source.nbytes // plan.layout.width,
        first_chunk=run.first,
        table=plan.table,
        table_bytes=len(plan.table),
        layout=plan.layout.id,
        chunk_log2=plan.chunk_log2,
        dst=run.target,
        capacity=plan.run_capacity(run.source.nbytes),
        index=address(run.index),
    )


def _decode_job(run: DecodeRun, verify: bool) -> _abi.DecodeJob:
    plan = run.plan
    return _abi.DecodeJob(
        src=address(run.source),
        size=run.source.nbytes,
        index=address(run.index),
        units=run.target.nbytes // plan.layout.width,
        first_chunk=run.first,
        table=plan.table,
        table_bytes=len(plan.table),
        layout=plan.layout.id,
        chunk_log2=plan.chunk_log2,
        verify=int(verify),
        dst=address(run.target),
    )


def _in_threads(work: Callable[[Any], None], runs: Sequence[Any], options: Options) -> None:
    # Nearly every call, and there is one for each piece that is decoded.
    if len(runs) < 2 or options.thread_count < 2:
        for run in runs:
            work(run)
        return
    left = deque(runs)

    def work_on() -> None:
        while left:
            try:
                run = left.popleft()
            except IndexError:  # another thread took the last
                return
            work(run)

    with ExitStack() as stack:
        helpers = min(options.thread_count, len(runs)) - 1
        workers = [stack.enter_context(Worker()) for _ in range(helpers)]
        stack.callback(left.clear)  # after a failure, only what has been begun is finished
        for worker in workers:
            worker.call(work_on)
        work_on()
        for worker in workers:
            worker.wait()


def _pieces(size: int, plan: Plan) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each chunk of a run with ``size`` original bytes."""
    for chunk, start in enumerate(range(0, size, plan.chunk_size)):
        yield chunk, start, min(start + plan.chunk_size, size)


def _encode_other(run: EncodeRun) -> None:
    """Codings stored and zstd; a chunk that does not shrink is its original bytes."""
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
    at = 0
    for chunk, start, end in _pieces(run.source.nbytes, run.plan):
        original = run.source[start:end]
        coded: Any = compressor.compress(original) if run.plan.coding is Coding.ZSTD else original
        if len(coded) >= len(original):
            coded = original
        ctypes.memmove(run.target + at, address(coded), len(coded))
        run.index[2 * chunk] = len(coded)
        run.index[2 * chunk + 1] = _native.checksum64(original) & 0xFFFFFFFF
        at += len(coded)
    run.written = at


def _decode_other(run: DecodeRun, verify: bool) -> None:
    try:
        at = 0
        for chunk, start, end in _pieces(run.target.nbytes, run.plan):
            length, checksum = int(run.index[2 * chunk]), int(run.index[2 * chunk + 1])
            target = run.target[start:end]
            _decode_piece(run.plan.coding, run.source[at : at + length], target, chunk)
            if verify and _native.checksum64(target) & 0xFFFFFFFF != checksum:
                raise CorruptFrame("checksum mismatch", chunk=chunk)
            at += length
    except NeuzipError as error:
        run.error = error


def _decode_piece(coding: Coding, source: Bytes, target: Bytes, chunk: int) -> None:
    if len(source) == len(target):
        target[:] = source
        return
    if coding is Coding.STORED:
        raise CorruptFrame("a stored chunk has a wrong length", chunk=chunk)
    try:
        if zstandard.get_frame_parameters(source).content_size != len(target):
            raise CorruptFrame("a zstd chunk has a wrong original length", chunk=chunk)
        decoded = zstandard.ZstdDecompressor().decompress(
            source, max_output_size=len(target), allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise CorruptFrame(f"zstd: {error}", chunk=chunk) from None
    target[:] = memoryview(decoded)
