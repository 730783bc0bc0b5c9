"""Very many frames at a time, of tensors that lie one behind the other: with little of Python for each.

A frame of a tensor of some kilobytes is coded in a few microseconds, which is what a handful of calls takes.
"""

from __future__ import annotations

import itertools
import struct
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from neuzip import _native
from neuzip._native import Bytes
from neuzip.codec import Options
from neuzip.layouts import DType


class FramePlace(NamedTuple):
    """A frame in a buffer and its tensor's place in another: where they begin, their bytes, and its type."""

    frame_start: int
    frame_size: int
    start: int
    size: int
    dtype: DType
    shape: tuple[int, ...]


_DECODE_JOB = struct.Struct("@PQPQPiiii")  # nz_decode_frame_job


def decode_run(frames: Bytes, out: Bytes, places: Sequence[FramePlace], options: Options) -> list[int]:
    """Decodes frames in `frames` to `out`, all in one go over the threads.

    Returns the numbers of those that were not decoded: of coding zstd, damaged, or of another dtype, shape or size than
    its tensor. What comes of these is unspecified.
    """
    lengths = array("Q", itertools.chain.from_iterable(place.shape for place in places))
    source, target, shape = _native.address(frames), _native.address(out), _native.address(lengths)
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
    return _native.decode_frame_jobs(jobs, len(places), options.thread_count)
