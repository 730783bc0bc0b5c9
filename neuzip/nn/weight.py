"""A compressed weight: one frame (spec §5) as a uint8 tensor, with the dtype and shape it decodes to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from weakref import ref

import numpy as np
import torch

from neuzip import frame
from neuzip.codec import Options
from neuzip.errors import InvalidArgument, NeuzipError
from neuzip.nn.fixed_width_code import decode_fixed_width_rows, is_fixed_width
from neuzip.nn.lossy_code import decode_lossy_rows, is_lossy
from neuzip.nn.rows import decode_rows
from neuzip.nn.scratch import scratch
from neuzip.nn.team import torch_options
from neuzip.pages import in_pages
from neuzip.torch import dtype_of, memory, native_shape, works_on

PIECE_BYTES = 256 << 20
"""Dense bytes above which a weight is decoded, used and discarded in pieces of this many bytes."""

CHUNK_LOG2 = Options.chunk_log2
"""Elements of a chunk, as a power of two, where nothing else is asked for."""


def encode(dense: torch.Tensor, options: Options | None = None) -> torch.Tensor:
    """The frame of a contiguous tensor, uint8 (frame_size,), on its device. Raises InvalidArgument for other tensors.

    A GPU that neuzip.cuda trusts encodes its own; it is waited for.
    """
    if not dense.is_contiguous():
        raise InvalidArgument("only contiguous tensors are encoded")
    dtype, options = dtype_of(dense.dtype), options or torch_options()
    if works_on(dense.device):
        from neuzip.cuda.encoding import encode as encode_there

        return encode_there(dense, dtype, dense.shape, options)
    if dense.device.type != "cpu":
        return encode(dense.cpu(), options).to(dense.device)
    encoded = frame.encode(memory(dense.detach()), dtype, dense.shape, options)
    return own(encoded)


def own(frame_bytes: Any) -> torch.Tensor:
    """A copy of a frame, any buffer, as a CPU tensor, uint8 (frame_size,), that may live long (neuzip/pages.py)."""
    return torch.from_numpy(in_pages(np.frombuffer(frame_bytes, np.uint8)))


def decode(
    frame_bytes: torch.Tensor, out: torch.Tensor, options: Options | None = None, first_row: int = 0
) -> torch.Tensor:
    """Decodes rows ``first_row`` … of a frame into ``out``, a contiguous tensor of as many rows, and returns it.

    frame_bytes: uint8 (frame_size,), or the bytes of a lossy or fixed-width weight, on ``out``'s device or on the CPU.
    ``out`` has the frame's dtype and, but for the first, its dimensions. A GPU that neuzip.cuda trusts decodes into its
    own memory, and nobody waits for it: see neuzip.cuda.check.
    Raises CorruptFrame, TruncatedInput.
    """
    options = options or torch_options()
    if works_on(out.device):
        from neuzip.nn.device import decode_there

        decode_there(frame_bytes, out, first_row)
    elif out.device.type != "cpu":
        out.copy_(decode(frame_bytes.cpu(), scratch(out.shape, out.dtype), options, first_row))
    else:
        host = frame_bytes.cpu()
        try:
            _reader(host)(memory(host), out, options, first_row)
        except NeuzipError as error:
            raise error.at(tensor=name_of(frame_bytes)) from None
    return out


def _reader(host: torch.Tensor) -> Callable[[Any, torch.Tensor, Options | None, int], None]:
    """What decodes rows of bytes of their form."""
    if is_fixed_width(host):
        return decode_fixed_width_rows
    return decode_lossy_rows if is_lossy(memory(host)) else decode_rows


_OWNER = "_neuzip_owner"


def owner_of(frame_bytes: torch.Tensor) -> Weight | None:
    """The weight that has these bytes, of which operators see no more; None for a copy of them."""
    reference = frame_bytes.__dict__.get(_OWNER)
    return None if reference is None else reference()


def name_of(frame_bytes: torch.Tensor) -> str | None:
    """The name of the parameter whose bytes these are, if it is known."""
    owner = owner_of(frame_bytes)
    return None if owner is None else owner.name


def copied(frame_bytes: torch.Tensor, device: Any = None) -> torch.Tensor:
    """An independent copy of a frame, uint8 (frame_size,), on ``device`` if given."""
    target = frame_bytes.device if device is None else torch.device(device)
    if frame_bytes.device.type == target.type == "cpu":
        return own(memory(frame_bytes))
    return frame_bytes.to(target, copy=True)


class Weight:
    """The compressed value that a :class:`CompressedTensor` and all its views share.

    frame: uint8 (frame_size,); replaced as a whole when the value changes. shape and dtype are the dense
    tensor's. level: of compression. piece_bytes: dense bytes above which the weight is used in pieces. chunk_log2:
    elements of a chunk, for new values. name: of the parameter, for errors; None if it is not known. target: the
    device that the weight is used on, if its bytes stay in pinned host memory.
    """

    __slots__ = (
        "__weakref__",
        "_frame",
        "chunk_log2",
        "dtype",
        "level",
        "name",
        "piece_bytes",
        "shape",
        "target",
    )

    takes_frames = True
    """Whether a frame (spec §5) may be the weight's bytes."""

    def __init__(
        self,
        frame_bytes: torch.Tensor,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        level: str = "default",
        piece_bytes: int = PIECE_BYTES,
        chunk_log2: int = CHUNK_LOG2,
    ) -> None:
        self.chunk_log2 = chunk_log2
        self.name: str | None = None
        self.target: torch.device | None = None
        self.frame = frame_bytes
        self.shape = tuple(shape)
        self.dtype = dtype
        self.level = level
        self.piece_bytes = piece_bytes

    @classmethod
    def of(
        cls,
        dense: torch.Tensor,
        level: str = "default",
        piece_bytes: int = PIECE_BYTES,
        chunk_log2: int = CHUNK_LOG2,
    ) -> Weight:
        """Compresses a dense tensor of any strides, on any device."""
        encoded = encode(dense.detach().contiguous(), torch_options(level, chunk_log2))
        return cls(encoded, tuple(dense.shape), dense.dtype, level, piece_bytes, chunk_log2)

    @property
    def frame(self) -> torch.Tensor:
        return self._frame

    @frame.setter
    def frame(self, frame_bytes: torch.Tensor) -> None:
        self._frame = frame_bytes
        setattr(frame_bytes, _OWNER, ref(self))

    def take(self, frame_bytes: torch.Tensor) -> None:
        """Takes the bytes of another value, on any device, and puts them where its own lie."""
        if self.target is not None:
            self.frame = frame_bytes.cpu().pin_memory()
        else:
            self.frame = frame_bytes.to(self.device)

    def offloaded(self, target: torch.device) -> Weight:
        """A weight of the same value that is used on a device while its bytes stay in pinned host memory."""
        new = self.with_frame(self.frame.cpu().pin_memory())
        new.target = target
        return new

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
        """The device that the weight is used on."""
        return self.frame.device if self.target is None else self.target

    def fetched(self) -> torch.Tensor:
        """The bytes on that device."""
        if self.target is None:
            return self.frame
        if not works_on(self.target):
            return self.frame.to(self.target)
        from neuzip.nn.device import fetched

        return fetched(self.frame, self.target)

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
            out = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        return decode(self.frame, out)

    def rows(self, first: int, out: torch.Tensor) -> torch.Tensor:
        """Rows ``first`` … ``first + len(out) − 1`` decoded into ``out``; only their chunks are touched."""
        return decode(self.frame, out, first_row=first)

    def assign(self, dense: torch.Tensor) -> None:
        """Takes the value of a dense tensor of the same shape, converted to the weight's dtype and device."""
        if tuple(dense.shape) != self.shape:
            raise InvalidArgument(f"a weight of shape {self.shape} cannot take {tuple(dense.shape)}")
        self.take(self.like(dense.detach().to(self.dtype)).frame)

    def like(self, dense: torch.Tensor) -> Weight:
        """A weight made of a dense tensor in the way that this one was."""
        return type(self).of(dense, self.level, self.piece_bytes, self.chunk_log2)

    def rechunk(self, chunk_log2: int) -> None:
        """Cuts the bytes into chunks of ``2^chunk_log2`` elements; the value stays what it is."""
        self.chunk_log2 = chunk_log2
        self.take(self.like(self.dense()).frame)

    def shares_form(self, other: Weight) -> bool:
        """Whether another weight's frame may stand for a value of this one."""
        return type(self) is type(other) is Weight and self.dtype == other.dtype

    def with_frame(self, frame_bytes: torch.Tensor) -> Weight:
        """A weight that differs in its frame only."""
        new = type(self)(frame_bytes, self.shape, self.dtype, self.level, self.piece_bytes, self.chunk_log2)
        new.name = self.name
        return new

    def copy(self, device: Any = None) -> Weight:
        """An independent weight of the same bytes, on ``device`` if given."""
        if device is not None:
            return self.with_frame(copied(self.frame, device))
        new = self.with_frame(copied(self.frame))
        if self.target is not None:
            new.target, new.frame = self.target, new.frame.pin_memory()
        return new
