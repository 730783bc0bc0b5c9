"""``nn.Linear`` on a compressed weight."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn

from neuzip.nn.tensor import CompressedTensor


class CompressedLinear(nn.Linear):
    """An ``nn.Linear`` whose weight (out_features, in_features) is a compressed parameter.

    The weight is decompressed in forward and again in backward, into a buffer that the next layer reuses,
    and is never saved in between; results and gradients are those of ``nn.Linear``, bit for bit. The bias
    (out_features,) stays dense.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        level: str = "default",
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.weight = _compressed(self.weight, level)

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, level: str = "default") -> Self:
        """The compressed form of a linear layer, whose bias it shares."""
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new.in_features, new.out_features = linear.in_features, linear.out_features
        new.weight, new.bias = _compressed(linear.weight, level), linear.bias
        new.training = linear.training
        return new

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if isinstance(self.weight, CompressedTensor):
            held = self.weight.weight
            text += f", ratio={held.nbytes / max(1, held.dense_nbytes):.3f}"
        return text


def _compressed(weight: torch.Tensor, level: str) -> nn.Parameter:
    if isinstance(weight, CompressedTensor):
        return weight  # type: ignore[return-value]
    return nn.Parameter(CompressedTensor.compress(weight, level), requires_grad=weight.requires_grad)
