"""Memory of fused training: parameters, states, gradients and all that a step holds for a moment."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import pytest
import torch
from optim_training import batch, make_model
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from neuzip.nn import CompressedTensor
from neuzip.optim import fused

O = torch.optim  # noqa: E741
LAYERS = 24


class Storages(TorchDispatchMode):
    """Counts the dense memory that operations make, for as long as it lives."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        self._alive = {key: made for key, made in self._alive.items() if not made[0].expired()}
        for storage in _storages(result):
            if storage._cdata not in given and storage.nbytes() >= 1024:
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


def _storages(values: Any) -> list[torch.UntypedStorage]:
    leaves = (value for value in tree_leaves(values) if isinstance(value, torch.Tensor))
    return [each.untyped_storage() for each in leaves if not isinstance(each, CompressedTensor)]


def nbytes(value: Any) -> int:
    if isinstance(value, CompressedTensor):
        return value.weight.nbytes
    return value.nbytes if isinstance(value, torch.Tensor) else 0


def held(opt: torch.optim.Optimizer, parameter: torch.Tensor) -> int:
    """Bytes of a parameter, its states and its gradient."""
    states = sum(nbytes(value) for value in opt.state.get(parameter, {}).values())
    return nbytes(parameter) + states + nbytes(parameter.grad)


def usual_bytes(optimizer_class: Any, options: dict[str, Any]) -> int:
    """Of ordinary training, without what a step holds for a moment."""
    model = make_model(layers=LAYERS)
    opt = optimizer_class(model.parameters(), **options)
    model(batch(0)).backward()
    opt.step()
    return sum(held(opt, each) for each in model.parameters())


def fused_bytes(optimizer_class: Any, options: dict[str, Any], steps: int = 3) -> tuple[int, int, int]:
    """Of fused training: between steps, with the largest gradient, and with what a step holds for a moment."""
    model = make_model(layers=LAYERS, compressed=True)
    opt = fused(model, optimizer_class, piece_bytes=1, **options)
    storages, peak, with_gradient = Storages(), 0, 0
    sizes = {id(each): held(opt, each) for each in model.parameters()}
    step_one = opt._step_one

    def watched(parameter: torch.Tensor, *rest: Any) -> None:
        nonlocal peak, with_gradient
        # Gradients of other parameters are None: they are counted as they come.
        before = sum(sizes.values()) + nbytes(parameter.grad)
        with_gradient = max(with_gradient, before)
        storages.peak = 0
        tracemalloc.reset_peak()
        start, _ = tracemalloc.get_traced_memory()
        with storages:
            step_one(parameter, *rest)
        # NumPy's memory: what the codec reads and writes, new frames included.
        peak = max(peak, before + storages.peak + tracemalloc.get_traced_memory()[1] - start)
        sizes[id(parameter)] = held(opt, parameter)

    opt._step_one = watched
    tracemalloc.start()
    try:
        for step in range(steps):
            model(batch(step)).backward()
            assert all(each.grad is None for each in model.parameters())
            opt.step()
    finally:
        tracemalloc.stop()
    return sum(sizes.values()), with_gradient, peak


@pytest.mark.parametrize(
    ("optimizer_class", "options", "limit"),
    [(O.AdamW, {"lr": 1e-3}, 0.52), (O.SGD, {"lr": 0.1}, 0.40), (O.SGD, {"lr": 0.1, "momentum": 0.9}, 0.52)],
    ids=["adamw", "sgd", "momentum"],
)
def test_bytes_against_ordinary_training(
    optimizer_class: Any, options: dict[str, Any], limit: float, record_property: Any
) -> None:
    gc.collect()
    usual = usual_bytes(optimizer_class, options)
    between, with_gradient, peak = fused_bytes(optimizer_class, options)
    for name, value in (("between", between), ("with_gradient", with_gradient), ("peak", peak)):
        record_property(name, round(value / usual, 3))
    assert between < with_gradient <= limit * usual
    # Temporaries of a step: pieces of the weight and its states, new frames. Small models have relatively large ones.
    assert with_gradient < peak <= (limit + 0.02) * usual
