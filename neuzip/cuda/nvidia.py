"""NVIDIA's devices through CuPy, which compiles and launches, and torch.cuda, which owns memory and streams."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from neuzip.cuda.driver import Gpu
from neuzip.cuda.obstacle import find_obstacle


class Nvidia:
    """The driver of :mod:`neuzip.cuda.driver` for CUDA."""

    device_type = "cuda"

    def count(self) -> int:
        return torch.cuda.device_count()

    def current_index(self) -> int:
        return torch.cuda.current_device()

    def obstacle(self, index: int) -> str | None:
        return find_obstacle(index)

    def gpu(self, index: int) -> Gpu:
        return _gpu(index)

    def self_test_command(self, index: int) -> list[str]:
        # -P: a module in the working directory is not ours.
        return [sys.executable, "-P", "-m", "neuzip.cuda.self_test", str(index)]

    def compile(self, source: str, include: str, index: int) -> Any:
        import cupy

        with torch.cuda.device(index), cupy.cuda.Device(index):
            module = cupy.RawModule(code=source, options=("-std=c++17", f"-I{include}"), backend="nvrtc")
            module.compile()
            return module

    def kernel(self, module: Any, name: str) -> Any:
        return module.get_function(name)

    def launch(
        self,
        kernel: Any,
        index: int,
        grid: int,
        block: int,
        arguments: Sequence[Any],
        shared: int = 0,
    ) -> None:
        import cupy

        # A tensor's address crosses as a 64-bit integer: no array of CuPy's is made, nothing is copied.
        passed = tuple(
            argument.data_ptr() if isinstance(argument, torch.Tensor) else argument for argument in arguments
        )
        stream = self.stream_handle(index)
        with torch.cuda.device(index), cupy.cuda.Device(index), cupy.cuda.ExternalStream(stream, index):
            kernel((grid,), (block,), passed, shared_mem=shared)

    def stream_handle(self, index: int) -> int:
        return int(torch.cuda.current_stream(index).cuda_stream)

    def pinned(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def new_stream(self, index: int) -> Any:
        return torch.cuda.Stream(index)  # type: ignore[no-untyped-call]

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        return torch.cuda.stream(stream)

    def record(self, index: int) -> Any:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(index))
        return event

    def wait(self, event: Any, index: int) -> None:
        torch.cuda.current_stream(index).wait_event(event)

    def is_done(self, event: Any) -> bool:
        return bool(event.query())

    def synchronize(self, event: Any) -> None:
        event.synchronize()

    def keep(self, tensor: torch.Tensor, index: int) -> None:
        tensor.record_stream(torch.cuda.current_stream(index))


@cache
def _gpu(index: int) -> Gpu:
    import cupy

    found = torch.cuda.get_device_properties(index)
    compiler = ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
    version = f"{_kernel_module()}, CUDA {cupy.cuda.runtime.driverGetVersion()}, NVRTC {compiler}"
    uuid = str(getattr(found, "uuid", ""))
    return Gpu(found.name, (found.major, found.minor), uuid, version, found.multi_processor_count)


def _kernel_module() -> str:
    """The version of the kernel's NVIDIA module, finer than CUDA's own; empty where it is not listed."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return found[0] if found else ""
