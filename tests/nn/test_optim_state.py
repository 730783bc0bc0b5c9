"""Saving and resuming: the states of the fused optimizer and of the ordinary one stand for each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from optim_training import Lion, batch, digest, make_model, weights_of
from torch import nn

from neuzip.nn import CompressedTensor
from neuzip.optim import fused

O = torch.optim  # noqa: E741


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(model: nn.Module, opt: O.Optimizer, steps: range) -> None:
    for step in steps:
        model(batch(step)).backward()
        opt.step()
        opt.zero_grad()


def usual_weights(optimizer_class: Any, steps: int, **options: Any) -> dict[str, str]:
    model = make_model(layers=1)
    run(model, optimizer_class(model.parameters(), **options), range(steps))
    return weights_of(model)


CASES = [
    (O.AdamW, {"lr": 1e-3}),
    (O.SGD, {"lr": 0.1, "momentum": 0.9}),
    (O.Adagrad, {"lr": 1e-2}),
    (O.RMSprop, {"lr": 1e-3, "centered": True}),
]


@pytest.mark.parametrize(("optimizer_class", "options"), CASES)
@pytest.mark.parametrize("way", ["fused-to-fused", "fused-to-usual", "dense-to-usual", "usual-to-fused"])
def test_continues_with_the_state_of_the_other(
    way: str, optimizer_class: Any, options: dict[str, Any]
) -> None:
    before, after = way.split("-to-")
    model = make_model(layers=1, compressed=before != "usual")
    opt = optimizer_class(model.parameters(), **options)
    if before != "usual":
        opt = fused(model, optimizer_class, piece_bytes=1, **options)
    run(model, opt, range(2))
    state = opt.dense_state_dict() if before == "dense" else opt.state_dict()
    other = make_model(layers=1, compressed=after == "fused")
    weights = {name: _dense(value) for name, value in model.state_dict().items()}
    other.load_state_dict(weights)
    resumed = optimizer_class(other.parameters(), **options)
    if after == "fused":
        resumed = fused(other, optimizer_class, piece_bytes=1, **options)
    resumed.load_state_dict(state)
    run(other, resumed, range(2, 5))
    assert weights_of(other) == usual_weights(optimizer_class, 5, **options)


def _dense(value: torch.Tensor) -> torch.Tensor:
    return value.dense() if isinstance(value, CompressedTensor) else value


def test_dense_state_is_that_of_the_ordinary_optimizer() -> None:
    states = []
    for fuse in (False, True):
        model = make_model(layers=1, compressed=fuse)
        opt = fused(model, O.AdamW, lr=1e-3) if fuse else O.AdamW(model.parameters(), lr=1e-3)
        run(model, opt, range(2))
        state = opt.dense_state_dict() if fuse else opt.state_dict()
        assert all(type(value) is torch.Tensor for each in state["state"].values() for value in each.values())
        digests = {
            key: {name: digest(value) for name, value in each.items()} for key, each in state["state"].items()
        }
        states.append((digests, state["param_groups"]))
    assert states[0] == states[1]


def test_loaded_states_are_compressed_and_saved_ones_do_not_change() -> None:
    model = make_model(layers=1)
    plain = O.AdamW(model.parameters(), lr=1e-3)
    run(model, plain, range(1))
    ours = make_model(layers=1, compressed=True)
    opt = fused(ours, O.AdamW, lr=1e-3)
    opt.load_state_dict(plain.state_dict())
    assert isinstance(opt.state[ours.head.weight]["exp_avg"], CompressedTensor)
    saved = opt.state_dict()["state"]
    before = {key: digest(each["exp_avg"]) for key, each in saved.items()}
    run(ours, opt, range(1))
    after = {key: digest(each["exp_avg"]) for key, each in saved.items() if each["exp_avg"].dim() > 1}
    assert after == {key: before[key] for key in after}


class Mixed(Lion):
    """Keeps a float32 copy of a weight, and a mask, for each element; and a float32 number."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(
                        master=p.float(), mask=torch.zeros_like(p, dtype=torch.int32), scale=torch.ones(3)
                    )
                state["scale"] *= 0.9999999
                state["mask"] += p.grad > 0
                update = p.grad.float() * state["scale"][0] * (1 + state["mask"])
                state["master"].sub_(update, alpha=group["lr"])
                p.copy_(state["master"])


def test_states_of_other_dtypes_and_shapes_resume() -> None:
    model = make_model(layers=1, compressed=True)
    opt = fused(model, Mixed, lr=1e-3, piece_bytes=1)
    run(model, opt, range(2))
    state = opt.state[model.head.weight]
    assert isinstance(state["master"], CompressedTensor)
    assert state["master"].dtype == torch.float32
    assert state["mask"].dtype == torch.int32
    resumed = fused(model, Mixed, lr=1e-3, piece_bytes=1)
    resumed.load_state_dict(opt.state_dict())
    opt.close()
    run(model, resumed, range(2, 4))
    assert weights_of(model) == usual_weights(Mixed, 4, lr=1e-3)


PROGRAM = """
import os, sys, torch
from optim_training import batch, digest, make_model, weights_of
from neuzip.optim import fused
torch.set_num_threads(1)
path, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = make_model(layers=1, compressed=True, tied=True, dropout=0.1)
opt = fused(model, torch.optim.AdamW, lr=1e-3, max_grad_norm=0.5)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 10)
if first:
    saved = torch.load(path, weights_only=False)
    for each, state in zip((model, opt, schedule), saved):
        each.load_state_dict(state)
for step in range(first, last):
    torch.manual_seed(step)
    opt.backward(lambda: model(batch(step)))
    opt.step()
    opt.zero_grad()
    schedule.step()
print(sorted(weights_of(model).items()), flush=True)
if last < 10:
    torch.save([each.state_dict() for each in (model, opt, schedule)], path)
    os._exit(9)  # as if killed: nothing is closed
"""


def test_killed_and_resumed_in_another_process(tmp_path: Path) -> None:
    printed = []
    for first, last in ((0, 5), (5, 10)):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "state.pt"), str(first), str(last)]
        paths = [path for path in sys.path if path]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(paths), check=False)
        assert done.returncode == (9 if last < 10 else 0), done.stderr
        printed.append(done.stdout)
    model = make_model(layers=1, tied=True, dropout=0.1)
    opt = O.AdamW(model.parameters(), lr=1e-3)
    schedule = O.lr_scheduler.CosineAnnealingLR(opt, 10)
    for step in range(10):
        torch.manual_seed(step)
        model(batch(step)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        opt.step()
        opt.zero_grad()
        schedule.step()
    assert printed[1] == f"{sorted(weights_of(model).items())}\n"


def _environment(paths: list[str]) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
