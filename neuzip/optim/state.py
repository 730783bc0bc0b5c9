"""A parameter's optimizer state, compressed between steps and taken apart while the parameter is stepped."""

from __future__ import annotations

import math
from typing import Any

import torch

from neuzip._native import Bytes
from neuzip.codec import Options
from neuzip.layouts import DType
from neuzip.nn import CompressedTensor
from neuzip.nn.team import torch_options
from neuzip.nn.weight import PIECE_BYTES, Weight, decode
from neuzip.pages import pages
from neuzip.piecewise import PiecewiseEncoder
from neuzip.torch import dtype_of, memory, works_on

State = dict[Any, Any]
"""What a torch optimizer keeps for one parameter: tensors and numbers by name."""


def is_elementwise(value: Any, shape: torch.Size) -> bool:
    """Whether a state has an element for each of a parameter's."""
    return isinstance(value, torch.Tensor) and value.shape == shape


def hold(state: State, shape: torch.Size, level: str) -> State:
    """The state with every float tensor of the parameter's shape compressed."""
    return {
        name: _compressed(value, level) if is_elementwise(value, shape) else value
        for name, value in state.items()
    }


def _compressed(value: torch.Tensor, level: str) -> torch.Tensor:
    if isinstance(value, CompressedTensor) or not value.is_floating_point():
        return value
    return CompressedTensor.compress(value, level)


class Buffers:
    """Dense memory by name, used again for every piece: fresh memory costs more than decoding into it."""

    def __init__(self) -> None:
        self._held: dict[Any, torch.Tensor] = {}

    def take(self, name: Any, count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """``count`` elements; the same memory as the last of that name. A device's allocator does that itself."""
        if device.type != "cpu":
            return torch.empty(count, dtype=dtype, device=device)
        size = count * dtype.itemsize
        held = self._held.get(name)
        if held is None or held.numel() < size:
            self._held[name] = held = torch.from_numpy(pages(size))
        return held[:size].view(dtype)

    def take_bytes(self, size: int) -> Bytes:
        """``size`` bytes for what is encoded; the same memory as the last."""
        return memory(self.take(None, size, torch.uint8, torch.device("cpu")))

    def clear(self) -> None:
        self._held.clear()


class Recompressed:
    """A compressed tensor's new value, given piece by piece."""

    def __init__(
        self, dtype: torch.dtype, device: torch.device, shape: torch.Size, options: Options, buffers: Buffers
    ) -> None:
        self._dtype, self._device, self._shape, self._options = dtype, device, shape, options
        self._encoder = _encoder(dtype_of(dtype), shape, options, device, buffers)

    def add(self, piece: torch.Tensor) -> None:
        """The next elements."""
        contiguous = piece.detach().to(self._dtype).contiguous()
        self._encoder.add(contiguous if works_on(self._device) else memory(contiguous.cpu()))

    def frame(self) -> torch.Tensor:
        frame = self._encoder.finish()
        return frame if isinstance(frame, torch.Tensor) else torch.from_numpy(frame).to(self._device)

    def tensor(self) -> CompressedTensor:
        return CompressedTensor(
            Weight(self.frame(), tuple(self._shape), self._dtype, self._options.level, PIECE_BYTES)
        )


def _encoder(
    dtype: DType, shape: torch.Size, options: Options, device: torch.device, buffers: Buffers
) -> PiecewiseEncoder:
    """One for pieces of a device."""
    if not works_on(device):
        return PiecewiseEncoder(dtype, shape, options, buffers.take_bytes)
    from neuzip.cuda.encoding import DeviceEncoder

    return DeviceEncoder(dtype, shape, options, device)


class SplitState:
    """The state of one parameter while it is stepped: read and written a piece of elements at a time."""

    def __init__(self, state: State, shape: torch.Size, level: str, buffers: Buffers) -> None:
        self._shape, self._level, self._buffers = shape, level, buffers
        self._old = state
        self._new: dict[Any, Recompressed | torch.Tensor] = {}
        self._rest: State = {}

    def piece(self, start: int, stop: int, shape: torch.Size) -> State:
        """The state of elements ``start`` … ``stop − 1``, as an optimizer finds it for a parameter of ``shape``."""
        return {name: self._read(name, value, start, stop, shape) for name, value in self._old.items()}

    def _read(self, name: Any, value: Any, start: int, stop: int, shape: torch.Size) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.shape != self._shape:
            return value.clone()  # every piece starts from the old value
        if isinstance(value, CompressedTensor):
            out = self._buffers.take(name, stop - start, value.dtype, value.device)
            return decode(value.frame, out, first_row=start).view(shape)
        return value.reshape(-1)[start:stop].view(shape)

    def write(self, state: State, start: int, stop: int, shape: torch.Size) -> None:
        """What the optimizer left for the elements of :meth:`piece`."""
        for name, value in state.items():
            if not is_elementwise(value, shape):
                self._rest[name] = value
            elif value.is_floating_point():
                new = self._new.get(name)
                if not isinstance(new, Recompressed):
                    options = torch_options(self._level)
                    new = Recompressed(value.dtype, value.device, self._shape, options, self._buffers)
                    self._new[name] = new
                new.add(value)
            else:
                whole = self._new.setdefault(name, value.new_empty(math.prod(self._shape)))
                assert isinstance(whole, torch.Tensor)
                whole[start:stop] = value.reshape(-1)

    def whole(self) -> State:
        """The new state, compressed."""
        state = dict(self._rest)
        for name, new in self._new.items():
            state[name] = new.tensor() if isinstance(new, Recompressed) else new.view(self._shape)
        return state
