"""The driver of neuzip.cuda for the stand-in device: kernels run in the emulator, on torch's current stream."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import emulator
import numpy as np
import torch

from neuzip.cuda.driver import Gpu
from standin import device


@dataclass(frozen=True)
class Launch:
    """A kernel that was started: where, on which stream, how large."""

    kernel: str
    index: int
    stream: int
    grid: int
    block: int


@dataclass(frozen=True)
class Module:
    """What a source was compiled to, for one device."""

    source: str
    index: int


@dataclass(eq=False)
class StandIn:
    """neuzip.cuda.driver.Driver, with a record of what was asked of it.

    waits: how often the host waited for work that was not done. reason: an obstacle.
    """

    device_type: str = device.TYPE
    reason: str | None = None
    launches: list[Launch] = field(default_factory=list)
    compiled: list[tuple[str, int]] = field(default_factory=list)
    kept: list[tuple[int, int]] = field(default_factory=list)
    waits: int = 0
    devices: int = device.COUNT
    kernels: Path | None = None
    """The emulator's library, if it is built already."""

    def __post_init__(self) -> None:
        self.library = device.load()
        if self.kernels is None:
            self.kernels = emulator.build("emulator") / "cuda_emulator.so"
        self._emulator = emulator.Emulator(self.kernels)

    def clear(self) -> None:
        """Forgets what was asked of it, and an obstacle."""
        self.launches.clear()
        self.kept.clear()
        self.waits, self.reason = 0, None

    def at(self, number: int) -> torch.device:
        return torch.device(self.device_type, number)

    @contextmanager
    def no_waiting(self) -> Iterator[None]:
        """Checks that the host neither waits for an event nor copies something of the device's by waiting for it."""
        self.waits, before = 0, self.library.standin_reads()
        yield
        assert self.waits == 0 and self.library.standin_reads() == before

    def count(self) -> int:
        return self.devices

    def current_index(self) -> int:
        return torch.accelerator.current_device_index()

    def obstacle(self, index: int) -> str | None:
        return self.reason if index < self.devices else f"there is no device {index}"

    def gpu(self, index: int) -> Gpu:
        return Gpu("Stand-in", (9, 0), f"uuid {index}", "emulator", 2)

    def self_test_command(self, index: int) -> list[str]:
        script = Path(__file__).with_name("selftest.py")
        return [sys.executable, "-P", str(script), str(index), str(self.kernels)]

    def compile(self, source: str, include: str, index: int) -> Any:
        self.compiled.append((source, index))
        return Module(source, index)

    def kernel(self, module: Module, name: str) -> Any:
        return module, name

    def launch(
        self, kernel: Any, index: int, grid: int, block: int, arguments: Sequence[Any], shared: int = 0
    ) -> None:
        module, name = kernel
        assert module.index == index, "a module belongs to the device that it was compiled for"
        stream = torch.accelerator.current_stream(index)
        self.launches.append(Launch(name, index, stream.stream_id, grid, block))
        self.library.standin_reach(index, stream.stream_id)
        values: list[np.generic] = []
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                assert argument.device == torch.device(self.device_type, index)
                values.append(np.uint64(argument.data_ptr()))
            else:
                values.append(argument)
        self._emulator.launch(name, grid, block, values, shared=shared, seed=len(self.launches))

    def stream_handle(self, index: int) -> int:
        return torch.accelerator.current_stream(index).stream_id

    def pinned(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def new_stream(self, index: int) -> Any:
        return torch.Stream(torch.device(self.device_type, index))

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        return stream  # type: ignore[no-any-return]

    def record(self, index: int) -> Any:
        event = torch.Event(torch.device(self.device_type, index))
        event.record(torch.accelerator.current_stream(index))
        return event

    def wait(self, event: Any, index: int) -> None:
        torch.accelerator.current_stream(index).wait_event(event)

    def is_done(self, event: Any) -> bool:
        return bool(event.query())

    def synchronize(self, event: Any) -> None:
        self.waits += not event.query()
        event.synchronize()

    def keep(self, tensor: torch.Tensor, index: int) -> None:
        self.kept.append((tensor.data_ptr(), torch.accelerator.current_stream(index).stream_id))
        tensor.record_stream(torch.accelerator.current_stream(index))
