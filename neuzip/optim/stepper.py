"""One step of a torch optimizer on one parameter, piece by piece where the parameter or its states are compressed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from neuzip._system import trim_heap
from neuzip.errors import InvalidArgument
from neuzip.nn import CompressedTensor
from neuzip.nn.scratch import scratch
from neuzip.nn.team import torch_options
from neuzip.nn.weight import decode
from neuzip.optim.elementwise import piece_shape
from neuzip.optim.state import Buffers, Recompressed, SplitState, State

CHUNK = 1 << 16
"""Elements of a frame's chunk: pieces are whole chunks."""

_TRIM_BYTES = 16 << 20
"""Dense bytes of parameters stepped between two times that the heap is trimmed. Torch's temporaries of one parameter
leave holes that small lasting objects cut into, so that the next parameter's hardly fit: without trimming, AdamW came
to twice the memory that it uses."""

MIN_BYTES = 64 << 10
"""Dense parameters below this are stepped as they are, with ordinary states: compressing them saves nothing."""


def is_split(parameter: torch.Tensor) -> bool:
    """Whether a parameter is stepped through its memory, with compressed states, rather than as the tensor it is."""
    if isinstance(parameter, CompressedTensor):
        return parameter.is_whole() and parameter.numel() > 0 and parameter.weight.takes_frames
    plain = type(parameter) in (torch.Tensor, torch.nn.Parameter) and parameter.is_floating_point()
    return plain and parameter.nbytes >= MIN_BYTES and parameter.is_contiguous()


def piece_size(parameter: torch.Tensor, piece_bytes: int) -> int:
    """Elements of a piece of about ``piece_bytes`` dense bytes."""
    return max(1, piece_bytes // parameter.dtype.itemsize // CHUNK) * CHUNK


class Stepper:
    """Steps tensors one at a time with one instance of an optimizer class, to which states and options are lent.

    optimizer: an instance of ``optimizer_class`` made with ``options``; it must not be used otherwise.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, options: dict[str, Any]) -> None:
        self._optimizer = optimizer
        self._options = options
        self._buffers = Buffers()
        self._untrimmed = 0

    def step(
        self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any], state: State, size: int
    ) -> State:
        """Steps a parameter ``size`` elements at a time; returns its new state. ``state`` may be written to.

        group: the options of its param group. Raises InvalidArgument for a sparse gradient of a split parameter.
        """
        if not is_split(parameter):
            return self._step_as_it_is(parameter, gradient, group, state)
        if gradient.layout != torch.strided:
            raise InvalidArgument(
                f"a gradient of layout {gradient.layout} cannot step a compressed or large parameter; "
                "use dense gradients (sparse=False)"
            )
        level = parameter.weight.level if isinstance(parameter, CompressedTensor) else "default"
        split = SplitState(state, parameter.shape, level, self._buffers)
        value = (
            _CompressedValue(parameter, self._buffers)
            if isinstance(parameter, CompressedTensor)
            else _DenseValue(parameter)
        )
        flat = gradient.reshape(-1)
        for start, stop in _ranges(parameter.numel(), size):
            shape = piece_shape(parameter, start, stop)
            slot = torch.nn.Parameter(value.read(start, stop).view(shape))
            slot.grad = flat[start:stop].view(shape)
            new = self.step_slot(slot, group, split.piece(start, stop, shape))
            split.write(new, start, stop, shape)
            value.write(slot.detach(), start, stop)
        value.finish()
        self._untrimmed += parameter.nbytes
        if self._untrimmed >= _TRIM_BYTES:
            trim_heap()
            self._untrimmed = 0
        return split.whole()

    def release(self) -> None:
        """Gives the buffers back."""
        self._buffers.clear()

    def _step_as_it_is(
        self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any], state: State
    ) -> State:
        held, parameter.grad = parameter.grad, gradient
        try:
            return self.step_slot(parameter, group, state)
        finally:
            parameter.grad = held

    def _first_state(self, slot: torch.Tensor, group: dict[str, Any]) -> State:
        """What the optimizer's constructor puts into the state, as Adagrad's does."""
        made = type(self._optimizer)([{**_bare(group), "params": [slot]}], **self._options)
        state = dict(made.state.get(slot, {}))
        # An optimizer is part of a reference cycle: it would hold the slot and its gradient until the next collection.
        made.param_groups.clear()
        made.state.clear()
        return state

    def step_slot(self, slot: torch.Tensor, group: dict[str, Any], state: State) -> State:
        """Steps a dense tensor, whose gradient is set, in one go; returns its new state. An empty one is its first."""
        optimizer = self._optimizer
        state = state or self._first_state(slot, group)
        optimizer.param_groups = [{**_bare(group), "params": [slot]}]
        optimizer.state = defaultdict(dict, {slot: state})
        try:
            optimizer.step()
            return dict(optimizer.state.get(slot, {}))
        finally:
            optimizer.param_groups = []
            optimizer.state = defaultdict(dict)


def _bare(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in ("params", "param_names")}


def _ranges(count: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, size):
        yield start, min(start + size, count)


class _DenseValue:
    """An ordinary parameter's elements: pieces are its own memory."""

    def __init__(self, parameter: torch.Tensor) -> None:
        self._flat = parameter.detach().view(-1)

    def read(self, start: int, stop: int) -> torch.Tensor:
        return self._flat[start:stop]

    def write(self, piece: torch.Tensor, start: int, stop: int) -> None:
        own = self._flat[start:stop]
        if piece.data_ptr() != own.data_ptr():  # an optimizer may replace ``.data``
            own.copy_(piece.reshape(-1))

    def finish(self) -> None:
        pass


class _CompressedValue:
    """A compressed parameter's elements: pieces are decoded, and encoded into a new frame."""

    def __init__(self, parameter: CompressedTensor, buffers: Buffers) -> None:
        weight = parameter.weight
        self._weight = weight
        self._frame = weight.fetched()
        options = torch_options(weight.level, weight.chunk_log2)
        self._new = Recompressed(weight.dtype, weight.device, parameter.shape, options, buffers)

    def read(self, start: int, stop: int) -> torch.Tensor:
        out = scratch((stop - start,), self._weight.dtype, self._weight.device)
        return decode(self._frame, out, first_row=start)

    def write(self, piece: torch.Tensor, start: int, stop: int) -> None:
        self._new.add(piece)

    def finish(self) -> None:
        self._weight.take(self._new.frame())
