"""This machine's own GPUs in the place of the stand-in device: ``NEUZIP_TEST_CUDA=1 python -m pytest tests/cuda``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from standin.driver import Launch, StandIn

from neuzip.cuda.nvidia import Nvidia

WANTED = os.environ.get("NEUZIP_TEST_CUDA") == "1"


class Recorded(Nvidia):
    """CUDA's driver, with the record that the stand-in keeps of what was asked of it."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.kept: list[tuple[int, int]] = []
        reason = self.obstacle(0)
        assert reason is None, reason

    def clear(self) -> None:
        self.launches.clear()
        self.kept.clear()

    def at(self, number: int) -> torch.device:
        """The device of that number, or the last if there are fewer."""
        return torch.device(self.device_type, min(number, self.count() - 1))

    @contextmanager
    def no_waiting(self) -> Iterator[None]:
        """torch's own check: whatever makes the host wait raises."""
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def kernel(self, module: Any, name: str) -> Any:
        return super().kernel(module, name), name

    def launch(
        self, kernel: Any, index: int, grid: int, block: int, arguments: Sequence[Any], shared: int = 0
    ) -> None:
        found, name = kernel
        for argument in arguments:
            assert not isinstance(argument, torch.Tensor) or argument.device == self.at(index)
        self.launches.append(Launch(name, index, self.stream_handle(index), grid, block))
        super().launch(found, index, grid, block, arguments, shared)

    def keep(self, tensor: torch.Tensor, index: int) -> None:
        self.kept.append((tensor.data_ptr(), self.stream_handle(index)))
        super().keep(tensor, index)

    def synchronize(self, event: Any) -> None:
        assert event.query() or torch.cuda.get_sync_debug_mode() == 0, "the host waits for an event"
        super().synchronize(event)


Gpus = StandIn | Recorded
"""What the tests' fixture ``gpu`` is."""
