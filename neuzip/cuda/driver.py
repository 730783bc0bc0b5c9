"""The seam between neuzip.cuda and a GPU: everything that needs CUDA goes through one object of this shape.

There are two: :class:`neuzip.cuda.nvidia.Nvidia` over CuPy and torch.cuda, and the tests' stand-in, whose device
memory is host memory and whose kernels run in the emulator of ``csrc/cuda/emulator``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Gpu:
    """What a verdict on a GPU depends on. driver: the versions of driver and compiler."""

    name: str
    capability: tuple[int, int]
    uuid: str
    driver: str
    processors: int
    """Streaming multiprocessors."""


class Driver(Protocol):
    """A kind of device. ``index`` is a device's number; work goes to torch's current stream of that device."""

    device_type: str
    """As ``torch.device.type`` has it."""

    def count(self) -> int:
        """Devices there are, once the first has no obstacle."""

    def current_index(self) -> int:
        """The device that torch means where none is named."""

    def obstacle(self, index: int) -> str | None:
        """Why kernels cannot run on a device, in one line; None if nothing is known to stand in the way."""

    def gpu(self, index: int) -> Gpu:
        """A device that has no obstacle."""

    def self_test_command(self, index: int) -> list[str]:
        """The command of :mod:`neuzip.cuda.self_test` for a device, with this kind of driver."""

    def compile(self, source: str, include: str, index: int) -> Any:
        """A module of kernels from CUDA C++; headers are found in the directory ``include``."""

    def kernel(self, module: Any, name: str) -> Any:
        """An ``extern "C"`` kernel of a module."""

    def launch(
        self,
        kernel: Any,
        index: int,
        grid: int,
        block: int,
        arguments: Sequence[Any],
        shared: int = 0,
    ) -> None:
        """Starts a kernel. arguments: tensors of the device, whose addresses are passed, and numpy scalars."""

    def stream_handle(self, index: int) -> int:
        """The current stream of a device, as other libraries take it: a cudaStream_t."""

    def pinned(self, size: int) -> torch.Tensor:
        """Host memory, uint8 (size,), that copies to and from the device without waiting."""

    def new_stream(self, index: int) -> Any:
        """A stream beside the current one."""

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Makes a stream the current one of its device."""

    def record(self, index: int) -> Any:
        """An event behind the work that the current stream has been given so far."""

    def wait(self, event: Any, index: int) -> None:
        """Work given to the current stream from now on starts after an event. The host does not wait."""

    def is_done(self, event: Any) -> bool:
        """Whether an event has been reached."""

    def synchronize(self, event: Any) -> None:
        """The host waits for an event."""

    def keep(self, tensor: torch.Tensor, index: int) -> None:
        """The current stream uses a tensor that another stream's work has made: its memory stays until then."""


_installed: Driver | None = None


def current() -> Driver:
    """The driver in use."""
    global _installed
    if _installed is None:
        from neuzip.cuda.nvidia import Nvidia

        _installed = Nvidia()
    return _installed


def install(driver: Driver | None) -> None:
    """Puts another driver in place; None returns to CUDA. Verdicts and compiled kernels are kept by driver."""
    global _installed
    _installed = driver


def index_of(device: torch.device) -> int:
    """The number of a device of the driver's kind."""
    return current().current_index() if device.index is None else device.index
