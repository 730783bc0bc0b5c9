"""A compressed weight: one frame (spec §5) as a uint8 tensor, with the dtype and shape it decodes to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from neuzip import frame
from neuzip.codec import Options
from neuzip.errors import InvalidArgument
from neuzip.nn.fixed_width_code import decode_fixed_width_rows, is_fixed_width
from neuzip.nn.lossy_code import decode_lossy_rows, is_lossy
from neuzip.nn.rows import decode_rows
from neuzip.torch import dtype_of, memory, native_shape

PIECE_BYTES = 256 << 20
"""Dense bytes above which a weight is decoded, used and discarded in pieces of this many bytes."""


def encode(dense: torch.Tensor, options: Options | None = None) -> torch.Tensor:
    """The frame of a contiguous CPU tensor, uint8 (frame_size,). Raises InvalidArgument for other tensors."""
    if dense.device.type != "cpu" or not dense.is_contiguous():
        raise InvalidArgument(f"only contiguous CPU tensors are encoded, not one on {dense.device}")
    encoded = frame.encode(memory(dense.detach()), dtype_of(dense.dtype), dense.shape, options)
    # A copy, because a tensor must own memory that may be written.
    return torch.from_numpy(np.frombuffer(encoded, np.uint8).copy())


def decode(
    frame_bytes: torch.Tensor, out: torch.Tensor, options: Options | None = None, first_row: int = 0
) -> torch.Tensor:
    """Decodes rows ``first_row`` … of a frame into ``out``, a contiguous CPU tensor of as many rows, and
    returns it.

    frame_bytes: uint8 (frame_size,), or the bytes of a lossy or fixed-width weight. ``out`` has the frame's dtype
    and, but for the first, its dimensions.
    Raises CorruptFrame, TruncatedInput.
    """
    data = memory(frame_bytes)
    if is_fixed_width(frame_bytes):
        read = decode_fixed_width_rows
    else:
        read = decode_lossy_rows if is_lossy(data) else decode_rows
    read(data, out, options, first_row)
    return out


class Weight:
    """The compressed value that a :class:`CompressedTensor` and all its views share.

    frame: uint8 (frame_size,); replaced as a whole when the value changes. shape and dtype are the dense
    tensor's.
    level: of compression. piece_bytes: dense bytes above which the weight is used in pieces.
    """

    __slots__ = ("__weakref__", "dtype", "frame", "level", "piece_bytes", "shape")

    def __init__(
        self,
        frame_bytes: torch.Tensor,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        level: str = "default",
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        self.frame = frame_bytes
        self.shape = tuple(shape)
        self.dtype = dtype
        self.level = level
        self.piece_bytes = piece_bytes

    @classmethod
    def of(cls, dense: torch.Tensor, level: str = "default", piece_bytes: int = PIECE_BYTES) -> Weight:
        """Compresses a dense tensor of any strides, on any device."""
        contiguous = dense.detach().contiguous()
        encoded = encode(contiguous.cpu(), Options(level=level))
        return cls(encoded.to(dense.device), tuple(dense.shape), dense.dtype, level, piece_bytes)

    def check(self) -> None:
        """Raises InvalidArgument unless the frame is one of this shape and dtype; its chunks are not decoded.

        Also raises CorruptFrame, TruncatedInput, UnsupportedFormat.
        """
        if self.frame.dtype != torch.uint8 or self.frame.dim() != 1:
            raise InvalidArgument(
                f"a frame is uint8 (frame_size,), not {self.frame.dtype} {list(self.frame.shape)}"
            )
        header = frame.read_header(memory(self.frame.cpu()), whole=True)
        if header.dtype is not dtype_of(self.dtype) or native_shape(header.dtype, header.shape) != self.shape:
            raise InvalidArgument(
                f"the frame holds {header.dtype.name} {list(header.shape)}, "
                f"the weight is {self.dtype} {list(self.shape)}"
            )

    @property
    def device(self) -> torch.device:
        return self.frame.device

    @property
    def nbytes(self) -> int:
        """Compressed bytes."""
        return self.frame.numel()

    @property
    def dense_nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def dense(self, out: torch.Tensor | None = None) -> torch.Tensor:
        """The dense tensor, contiguous, on the weight's device; decoded into ``out`` if given."""
        if out is None:
            out = torch.empty(self.shape, dtype=self.dtype)
        decode(self.frame.cpu(), out)
        return out.to(self.device)

    def rows(self, first: int, out: torch.Tensor) -> torch.Tensor:
        """Rows ``first`` … ``first + len(out) − 1`` decoded into ``out``; only their chunks are touched."""
        return decode(self.frame, out, first_row=first)

    def assign(self, dense: torch.Tensor) -> None:
        """Takes the value of a dense tensor of the same shape, converted to the weight's dtype and device."""
        if tuple(dense.shape) != self.shape:
            raise InvalidArgument(f"a weight of shape {self.shape} cannot take {tuple(dense.shape)}")
        self.frame = self.like(dense.detach().to(self.dtype)).frame.to(self.device)

    def like(self, dense: torch.Tensor) -> Weight:
        """A weight made of a dense tensor in the way that this one was."""
        return type(self).of(dense, self.level, self.piece_bytes)

    def shares_form(self, other: Weight) -> bool:
        """Whether another weight's frame may stand for a value of this one."""
        return type(self) is type(other) is Weight and self.dtype == other.dtype

    def with_frame(self, frame_bytes: torch.Tensor) -> Weight:
        """A weight that differs in its frame only."""
        return type(self)(frame_bytes, self.shape, self.dtype, self.level, self.piece_bytes)

    def copy(self, device: Any = None) -> Weight:
        """An independent weight of the same bytes, on ``device`` if given."""
        frame_bytes = self.frame.clone() if device is None else self.frame.to(device, copy=True)
        return self.with_frame(frame_bytes)
