"""What makes tensors of a file's bytes: PyTorch or NumPy, of which neither is imported before it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from neuzip.codec import Options
from neuzip.container import Container
from neuzip.errors import InvalidArgument

# As safetensors spells them. The modules are imported when they are asked for: reading arrays needs no torch.
_FRAMEWORKS = {
    "pt": "neuzip.torch",
    "torch": "neuzip.torch",
    "pytorch": "neuzip.torch",
    "np": "neuzip.numpy",
    "numpy": "neuzip.numpy",
}
Bytes = npt.NDArray[np.uint8]


class Framework(Protocol):
    """What neuzip.torch and neuzip.numpy provide to the reader."""

    def check_device(self, device: Any) -> Any:
        """The device in the framework's own type; InvalidArgument if it cannot hold tensors."""

    def native_shape(self, dtype: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The framework's shape of a tensor whose shape counts elements of dtype, as in a file."""

    def blank(self, dtype: Any, shape: tuple[int, ...], *, room: memoryview | None = None) -> Any:
        """Uninitialised, writable memory for a tensor of the native shape: `room` if that is given."""

    def memory(self, blank: Any) -> Bytes:
        """The bytes of a blank, u8, one-dimensional, not copied."""

    def finish(self, blank: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
        """The tensor, once a blank's memory is filled."""

    def probe(self, shape: tuple[int, ...], index: Any) -> None:
        """Index a tensor of this shape that has no memory, for the framework's own errors."""

    def select(self, tensor: Any, index: Any) -> Any:
        """tensor[index], which keeps no larger tensor alive."""

    def place(self, tensor: Any, device: Any) -> Any:
        """The tensor on a checked device."""

    def read_on(
        self, container: Container, names: Sequence[str], device: Any, options: Options
    ) -> dict[str, Any] | None:
        """Tensors of a file decoded on a checked device itself; None where that is the CPU's work."""


def import_framework(name: str) -> Framework:
    """The module for a framework as safetensors names it: "pt" or "np". InvalidArgument if there is none."""
    module = _FRAMEWORKS.get(name)
    if module is None:
        raise InvalidArgument(f"framework {name!r} is invalid: it must be 'pt' or 'np'")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InvalidArgument(f"framework {name!r} cannot be imported: {error}") from error
