"""Very many frames at a time, of tensors that lie one behind the other: with little of Python for each.

A frame of a tensor of some kilobytes is coded in a few microseconds, which is what a handful of calls takes.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from neuzip import _abi, _native
from neuzip._native import Bytes
from neuzip._system import Scratch, address
from neuzip.codec import LEVELS, Options
from neuzip.layouts import DType


class FramePlace(NamedTuple):
    """A frame in a buffer and its tensor's place in another: where they begin, their bytes, and its type."""

    frame_start: int
    frame_size: int
    start: int
    size: int
    dtype: DType
    shape: tuple[int, ...]


class TensorPlace(NamedTuple):
    """A tensor's bytes in a buffer: where they begin, their number, and its type, which is cut into planes."""

    start: int
    size: int
    dtype: DType
    shape: tuple[int, ...]


_DECODE_JOB = _abi.packed(_abi.DecodeFrameJob)
_ENCODE_JOB = _abi.packed(_abi.EncodeFrameJob)


def decode_run(frames: Bytes, out: Bytes, places: Sequence[FramePlace], options: Options) -> list[int]:
    """Decodes frames in `frames` to `out`, all in one go over the threads.

    Returns the numbers of those that were not decoded: of coding zstd, damaged, or of another dtype, shape or size than
    its tensor. What comes of these is unspecified.
    """
    lengths = array("Q", itertools.chain.from_iterable(place.shape for place in places))
    lengths.append(0)  # a pointer to no lengths at all could be NULL, with which nothing would be compared
    source, target, shape = address(frames), address(out), address(lengths)
    jobs = bytearray(_DECODE_JOB.size * len(places))
    at, verify = 0, int(options.verify)
    for frame_start, frame_size, start, size, dtype, extents in places:
        ndim = len(extents)
        _DECODE_JOB.pack_into(
            jobs,
            at,
            source + frame_start,
            frame_size,
            target + start,
            size,
            shape,
            ndim,
            dtype.code,
            verify,
            0,
        )
        shape += 8 * ndim
        at += _DECODE_JOB.size
    return _native.decode_frame_jobs(jobs, len(places), options.native_threads)


def encode_run(
    data: Bytes, places: Sequence[TensorPlace], options: Options, scratch: Scratch
) -> list[memoryview]:
    """A frame for each of the tensors in `data`, all encoded in one go over the threads.

    Frames are in the scratch memory, until that is used again.
    """
    log2, level = options.chunk_log2, LEVELS.index(options.level)
    bounds = [_native.frame_bound(place.dtype.code, len(place.shape), place.size, log2) for place in places]
    memory = scratch.room(sum(bounds))
    lengths = array("Q", itertools.chain.from_iterable(place.shape for place in places))
    source, target, shape = address(data), address(memory), address(lengths)
    jobs = bytearray(_ENCODE_JOB.size * len(places))
    at = 0
    for (start, size, dtype, extents), bound in zip(places, bounds, strict=True):
        ndim = len(extents)
        _ENCODE_JOB.pack_into(
            jobs,
            at,
            source + start,
            size,
            shape,
            ndim,
            dtype.code,
            level,
            log2,
            target,
            bound,
            0,
            0,
        )
        target += bound
        shape += 8 * ndim
        at += _ENCODE_JOB.size
    written = _native.encode_frame_jobs(jobs, len(places), options.native_threads)
    starts = itertools.accumulate(bounds, initial=0)
    return [memory[start : start + size] for start, size in zip(starts, written, strict=False)]
