"""Ordinary and compressed training written down bit by bit, the compressed one across a process that is killed.

``python tests/nn/identity.py RESULT.json`` does it with a Llama of 42 million parameters, which takes some minutes
and 3 GB, and writes digests of what it saw; test_identity.py does it with small models.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported

import torch
import transformers
from optim_training import record, weights_of
from torch import nn

from neuzip.nn import compress_model
from neuzip.optim import fused

STEPS, SAVED = 20, 10
"""Of a training, and those after which its state is saved."""

SMALL = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LARGE = {
    "vocab_size": 16384,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
SIZES = {"small": SMALL, "large": LARGE}


@dataclass(frozen=True)
class Case:
    """A training. parts: backwards a step. clip: total norm of gradients. lora: adapters on a frozen base."""

    optimizer: type[torch.optim.Optimizer]
    options: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    parts: int = 1
    clip: float | None = None
    checkpointing: bool = False
    lora: bool = False
    experts: bool = False

    def make(self, size: str, compressed: bool) -> nn.Module:
        torch.manual_seed(0)
        if self.experts:
            config = transformers.Qwen3MoeConfig(
                **SIZES[size], head_dim=32, moe_intermediate_size=96, num_experts=4, num_experts_per_tok=2
            )
            model: Any = transformers.Qwen3MoeForCausalLM(config)
        else:
            model = transformers.LlamaForCausalLM(
                transformers.LlamaConfig(**{**SIZES[size], "tie_word_embeddings": False, **self.model})
            )
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.02)
        model.to(torch.bfloat16)
        if compressed:
            compress_model(model)
        if self.lora:
            from peft import LoraConfig, get_peft_model

            torch.manual_seed(1)
            settings = LoraConfig(r=8, lora_dropout=0.1, init_lora_weights=False, target_modules="all-linear")
            model = get_peft_model(model, settings)
        if self.checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model.train()


CASES = {
    "sgd": Case(torch.optim.SGD, {"lr": 0.05}),
    "momentum, biases, tied, accumulation": Case(
        torch.optim.SGD,
        {"lr": 0.02, "momentum": 0.9},
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        parts=2,
    ),
    "adamw, clipping, checkpointing": Case(
        torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.1}, clip=0.5, checkpointing=True
    ),
    "adamw, lora": Case(torch.optim.AdamW, {"lr": 1e-3}, lora=True),
    "adamw, experts, clipping": Case(torch.optim.AdamW, {"lr": 1e-3}, clip=1.0, experts=True),
}
LARGE_CASES = tuple(CASES)[:3]


class Training:
    """One case on its way: its model, optimizer and schedule, and what has been seen of them, step by step."""

    def __init__(self, name: str, size: str, compressed: bool) -> None:
        self.case, self.size, self.compressed = CASES[name], size, compressed
        self.model = self.case.make(size, compressed)
        self._seen = record(self.model)  # before the optimizer's own hooks
        if compressed:
            self.opt: Any = fused(
                self.model, self.case.optimizer, max_grad_norm=self.case.clip, **self.case.options
            )
        else:
            self.opt = self.case.optimizer(
                [each for each in self.model.parameters() if each.requires_grad], **self.case.options
            )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.opt, 2 * STEPS)
        self.trace: list[dict[str, Any]] = []

    def step(self) -> None:
        self._seen.clear()
        step, losses = len(self.trace), []
        for part in range(self.case.parts):
            torch.manual_seed(100 * step + part)
            with ExitStack() as stack:
                if self.compressed and part < self.case.parts - 1:
                    stack.enter_context(self.opt.accumulate())
                losses.append(self._backward(self._loss(step, part)))
        norm = None
        if self.case.clip is not None:
            norm = (
                self.opt.grad_norm
                if self.compressed
                else nn.utils.clip_grad_norm_(self.model.parameters(), self.case.clip)
            ).item()
        self.opt.step()
        self.opt.zero_grad()
        self.schedule.step()
        weights = hashlib.sha256(repr(sorted(weights_of(self.model).items())).encode()).hexdigest()
        self.trace.append(
            {
                "losses": losses,
                "norm": norm,
                "gradients": dict(sorted(self._seen.items())),
                "weights": weights,
            }
        )

    def _loss(self, step: int, part: int) -> Callable[[], torch.Tensor]:
        generator = torch.Generator().manual_seed(1000 * part + step)
        ids = torch.randint(0, 64, (2, 24), generator=generator)
        return lambda: self.model(input_ids=ids, labels=ids, use_cache=False).loss / self.case.parts

    def _backward(self, closure: Callable[[], torch.Tensor]) -> float:
        if self.compressed and self.case.clip is not None:
            loss: torch.Tensor = self.opt.backward(closure)
        else:
            loss = closure()
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def finish(self, steps: int) -> Training:
        while len(self.trace) < steps:
            self.step()
        return self

    def save(self, path: Path) -> None:
        states = [each.state_dict() for each in (self.model, self.opt, self.schedule)]
        draft = path.with_suffix(".draft")
        torch.save([*states, self.trace], draft)
        draft.replace(path)

    def load(self, path: Path) -> Training:
        *states, self.trace = torch.load(path, weights_only=False)
        for each, state in zip((self.model, self.opt, self.schedule), states, strict=True):
            each.load_state_dict(state)
        return self


def paths(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    return {name: folder / f"{number}.pt" for number, name in enumerate(names)}


def train_until_killed(folder: Path, size: str, names: Sequence[str]) -> None:
    """Saves every case after some steps, and trains on: nothing of that is saved."""
    for name, path in paths(folder, names).items():
        training = Training(name, size, True).finish(SAVED)
        training.save(path)
    while True:
        training.step()
        print("past what is saved", flush=True)


def resume(folder: Path, size: str, names: Sequence[str]) -> None:
    for name, path in paths(folder, names).items():
        trace = Training(name, size, True).load(path).finish(STEPS).trace
        path.with_suffix(".json").write_text(json.dumps(trace))


def killed_and_resumed(folder: Path, size: str, names: Sequence[str]) -> dict[str, Any]:
    """The traces of compressed trainings whose first process is killed inside a step."""
    first = subprocess.Popen(command("train_until_killed", folder, size, names), stdout=subprocess.PIPE)
    assert first.stdout is not None
    with first:
        reached = first.stdout.readline()
        first.send_signal(signal.SIGKILL)
    assert (reached, first.returncode) == (b"past what is saved\n", -signal.SIGKILL)
    subprocess.run(command("resume", folder, size, names), check=True)
    return {
        name: json.loads(path.with_suffix(".json").read_text()) for name, path in paths(folder, names).items()
    }


def command(action: str, folder: Path, size: str, names: Sequence[str]) -> list[str]:
    return [sys.executable, __file__, action, str(folder), size, *names]


def compare(folder: Path, size: str, names: Sequence[str]) -> dict[str, Any]:
    """Both trainings of every case, and whether they are the same."""
    ours = killed_and_resumed(folder, size, names)
    results = {}
    for name in names:
        training = Training(name, size, False).finish(STEPS)
        results[name] = {
            "parameters": sum(each.numel() for each in training.model.parameters()),
            "ordinary": training.trace,
            "compressed": ours[name],
            "identical": json.loads(json.dumps(training.trace)) == ours[name],
        }
    return results


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """Without the digests of single gradients, of which one is kept for each step."""
    shown = {}
    for name, result in results.items():
        traces = {
            kind: [
                {**step, "gradients": hashlib.sha256(json.dumps(step["gradients"]).encode()).hexdigest()}
                for step in result[kind]
            ]
            for kind in ("ordinary", "compressed")
        }
        same = result["identical"] and traces["ordinary"] == traces["compressed"]
        shown[name] = {
            "parameters": result["parameters"],
            "identical": result["identical"],
            "gradients_a_step": len(result["ordinary"][0]["gradients"]),
            "steps": traces["ordinary"] if same else traces,
        }
    return shown


def main(arguments: Sequence[str]) -> int:
    torch.set_num_threads(1)
    if len(arguments) > 1:
        action, folder, size, *names = arguments
        {"train_until_killed": train_until_killed, "resume": resume}[action](Path(folder), size, names)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        cases = summary(compare(Path(folder), "large", LARGE_CASES))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    document = {"steps": STEPS, "killed_after_saving_step": SAVED, "versions": versions, "cases": cases}
    Path(arguments[0]).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print({name: case["identical"] for name, case in cases.items()})
    return 0 if all(case["identical"] for case in cases.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
