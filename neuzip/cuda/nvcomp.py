"""NVIDIA's nvCOMP as another coder of exponents: plane 0 through its ANS, the other planes as they are (spec §3).

For memory only: nvCOMP's stream format changes between its versions, and nothing in it is checked, so that what was
damaged is not found. Written against the documentation of nvidia-nvcomp 6.0, section names as there.

The bytes of a weight:

| bytes | type | meaning |
|---|---|---|
| 0–3 | u8 × 4 | "NZNV" |
| 4–7 | u32 | bytes a unit |
| 8–15 | u64 | units |
| then | u32 each | bytes of each segment of plane 0, of ``SEGMENT`` units, coded |
| at multiples of 16 | | the coded segments |
| at a multiple of 16 | | planes 1 …, one behind the other |
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from neuzip.cuda.driver import Driver, current, index_of
from neuzip.cuda.jobs import PLANES
from neuzip.cuda.kernels import launch, upload
from neuzip.errors import InvalidArgument

MAGIC = b"NZNV"
SEGMENT = 1 << 20
"""Units that are coded on their own: what is decoded, at least, to read a row."""

_FIXED = struct.Struct("<4sIQ")
FIXED_SIZE = _FIXED.size
_ALIGNMENT = 16
"""Of buffers, "if in doubt" (nvcomp.as_arrays)."""


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def obstacle() -> str | None:
    """Why nvCOMP cannot be used, in one line; None if it can be imported."""
    try:
        import_module("nvidia.nvcomp")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"nvCOMP cannot be imported ({error}): pip install nvidia-nvcomp-cu12 (or -cu13)"
    return None


@dataclass(frozen=True)
class Held:
    """What the host knows of a weight's bytes. sizes: of the coded segments."""

    width: int
    units: int
    sizes: tuple[int, ...]

    @cached_property
    def offsets(self) -> list[int]:
        """Of the coded segments, and of what follows them."""
        start = _padded(FIXED_SIZE + 4 * len(self.sizes))
        return list(accumulate(map(_padded, self.sizes), initial=start))

    def segment_units(self, first: int, last: int) -> list[int]:
        """Units of segments ``first`` … ``last − 1``."""
        return [min(SEGMENT, self.units - number * SEGMENT) for number in range(first, last)]

    def header(self) -> bytes:
        sizes = struct.pack(f"<{len(self.sizes)}I", *self.sizes)
        return (_FIXED.pack(MAGIC, self.width, self.units) + sizes).ljust(self.offsets[0], b"\0")


def read_held(data: torch.Tensor) -> Held:
    """What is known of bytes on a device; waits for it."""
    magic, width, units = _FIXED.unpack(data[:FIXED_SIZE].cpu().numpy().tobytes())
    assert magic == MAGIC
    count = -(-units // SEGMENT)
    sizes = data[FIXED_SIZE : FIXED_SIZE + 4 * count].cpu().numpy().view("<u4")
    return Held(width, units, tuple(sizes.tolist()))


_codecs: dict[tuple[Driver, int, int], Any] = {}


def _codec(index: int) -> Any:
    """nvCOMP's codec for the current stream of a device."""
    stream = current().stream_handle(index)
    key = (current(), index, stream)
    if key not in _codecs:
        reason = obstacle()
        if reason is not None:
            raise InvalidArgument(reason)
        nvcomp = import_module("nvidia.nvcomp")
        nvcomp.set_device_allocator(_TorchMemory)
        _codecs[key] = nvcomp.Codec(algorithm="ANS", data_type="|u1", device_id=index, cuda_stream=stream)
    return _codecs[key]


class _TorchMemory:
    """What nvCOMP needs beside the buffers it is given, from torch's allocator, in the order of the current stream."""

    def __init__(self, size: int, stream: Any) -> None:
        driver = current()
        device = torch.device(driver.device_type, driver.current_index())
        self._memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.ptr = self._memory.data_ptr()


def _batch(buffer: torch.Tensor, offsets: list[int], sizes: list[int], index: int) -> Any:
    arrays = import_module("nvidia.nvcomp").as_arrays
    return arrays(buffer, offsets, sizes, cuda_stream=current().stream_handle(index))


def encode(dense: torch.Tensor, width: int) -> tuple[torch.Tensor, Held]:
    """A contiguous device tensor's bytes, uint8 (size,), and what is known of them. Waits for the segments' sizes.

    width: bytes a unit. Raises InvalidArgument without nvCOMP.
    """
    original = dense.detach().reshape(-1).view(torch.uint8)
    units = original.numel() // width
    stride = _padded(units)
    planes = torch.empty(width * stride, dtype=torch.uint8, device=dense.device)
    _cut("nz_split", original, planes, units, stride, width)
    segments, sizes = _encode_plane(planes[:units])
    held = Held(width, units, tuple(sizes))
    header = upload(np.frombuffer(held.header(), np.uint8), dense.device)
    raw = [planes[p * stride : p * stride + units] for p in range(1, width)]
    return torch.cat([header, *segments, *raw]), held


def _encode_plane(plane: torch.Tensor) -> tuple[list[torch.Tensor], list[int]]:
    """Coded segments, padded, and their sizes."""
    if not plane.numel():
        return [], []
    index = index_of(plane.device)
    codec = _codec(index)
    starts = list(range(0, plane.numel(), SEGMENT))
    counts = [min(SEGMENT, plane.numel() - start) for start in starts]
    nvcomp = import_module("nvidia.nvcomp")
    stream = current().stream_handle(index)
    most = _padded(codec.get_max_comp_buffer_size(nvcomp.as_array(plane[: counts[0]], cuda_stream=stream)))
    room = torch.zeros(most * len(starts), dtype=torch.uint8, device=plane.device)
    coded = _batch(room, [most * number for number in range(len(starts))], [most] * len(starts), index)
    source = _batch(plane, starts, counts, index)
    codec.encode(source, out=coded, compression_config=codec.compression_config(counts))
    sizes = list(coded.buffer_sizes)
    return [room[most * n : most * n + _padded(size)] for n, size in enumerate(sizes)], sizes


def decode(data: torch.Tensor, held: Held, first_unit: int, out: torch.Tensor) -> None:
    """Starts decoding units ``first_unit`` … into ``out``, a contiguous tensor of the device. Nothing waits."""
    original = out.reshape(-1).view(torch.uint8)
    count = original.numel() // held.width
    if not count:
        return
    first, last = first_unit // SEGMENT, -(-(first_unit + count) // SEGMENT)
    counts = held.segment_units(first, last)
    skip, stride = first_unit - first * SEGMENT, _padded(sum(counts))
    planes = torch.empty(held.width * stride, dtype=torch.uint8, device=out.device)
    _decode_plane(data, held, first, last, planes[: sum(counts)])
    for plane in range(1, held.width):
        start = held.offsets[-1] + (plane - 1) * held.units + first_unit
        at = plane * stride + skip
        planes[at : at + count] = data[start : start + count]
    _cut("nz_merge", original, planes[skip:], count, stride, held.width)


def _decode_plane(data: torch.Tensor, held: Held, first: int, last: int, plane: torch.Tensor) -> None:
    index = index_of(data.device)
    codec = _codec(index)
    counts = held.segment_units(first, last)
    coded = _batch(data, held.offsets[first:last], list(held.sizes[first:last]), index)
    starts = list(accumulate(counts, initial=0))[:-1]
    # From the sizes alone: a configuration from the coded bytes would wait for them.
    config = codec.decompression_config(codec.compression_config(counts))
    codec.decode(coded, out=_batch(plane, starts, counts, index), decompression_config=config)


def _cut(name: str, units: torch.Tensor, planes: torch.Tensor, count: int, stride: int, width: int) -> None:
    """Units to planes, or planes to units."""
    if not count:
        return
    record = np.zeros(1, PLANES)
    record["units"], record["planes"] = units.data_ptr(), planes.data_ptr()
    record["count"], record["stride"], record["width"] = count, stride, width
    arguments = (upload(record, units.device), np.uint32(1))
    launch("planes.cu", name, units.device, count, arguments, warps=8, block_tasks=2048)
