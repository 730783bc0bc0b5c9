"""Why CUDA cannot be used here, in one line. Nothing is imported that an earlier answer makes needless."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

MIN_CAPABILITY = (7, 5)
"""Turing, the oldest that CUDA 13 compiles for."""

EXTRAS = "pip install 'neuzip-codec[cuda12]' (or [cuda13])"


def torch_obstacle() -> str | None:
    """What is wrong with PyTorch, without which neuzip.cuda cannot even be imported; None if nothing is."""
    return _imported("torch", "PyTorch", "pip install torch")[1]


def find_obstacle(index: int = 0) -> str | None:
    """The first obstacle on the way to a device, None if there is none. It may start the driver."""
    torch, reason = _imported("torch", "PyTorch", "pip install torch")
    if reason is not None:
        return reason
    if getattr(torch.version, "hip", None):
        return f"PyTorch {torch.__version__} is built for ROCm, and the kernels are CUDA's"
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA"
    cupy, reason = _imported("cupy", "CuPy", EXTRAS)
    return reason or _device_obstacle(torch, cupy, index)


def _imported(name: str, title: str, remedy: str) -> tuple[Any, str | None]:
    try:
        if find_spec(name) is None:
            return None, f"{title} is not installed: {remedy}"
        return import_module(name), None
    # CuPy and torch load CUDA's libraries as they are imported; a missing one is OSError, a wrong one RuntimeError.
    except (ImportError, OSError, RuntimeError, ValueError, AttributeError) as error:
        return None, f"{title} is installed, but importing it fails: {_first_line(error)}"


def _device_obstacle(torch: Any, cupy: Any, index: int) -> str | None:
    try:
        if not torch.cuda.is_available():
            return "the NVIDIA driver is missing, too old or broken, or no GPU is visible (torch.cuda.is_available())"
        count = torch.cuda.device_count()
        if index >= count:
            return f"there is no device {index}: torch sees {count}"
        capability = tuple(torch.cuda.get_device_capability(index))
        if capability < MIN_CAPABILITY:
            name = torch.cuda.get_device_name(index)
            return (
                f"{name} has compute capability {_dotted(capability)}, and the kernels need "
                f"{_dotted(MIN_CAPABILITY)}"
            )
        if index >= cupy.cuda.runtime.getDeviceCount():
            return f"CuPy does not see device {index}"
        cupy.cuda.nvrtc.getVersion()
    # torch and CuPy raise RuntimeErrors for a failing driver, CuPy also for a missing NVRTC.
    except (RuntimeError, AssertionError, OSError) as error:
        return f"CUDA fails: {_first_line(error)}"
    return None


def _dotted(capability: tuple[int, ...]) -> str:
    return ".".join(map(str, capability))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip()
