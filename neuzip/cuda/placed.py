"""Frames in a device's memory, whose headers the host has read and checked (spec §6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from neuzip import _native
from neuzip import frame as frames
from neuzip.codec import Coding
from neuzip.cuda.jobs import CHUNK, Records
from neuzip.cuda.kernels import upload
from neuzip.errors import CorruptFrame, InvalidArgument

_ATTRIBUTE = "_neuzip_placed"

_FIRST_READ = 4096
"""Bytes of a frame read at first: most headers."""

_ALIGNMENT = 8


@dataclass
class Placed:
    """What is known of a frame on a device: its header, and its chunks as the kernels have them.

    chunks: CHUNK records, uint8, on the device; offsets count from the frame. version: of the tensor with the frame's
    bytes when they were read. verified: bool for each chunk, whether it has been compared with its checksum.
    """

    header: frames.Header
    chunks: torch.Tensor
    version: int | None
    verified: npt.NDArray[np.bool_]

    @staticmethod
    def is_known(frame: torch.Tensor) -> bool:
        """Whether something is known of a frame."""
        return _ATTRIBUTE in frame.__dict__

    def attach(self, frame: torch.Tensor) -> None:
        """Knows the same of another tensor with the same bytes on the same device."""
        frame.__dict__[_ATTRIBUTE] = Placed(self.header, self.chunks, _version(frame), self.verified)

    @property
    def is_coded(self) -> bool:
        """Whether the kernels decode it; stored and zstd chunks are the host's work."""
        return self.header.coding is Coding.PLANES


def placed(frame: torch.Tensor) -> Placed:
    """What is known of a frame's bytes, uint8 (frame_size,), on a device.

    Read once for each tensor that holds a frame, which waits for the device, and again if it was written to.
    Raises CorruptFrame, TruncatedInput, UnsupportedFormat.
    """
    held: Placed | None = frame.__dict__.get(_ATTRIBUTE)
    if held is None or held.version != _version(frame):
        held = place(frame, _read_header(frame))
    return held


def place(frame: torch.Tensor, header: frames.Header) -> Placed:
    """Remembers a frame's header with the tensor that holds the frame's bytes."""
    if frame.data_ptr() % _ALIGNMENT:
        raise InvalidArgument(f"a frame on a device must begin at a multiple of {_ALIGNMENT} bytes")
    chunks = chunk_records(header) if header.coding is Coding.PLANES else np.empty(0, CHUNK)
    verified = np.zeros(header.chunk_count, np.bool_)
    held = Placed(header, upload(chunks, frame.device), _version(frame), verified)
    frame.__dict__[_ATTRIBUTE] = held
    return held


def chunk_records(header: frames.Header) -> Records:
    """A CHUNK record for each chunk of a frame. Raises CorruptFrame for a table blob that breaks a rule (§5)."""
    records = np.zeros(header.chunk_count, CHUNK)
    records["offset"] = header.offsets[:-1]
    records["size"] = header.lengths
    records["checksum"] = header.checksums
    records["table"] = table_offsets(header.plan.layout.id, header.table, header.chunk_count)
    return records


def table_offsets(layout: int, blob: bytes, count: int) -> npt.NDArray[np.uint32]:
    """Where in a table blob each of ``count`` chunks has its entry, u32; zeros without a blob."""
    if not blob:
        return np.zeros(count, np.uint32)
    entries = _native.table_entries(layout, blob)
    rows = np.searchsorted(entries[:, 0], np.arange(count), "right") - 1
    return np.ascontiguousarray(entries[rows, 1])


def tables_offset(header: frames.Header) -> int:
    """Offset of the table blob in a frame: behind the shape (§5)."""
    return frames.FIXED_SIZE + 8 * len(header.shape)


def _read_header(frame: torch.Tensor) -> frames.Header:
    if frame.dtype != torch.uint8 or frame.dim() != 1:
        raise InvalidArgument(f"a frame is uint8 (frame_size,), not {frame.dtype} {list(frame.shape)}")
    start = frame[:_FIRST_READ].cpu().numpy()
    length = frames.header_length(start)
    if length > start.size:
        start = frame[:length].cpu().numpy()
    header = frames.read_header(start)
    frames.check_length(header, frame.numel())
    if frame[header.offsets[-1] :].cpu().numpy().any():
        raise CorruptFrame("padding is not zero")
    return header


def _version(frame: torch.Tensor) -> int | None:
    return None if frame.is_inference() else frame._version
