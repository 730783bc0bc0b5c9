"""The fused optimizer in a training loop: what it accepts, what it refuses, and how it is left."""

from __future__ import annotations

import copy
import gc
import itertools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from interrupted import Interrupt
from optim_training import batch, digest, make_model, weights_of
from torch import nn
from torch.utils.checkpoint import checkpoint

from neuzip.errors import InvalidArgument
from neuzip.nn import CompressedTensor, compress_model
from neuzip.optim import FusedOptimizer, fused

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


def test_looks_like_an_optimizer() -> None:
    _, model = both()
    opt = fused(model, O.AdamW, lr=3e-4, weight_decay=0.2)
    assert isinstance(opt, O.Optimizer)
    assert isinstance(opt, FusedOptimizer)
    assert opt.param_groups[0]["lr"] == 3e-4
    assert opt.param_groups[0]["weight_decay"] == 0.2
    assert opt.param_groups[0]["eps"] == 1e-8
    assert opt.defaults["betas"] == (0.9, 0.999)
    assert opt.step() is None  # nothing to do is fine


# --- several backwards a step -------------------------------------------------------------------------------------


def test_second_backward_is_refused() -> None:
    _, model = both()
    _opt = fused(model, O.SGD, lr=0.1)
    model(batch(0)).backward()
    with pytest.raises(InvalidArgument, match=r"head\.weight.*accumulate"):
        model(batch(1)).backward()


class Failing(torch.autograd.Function):
    """Passes on its input; its gradient cannot be had."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt


@pytest.mark.parametrize("load", [False, True])
def test_a_backward_that_was_interrupted(load: bool) -> None:
    """The checkpoint or, where training goes on, what was stepped, and nothing twice."""
    usual, ours = both()
    opt = fused(ours, O.AdamW, lr=0.1)
    ordinary = O.AdamW(usual.parameters(), lr=0.1)

    def step_both(number: int) -> None:
        for each, model in ((ordinary, usual), (opt, ours)):
            model(batch(number)).backward()
            each.step()
            each.zero_grad()

    step_both(0)
    saved = copy.deepcopy((ours.state_dict(), opt.state_dict()))
    before = weights_of(ours)
    hook = ours.blocks[0].register_forward_hook(lambda module, args, x: Failing.apply(x))
    with pytest.raises(KeyboardInterrupt):
        ours(batch(1)).backward()
    hook.remove()
    assert {name for name, digest in weights_of(ours).items() if digest != before[name]} == {
        "head.weight",
        "norm.weight",
    }
    with pytest.raises(InvalidArgument, match=r"head\.weight.*interrupted.*opt\.step\(\)"):
        ours(batch(1)).backward()
    assert all(parameter.grad is None for parameter in ours.parameters()), "of what was refused"
    if load:
        ours.load_state_dict(saved[0])
        opt.load_state_dict(saved[1])
    else:
        opt.step()
        usual(batch(1)).backward()
        for parameter in usual.blocks.parameters():
            parameter.grad = None
        usual.embedding.weight.grad = None
        ordinary.step()
        ordinary.zero_grad()
    assert weights_of(ours) == weights_of(usual)
    step_both(2)
    assert weights_of(ours) == weights_of(usual)


class Shared(nn.Module):
    """One weight used in two checkpointed regions, or one in each."""

    def __init__(self, tied: bool, reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        one, two = (nn.Linear(64, 64, dtype=torch.bfloat16) for _ in range(2))
        self.layers = nn.ModuleList([one, one if tied else two])
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=self.reentrant).tanh()
        return x.square().mean()


def shared(tied: bool, reentrant: bool, compressed: bool) -> Shared:
    model = Shared(tied, reentrant)
    for layer in dict.fromkeys(model.layers):
        if compressed:
            layer.weight = nn.Parameter(CompressedTensor.compress(layer.weight.detach()))
    return model


@pytest.mark.parametrize("compressed", [False, True])
def test_reentrant_checkpointing_of_a_tied_weight_is_refused(compressed: bool) -> None:
    model = shared(True, True, compressed)
    opt = fused(model, O.SGD, lr=0.1)
    with pytest.raises(InvalidArgument, match="use_reentrant=False"):
        model(torch.ones(2, 64, dtype=torch.bfloat16, requires_grad=True)).backward()
    del opt


@pytest.mark.parametrize(("tied", "reentrant"), [(False, True), (False, False), (True, False)])
def test_other_checkpointing(tied: bool, reentrant: bool) -> None:
    usual, ours = (shared(tied, reentrant, compressed) for compressed in (False, True))
    for model, opt in ((usual, O.AdamW(usual.parameters(), lr=0.1)), (ours, fused(ours, O.AdamW, lr=0.1))):
        for _ in range(3):
            model(torch.ones(2, 64, dtype=torch.bfloat16, requires_grad=True)).backward()
            opt.step()
            opt.zero_grad()
    assert weights_of(usual) == weights_of(ours)


def test_a_graph_older_than_the_step_is_refused() -> None:
    model = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    model.weight = nn.Parameter(CompressedTensor.compress(model.weight.detach()))
    opt = fused(model, O.SGD, lr=0.1)
    loss = model(torch.ones(2, 64, dtype=torch.bfloat16, requires_grad=True)).sum()
    loss.backward(retain_graph=True)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_parameter_unused_in_the_last_backward_is_stepped() -> None:
    def build(compressed: bool) -> nn.Module:
        torch.manual_seed(0)
        experts = nn.ModuleList(nn.Linear(64, 64, bias=False, dtype=torch.bfloat16) for _ in range(2))
        for expert in experts:
            if compressed:
                expert.weight = nn.Parameter(CompressedTensor.compress(expert.weight.detach()))
        return experts

    usual, ours = build(False), build(True)
    plain, opt = O.AdamW(usual.parameters(), lr=0.1), fused(ours, O.AdamW, lr=0.1)
    x = torch.ones(2, 64, dtype=torch.bfloat16)
    for _ in range(2):
        for expert in usual:
            expert(x).square().mean().backward()
        plain.step()
        plain.zero_grad()
        with opt.accumulate():
            ours[0](x).square().mean().backward()
        ours[1](x).square().mean().backward()
        assert ours[0].weight.grad is not None
        opt.step()
        assert ours[0].weight.grad is None
    assert weights_of(usual) == weights_of(ours)


def test_gradients_kept_can_be_clipped_as_usual() -> None:
    usual, ours = both()
    plain, opt = O.AdamW(usual.parameters(), lr=1e-3), fused(ours, O.AdamW, lr=1e-3)
    for step in range(2):
        usual(batch(step)).backward()
        with opt.accumulate():
            ours(batch(step)).backward()
        norms = [nn.utils.clip_grad_norm_(model.parameters(), 0.5) for model in (usual, ours)]
        assert norms[0] == norms[1]
        for each in (plain, opt):
            each.step()
            each.zero_grad()
    assert weights_of(usual) == weights_of(ours)


def test_step_with_a_closure() -> None:
    usual, ours = both()
    losses = []
    for model, opt in ((usual, O.SGD(usual.parameters(), lr=0.1)), (ours, fused(ours, O.SGD, lr=0.1))):

        def closure(model: nn.Module = model, opt: O.Optimizer = opt) -> torch.Tensor:
            opt.zero_grad()
            loss = model(batch(0))
            loss.backward()
            return loss

        losses.append([opt.step(closure).item() for _ in range(3)])
    assert losses[0] == losses[1]
    assert weights_of(usual) == weights_of(ours)


# --- clipping -----------------------------------------------------------------------------------------------------


def test_clipping_needs_a_closure() -> None:
    _, model = both()
    opt = fused(model, O.SGD, lr=0.1, max_grad_norm=1.0)
    before = weights_of(model)
    with pytest.raises(InvalidArgument, match=r"opt\.backward"):
        model(batch(0)).backward()
    assert weights_of(model) == before
    del opt


def test_closure_that_moves_on_is_refused() -> None:
    _, model = both()
    opt = fused(model, O.SGD, lr=0.1, max_grad_norm=1.0)
    before, count = weights_of(model), itertools.count()
    with pytest.raises(InvalidArgument, match="same twice"):
        opt.backward(lambda: model(batch(next(count))))
    assert weights_of(model) == before


def test_clipping_restores_buffers_between_its_passes() -> None:
    results = []
    for fuse in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 1))
        x = torch.randn(8, 64)
        opt = fused(model, O.SGD, lr=0.1, max_grad_norm=0.1) if fuse else O.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            if fuse:
                opt.backward(lambda model=model, x=x: model(x).square().mean())
            else:
                model(x).square().mean().backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            opt.step()
            opt.zero_grad()
        results.append({name: digest(value) for name, value in model.state_dict().items()})
    assert results[0] == results[1]


# --- mixed precision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 0.5])
def test_autocast(clip: float | None) -> None:
    usual, ours = both(dtype=torch.float32)
    for model in (usual, ours):
        opt = O.AdamW(usual.parameters(), lr=1e-3)
        if model is ours:
            opt = fused(ours, O.AdamW, lr=1e-3, max_grad_norm=clip)

        def closure(model: nn.Module = model) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return model(batch(0))

        for _ in range(2):
            if model is ours:
                opt.backward(closure)
            else:
                closure().backward()
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
            opt.step()
            opt.zero_grad()
    assert weights_of(usual) == weights_of(ours)


@pytest.mark.parametrize("how", ["in_backward", "accumulate"])
def test_grad_scaler(how: str) -> None:
    usual, ours = both(dtype=torch.float32)
    for model in (usual, ours):
        opt = O.SGD(usual.parameters(), lr=0.1, momentum=0.9)
        if model is ours:
            opt = fused(ours, O.SGD, lr=0.1, momentum=0.9, in_backward=how != "in_backward")
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=2)  # overflows at first
        for step in range(12):
            with opt.accumulate() if model is ours and how == "accumulate" else nullcontext():
                with torch.autocast("cpu", torch.float16):
                    loss = model(batch(step))
                scaler.scale(loss).backward()
            scaler.unscale_(opt)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
        assert scaler.get_scale() < 2.0**24
    assert weights_of(usual) == weights_of(ours) != weights_of(both(dtype=torch.float32)[0])


@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler_inside_backward_is_refused(unscale: bool) -> None:
    _, model = both()
    opt = fused(model, O.SGD, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(model(batch(0))).backward()
    if unscale:
        scaler.unscale_(opt)
    with pytest.raises(InvalidArgument, match="in_backward=False"):
        scaler.step(opt)


# --- parameters that come and go ----------------------------------------------------------------------------------


def test_parameters_given_as_torch_takes_them() -> None:
    usual, ours = both()
    plain = O.AdamW(usual.named_parameters(), lr=1e-3)
    opt = fused(ours.named_parameters(), O.AdamW, lr=1e-3)
    for model, each in ((usual, plain), (ours, opt)):
        model(batch(0)).backward()
        each.step()
    assert weights_of(usual) == weights_of(ours)
    fused(
        [
            {"params": (each for each in ours.parameters())},
        ],
        O.AdamW,
        lr=1e-3,
    )


def test_add_param_group_and_unfreezing() -> None:
    usual, ours = both()
    for model in (usual, ours):
        model.blocks[0].down.requires_grad_(False)
        first = list(model.blocks.parameters())
        opt = fused(first, O.AdamW, lr=1e-3) if model is ours else O.AdamW(first, lr=1e-3)
        for step in range(6):
            if step == 2:
                opt.add_param_group({"params": list(model.head.parameters()), "lr": 1e-2})
            if step == 4:
                model.blocks[0].down.requires_grad_(True)
            model(batch(step)).backward()
            if model is ours and step == 5:  # it steps in backward from the step after unfreezing on
                assert model.blocks[0].down.weight.grad is None
            opt.step()
            model.zero_grad()
    assert weights_of(usual) == weights_of(ours)


def test_two_fused_optimizers_are_refused_but_a_dropped_one_is_forgotten() -> None:
    _, model = both()
    first = fused(model, O.SGD, lr=0.1)
    second = fused(model, O.SGD, lr=0.1)
    with pytest.raises(InvalidArgument, match="another"):
        model(batch(0)).backward()
    del first
    gc.collect()
    second.step()
    model(batch(0)).backward()
    second.step()
    second.close()
    model(batch(0)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    second.step()
    assert all(parameter.grad is None for parameter in model.parameters())


# --- interrupted anywhere -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "every"), [(False, 1), (True, 23)], ids=["forward", "step"])
def test_ctrl_c_before_any_line(steps: bool, every: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 64)).to(torch.bfloat16)
    compress_model(model, min_size=1024)
    opt = fused(model, O.AdamW, lr=1e-3)
    x = torch.randn(4, 256).to(torch.bfloat16)

    def forward() -> list[torch.Tensor]:
        return [model(x), x @ model[0].weight.t()]

    def work() -> None:
        results = forward()
        if steps:
            sum(each.float().square().mean() for each in results).backward()
            opt.step()
            opt.zero_grad()

    work()
    for at in itertools.count(1, every):
        try:
            with Interrupt(at) as interrupt:
                work()
        except KeyboardInterrupt:
            torch.set_grad_enabled(True)  # which torch's own no_grad may have left
        if steps:
            opt.zero_grad()
            opt.step()
        assert all(each.requires_grad for each in forward()), f"line {at}"
        if interrupt.left > 0:
            break
    assert at > 200
    assert all(torch.isfinite(model[each].weight.dense()).all() for each in (0, 2))
