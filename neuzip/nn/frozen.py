"""Compressed tensors for inference: they stand for a value, in a form that is no frame, and take no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from neuzip.errors import InvalidArgument
from neuzip.nn.tensor import CompressedTensor


class FrozenTensor(CompressedTensor):
    """A compressed tensor that never requires a gradient, and whose bytes are for memory only.

    Files and ``state_dict`` copies hold its value, losslessly.
    """

    kind: str
    """What messages call such a weight."""

    def whole_frame(self) -> torch.Tensor | None:
        """None: its bytes are no frame (spec §5), so that files get the dense value."""
        return None

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in _SWITCHES and _asks(*args[1:], **(kwargs or {})):
            raise InvalidArgument(
                f"a {cls.kind} weight is for inference and takes no gradient; compress_model(model) makes one that "
                "trains"
            )
        return super().__torch_function__(func, types, args, kwargs)


_SWITCHES = {torch.Tensor.requires_grad_, torch.Tensor.requires_grad.__set__}  # type: ignore[attr-defined]


def _asks(requires_grad: bool = True) -> bool:
    """What the arguments of a switch say."""
    return bool(requires_grad)
