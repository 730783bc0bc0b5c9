"""The total norm of gradients that never exist together (`torch.nn.utils.clip_grad_norm_` in two passes)."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from neuzip.errors import InvalidArgument


class NormPass:
    """The first of two backwards: takes the norm of each gradient, which is then let go."""

    def __init__(self) -> None:
        self._norms: dict[int, torch.Tensor] = {}

    def take(self, parameter: torch.Tensor, gradient: torch.Tensor) -> None:
        """The norm of a parameter's gradient. Raises InvalidArgument for a second gradient of the parameter."""
        if id(parameter) in self._norms:
            raise InvalidArgument("its gradient came twice within a backward; its norm is not the sum of two")
        self._norms[id(parameter)] = torch.linalg.vector_norm(gradient.detach(), 2)

    def total(self, parameters: Iterable[torch.Tensor]) -> torch.Tensor:
        """The norm over all gradients, put together in the order of the parameters as clip_grad_norm_ does."""
        norms = [self._norms[id(each)] for each in parameters if id(each) in self._norms]
        # The norm of a norm is itself, so that torch adds up what it would have from the gradients.
        return torch.nn.utils.get_total_norm(norms, 2.0)


def clip_factor(total: torch.Tensor, max_norm: float) -> torch.Tensor:
    """What clip_grad_norm_ multiplies every gradient with."""
    return torch.clamp(max_norm / (total + 1e-6), max=1.0)
