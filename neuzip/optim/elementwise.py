"""What an optimizer does to the elements of a parameter, found out by trying it on small tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from neuzip.errors import InvalidArgument

_GRAIN = 32768
"""Elements below which torch does not split a CPU loop over threads (at::internal::GRAIN_SIZE)."""

_VECTOR = 64
"""Elements that a vectorised CPU loop takes at once, at most: two registers of 512 bits, 16-bit elements."""

_STEPS = 2
_SHAPE = (32, 32)
_ODD = 31  # below any vector loop's stride, so that every element is stepped by the scalar loop

Step = Callable[[torch.nn.Parameter, dict[Any, Any]], dict[Any, Any]]
"""Steps one tensor, whose gradient is set, from its state; returns its new state."""


@dataclass(frozen=True)
class Traits:
    """What is true of an optimizer with its options.

    elementwise: pieces of a parameter can be stepped one after another.
    any_cut: the pieces may begin anywhere. For some (SGD in bf16), torch's vectorised loop rounds otherwise than the
    scalar one that does a loop's last elements, so that only a cut at a multiple of the vector keeps every bit.
    """

    elementwise: bool
    any_cut: bool

    def may_cut(self, count: int, size: int, threads: int) -> bool:
        """Whether pieces of ``size`` elements of a parameter of ``count`` give the bits that the whole gives."""
        if not self.elementwise or count <= size:
            return self.elementwise
        return self.any_cut or all(_in_vectors(n, threads) for n in (count, size, count % size))


def _in_vectors(count: int, threads: int) -> bool:
    """Whether all threads' shares of a loop, but for the last one's, are whole vectors (at::parallel_for)."""
    threads = max(1, min(threads, -(-count // _GRAIN)))
    return threads == 1 or -(-count // threads) % _VECTOR == 0


def check_closure(optimizer_class: type[torch.optim.Optimizer]) -> None:
    """Raises InvalidArgument for an optimizer that evaluates the model itself, as LBFGS does."""
    closure = inspect.signature(optimizer_class.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise InvalidArgument(f"{optimizer_class.__name__} needs a closure and cannot step inside backward")


def try_out(
    make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
    make_step: Callable[[], Step],
    dtype: torch.dtype,
    dim: int,
) -> Traits:
    """Steps parameters of ``dim`` dimensions together as usual, and apart and in pieces, and compares every bit.

    make: the ordinary optimizer over parameters. make_step: a fresh way to step one tensor.
    Raises InvalidArgument if even whole parameters, stepped one by one, come out differently.
    """
    with torch.random.fork_rng(devices=[]):
        usual = _parameters(dtype, dim)
        optimizer = make(usual)
        for gradients in _gradients(usual):
            for parameter, gradient in zip(usual, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()

        def same(size: int) -> bool:
            return _equal(usual, _apart(make_step(), _parameters(dtype, dim), size))

        if not same(usual[0].numel()):
            raise InvalidArgument(
                f"{type(optimizer).__name__} does not step its parameters independently of one another, or draws "
                "random numbers, or keeps state outside of `state`, so it cannot step weight by weight"
            )
        elementwise = same(8 * _VECTOR)
        return Traits(elementwise, elementwise and same(_ODD))


def piece_shape(whole: torch.Tensor, start: int, stop: int) -> torch.Size:
    """All elements have the parameter's shape; fewer are a column of as many dimensions."""
    if stop - start == whole.numel():
        return whole.shape
    return torch.Size((stop - start, *(1,) * (whole.dim() - 1)))


def _parameters(dtype: torch.dtype, dim: int) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shape = (_SHAPE[0] * _SHAPE[1],) if dim < 2 else (*_SHAPE, *(1,) * (dim - 2))
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for _ in range(2)]


def _gradients(parameters: list[torch.nn.Parameter]) -> Iterator[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(_STEPS):
        yield [torch.randn(each.shape, generator=generator).to(each.dtype) for each in parameters]


def _apart(step: Step, parameters: list[torch.nn.Parameter], size: int) -> list[torch.Tensor]:
    """The parameters after stepping each on its own, in pieces, the last first as backward has it."""
    flat = [parameter.detach().view(-1) for parameter in parameters]
    pieces = [
        (
            number,
            start,
            torch.nn.Parameter(flat[number][start:stop].view(piece_shape(parameter, start, stop))),
        )
        for number, parameter in reversed(list(enumerate(parameters)))
        for start in range(0, parameter.numel(), size)
        for stop in [min(start + size, parameter.numel())]
    ]
    states: list[dict[Any, Any]] = [{} for _ in pieces]
    for gradients in _gradients(parameters):
        for at, (number, start, slot) in enumerate(pieces):
            slot.grad = gradients[number].view(-1)[start : start + slot.numel()].view(slot.shape)
            states[at] = step(slot, states[at])
    for number, start, slot in pieces:
        flat[number][start : start + slot.numel()] = slot.detach().reshape(-1)
    return flat


def _equal(ones: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    def bits(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().reshape(-1).view(torch.uint8)

    return all(torch.equal(bits(one), bits(other)) for one, other in zip(ones, others, strict=True))
