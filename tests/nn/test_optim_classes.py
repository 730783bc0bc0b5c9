"""Which optimizers can be fused into backward, and which are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optim_training import Lion, batch, make_model, weights_of
from torch import nn

from neuzip.errors import InvalidArgument
from neuzip.nn import CompressedTensor
from neuzip.optim import fused

O = torch.optim  # noqa: E741


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def both(**options: Any) -> tuple[nn.Module, nn.Module]:
    options = {"layers": 1, **options}
    return make_model(**options), make_model(compressed=True, **options)


def test_lbfgs_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="closure"):
        fused(both()[1], O.LBFGS)


class Together(Lion):
    """Scales all steps by the norm of all gradients."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        every = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        for gradient in every:
            gradient.div_(nn.utils.get_total_norm(every))
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"])


class Counting(Lion):
    """Counts its steps in itself and not in a state."""

    steps = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.steps += 1
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"] / self.steps)


class Noisy(Lion):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(torch.rand_like(p), alpha=group["lr"])


@pytest.mark.parametrize("optimizer_class", [Together, Counting, Noisy])
def test_optimizers_that_step_parameters_together_are_refused(optimizer_class: Any) -> None:
    random = torch.get_rng_state()
    with pytest.raises(InvalidArgument, match="independently"):
        fused(both()[1], optimizer_class, lr=0.1)
    assert torch.equal(torch.get_rng_state(), random)


class RowNorm(Lion):
    """Looks at rows: parameters on their own are fine, their pieces are not."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad / (p.grad.norm(dim=-1, keepdim=True) + 1e-3), alpha=group["lr"])


@pytest.mark.parametrize(
    ("optimizer_class", "dims"), [(RowNorm, (1, 2)), (O.Adafactor, (1, 2)), (O.Muon, (2,))]
)
def test_optimizers_that_are_not_elementwise(optimizer_class: Any, dims: tuple[int, ...]) -> None:
    usual, ours = both()

    def select(model: nn.Module) -> list[Any]:
        return [each for each in model.parameters() if each.dim() in dims]

    for model in (usual, ours):
        opt = fused(select(ours), optimizer_class, lr=0.01, piece_bytes=1) if model is ours else None
        opt = opt or optimizer_class(select(usual), lr=0.01)
        for step in range(2):
            model(batch(step)).backward()
            opt.step()
            model.zero_grad()
    assert weights_of(usual) == weights_of(ours)
    for each in ours.parameters():
        if isinstance(each, CompressedTensor):
            each.weight.piece_bytes = 1000
    with pytest.raises(InvalidArgument, match="not elementwise"):
        fused(select(ours), optimizer_class, lr=0.01)


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(100, 64, sparse=True)
    embedding.weight = nn.Parameter(CompressedTensor.compress(embedding.weight.detach()))
    opt = fused(embedding, O.SGD, lr=0.1)
    with pytest.raises(InvalidArgument, match=r"weight.*sparse"):
        embedding(torch.tensor([1, 2])).sum().backward()
    del opt


def test_nothing_to_optimize_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="no parameters"):
        fused(nn.ReLU(), O.SGD, lr=0.1)


def test_several_processes_are_refused_inside_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    _, model = both()
    with pytest.raises(InvalidArgument, match="in_backward=False"):
        fused(model, O.SGD, lr=0.1)
    fused(model, O.SGD, lr=0.1, in_backward=False)


class Prepared(Lion):
    """Makes its states in the constructor."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["exp_avg"] = torch.full_like(p, 0.5)


def test_states_made_by_the_constructor() -> None:
    usual, ours = both()
    for model in (usual, ours):
        opt = (
            fused(ours, Prepared, lr=0.01, piece_bytes=1)
            if model is ours
            else Prepared(usual.parameters(), 0.01)
        )
        for step in range(2):
            model(batch(step)).backward()
            opt.step()
            opt.zero_grad()
    assert weights_of(usual) == weights_of(ours)
