"""Training with the optimizer fused into backward is bit for bit the ordinary training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optim_training import Lion, batch, digest, make_model, train, weights_of

from neuzip.nn import CompressedTensor
from neuzip.optim import fused

O = torch.optim  # noqa: E741
OPTIMIZERS = {
    "sgd": (O.SGD, {"lr": 0.1}),
    "momentum": (O.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    "adam": (O.Adam, {"lr": 1e-3, "amsgrad": True}),
    "adamw": (O.AdamW, {"lr": 1e-3, "weight_decay": 0.1}),
    "adamw-for-loop": (O.AdamW, {"lr": 1e-3, "foreach": False}),
    "adamw-fused": (O.AdamW, {"lr": 1e-3, "fused": True}),
    "rmsprop": (O.RMSprop, {"lr": 1e-3, "momentum": 0.9, "centered": True}),
    "adagrad": (O.Adagrad, {"lr": 1e-2, "initial_accumulator_value": 0.1}),
    "lion": (Lion, {"lr": 1e-3}),
}
MODELS = {
    "plain": {},
    "bias": {"bias": True},
    "tied": {"tied": True},
    "checkpointing": {"checkpointing": True},
    "tied-checkpointing-bias": {"tied": True, "checkpointing": True, "bias": True},
    "dropout": {"dropout": 0.1, "checkpointing": True},
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def compare(
    kind: str, steps: int = 3, model: dict[str, Any] | None = None, prepare: Any = None, **how: Any
) -> None:
    optimizer_class, options = OPTIMIZERS[kind]
    traces = []
    for fuse in (False, True):
        made = make_model(compressed=fuse, **(model or {}))
        if prepare:
            prepare(made)
        traces.append(train(made, optimizer_class, steps=steps, fuse=fuse, **how, **options))
    usual, ours = traces
    assert ours.losses == usual.losses
    assert ours.gradients == usual.gradients
    assert ours.weights == usual.weights
    assert len({str(losses) for losses in usual.losses}) == steps  # it trains at all


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_twenty_steps(kind: str) -> None:
    compare(kind, steps=20, model={"bias": True, "layers": 1})


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["momentum", "adamw"])
def test_models(kind: str, model: str) -> None:
    compare(kind, model=MODELS[model])


@pytest.mark.parametrize("model", ["tied-checkpointing-bias", "dropout"])
@pytest.mark.parametrize(
    ("kind", "parts", "clip"),
    [("momentum", 3, None), ("adamw", 1, 0.5), ("adamw", 2, 0.5), ("momentum", 1, 1e9)],
)
def test_accumulation_and_clipping(kind: str, model: str, parts: int, clip: float | None) -> None:
    compare(kind, steps=3, model=MODELS[model], parts=parts, clip=clip)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("sgd", torch.float16), ("lion", torch.float16), ("adamw", torch.float32), ("rmsprop", torch.float32)],
)
def test_other_dtypes(kind: str, dtype: torch.dtype) -> None:
    compare(kind, steps=3, model={"dtype": dtype, "layers": 1}, clip=0.5)


@pytest.mark.parametrize("piece_bytes", [1, 1 << 17, 1 << 30])
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("kind", ["momentum", "adamw"])
def test_pieces_and_threads(kind: str, threads: int, piece_bytes: int) -> None:
    torch.set_num_threads(threads)
    compare(kind, steps=2, piece_bytes=piece_bytes, model={"layers": 1})


def freeze(model: torch.nn.Module) -> None:
    model.embedding.requires_grad_(False)
    model.blocks[0].down.weight.requires_grad_(False)
    model.blocks[1].norms.requires_grad_(False)


@pytest.mark.parametrize("kind", ["momentum", "adamw"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_frozen_subset(kind: str, clip: float | None) -> None:
    compare(kind, prepare=freeze, clip=clip)


def groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    thin = [each for each in model.parameters() if each.dim() < 2]
    return [
        {"params": [each for each in model.parameters() if each.dim() > 1], "weight_decay": 0.1},
        {"params": thin, "lr": 3e-3, "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("kind", ["momentum", "adamw"])
def test_param_groups(kind: str) -> None:
    compare(kind, params=groups, model={"bias": True})


@pytest.mark.parametrize("make", [
    lambda opt: O.lr_scheduler.CosineAnnealingLR(opt, 4),
    lambda opt: O.lr_scheduler.OneCycleLR(opt, 1e-2, total_steps=6),  # momentum moves too
    lambda opt: O.lr_scheduler.LambdaLR(opt, lambda step: 1 / (1 + step)),
])  # fmt: skip
def test_schedulers(make: Any) -> None:
    compare("adamw", scheduler=make)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_ordinary_optimizer_on_compressed_weights(kind: str) -> None:
    optimizer_class, options = OPTIMIZERS[kind]
    made = [make_model(compressed=compressed, layers=1, bias=True) for compressed in (False, True)]
    usual, ours = (train(model, optimizer_class, steps=3, fuse=False, **options) for model in made)
    assert ours == usual


@pytest.mark.parametrize("kind", ["momentum", "adamw"])
def test_model_that_is_not_compressed(kind: str) -> None:
    optimizer_class, options = OPTIMIZERS[kind]
    usual, ours = (
        train(make_model(layers=1), optimizer_class, steps=3, fuse=fuse, **options) for fuse in (False, True)
    )
    assert ours == usual


def test_states_and_weights_stay_compressed() -> None:
    model = make_model(compressed=True)
    opt = fused(model, O.AdamW, lr=1e-3)
    model(batch(0)).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    weight = model.blocks[0].down.weight
    assert isinstance(weight, CompressedTensor)
    state = opt.state[weight]
    assert isinstance(state["exp_avg"], CompressedTensor)
    assert isinstance(state["exp_avg_sq"], CompressedTensor)
    assert state["exp_avg"].shape == weight.shape
    assert state["exp_avg"].weight.nbytes < 0.8 * state["exp_avg"].weight.dense_nbytes
    assert state["step"].shape == ()


def test_every_pattern_survives_a_step_of_nothing() -> None:
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    linear = torch.nn.Linear(256, 512, bias=False, dtype=torch.bfloat16)
    value = torch.cat([patterns, patterns.flip(0)]).view(512, 256)
    linear.weight = torch.nn.Parameter(CompressedTensor.compress(value))

    class Nothing(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {})

        def step(self, closure: Any = None) -> None:
            pass

    opt = fused(linear, Nothing, piece_bytes=1)
    linear(torch.ones(2, 256, dtype=torch.bfloat16)).sum().backward()
    opt.step()
    assert digest(linear.weight) == digest(value)


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adamw"])
def test_every_pattern_after_a_step_of_lr_zero(kind: str) -> None:
    optimizer_class, options = OPTIMIZERS[kind]
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    value = torch.cat([patterns, patterns.flip(0)]).view(512, 256)
    results = []
    for fuse in (False, True):
        linear = torch.nn.Linear(256, 512, bias=False, dtype=torch.bfloat16)
        linear.weight = torch.nn.Parameter(CompressedTensor.compress(value) if fuse else value.clone())
        settings = {**options, "lr": 0.0, "weight_decay": 0.0}
        opt = (
            fused(linear, optimizer_class, piece_bytes=1, **settings)
            if fuse
            else optimizer_class([linear.weight], **settings)
        )
        linear(torch.ones(2, 256, dtype=torch.bfloat16)).sum().backward()
        opt.step()
        results.append(digest(linear.weight))
    assert results[0] == results[1]


def test_incompressible_weights_train() -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(1 << 15), 1 << 15, (512, 256), generator=generator, dtype=torch.int16)
    value = torch.where(bits.view(torch.bfloat16).isfinite(), bits.view(torch.bfloat16), 1.0).clamp(
        -1e30, 1e30
    )
    results = []
    for fuse in (False, True):
        linear = torch.nn.Linear(256, 512, bias=False, dtype=torch.bfloat16)
        linear.weight = torch.nn.Parameter(CompressedTensor.compress(value) if fuse else value.clone())
        opt = fused(linear, O.AdamW, lr=0.1, piece_bytes=1) if fuse else O.AdamW(linear.parameters(), lr=0.1)
        for _ in range(2):
            linear(torch.full((2, 256), 1e-20, dtype=torch.bfloat16)).square().sum().backward()
            opt.step()
            opt.zero_grad()
        results.append(weights_of(linear))
    assert results[0] == results[1]
