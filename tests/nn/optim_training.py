"""A small Llama-like model, and its training written down bit by bit, for the tests of optimizers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from neuzip.nn import CompressedTensor, compress_model
from neuzip.optim import fused

VOCABULARY, WIDTH, HEADS, HIDDEN = 600, 128, 4, 640  # embedding and MLP are larger than a chunk of 65,536


class Block(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)])
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=bias)
        self.out = nn.Linear(WIDTH, WIDTH, bias=bias)
        self.gate_up = nn.Linear(WIDTH, 2 * HIDDEN, bias=bias)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        heads = self.qkv(self.norms[0](x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, WIDTH))
        gate, up = self.gate_up(self.norms[1](x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    """Tokens (batch, length) to the loss of predicting them."""

    def __init__(
        self,
        layers: int = 2,
        bias: bool = False,
        tied: bool = False,
        checkpointing: bool = False,
        dropout: float = 0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block(bias) for _ in range(layers))
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        self.checkpointing, self.dropout = checkpointing, dropout

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = F.dropout(self.embedding(tokens), self.dropout, self.training)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing else block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY).float(), tokens[:, 1:].reshape(-1))


def make_model(dtype: torch.dtype = torch.bfloat16, compressed: bool = False, **options: Any) -> Llama:
    torch.manual_seed(0)
    model = Llama(**options)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.02)
    nn.init.normal_(model.embedding.weight, std=0.02)
    model.to(dtype)
    return compress_model(model, min_size=1024) if compressed else model


def batch(step: int, part: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * part + step)
    return torch.randint(0, 40, (2, 12), generator=generator)


class Lion(torch.optim.Optimizer):
    """Lion (Chen et al. 2023), as a user would write it."""

    def __init__(self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                first, second = group["betas"]
                update = state["exp_avg"].mul(first).add(p.grad, alpha=1 - first)
                p.add_(update.sign_(), alpha=-group["lr"])
                state["exp_avg"].mul_(second).add_(p.grad, alpha=1 - second)


def digest(tensor: torch.Tensor) -> str:
    tensor = tensor.detach()
    dense = tensor.dense() if isinstance(tensor, CompressedTensor) else tensor
    return hashlib.sha256(dense.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


@dataclass
class Trace:
    """What must be equal in two trainings."""

    losses: list[Any] = field(default_factory=list)
    gradients: list[dict[str, str]] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)


def record(model: nn.Module) -> dict[str, str]:
    """Digests of the gradients as they come in backward. Must be called before an optimizer hooks on."""
    seen: dict[str, str] = {}

    def watch(name: str) -> Callable[[torch.Tensor], None]:
        def hook(parameter: torch.Tensor) -> None:
            seen[name] = digest(parameter.grad)

        return hook

    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(watch(name))
    return seen


def weights_of(model: nn.Module) -> dict[str, str]:
    return {name: digest(parameter) for name, parameter in model.named_parameters()}


def train(
    model: nn.Module,
    optimizer_class: type[torch.optim.Optimizer],
    *,
    steps: int,
    fuse: bool,
    parts: int = 1,
    clip: float | None = None,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    params: Callable[[nn.Module], Any] = lambda model: model,
    piece_bytes: int = 1,
    **options: Any,
) -> Trace:
    """Trains with the ordinary optimizer, or with it fused into backward. parts: backwards a step."""
    seen, trace = record(model), Trace()
    given = params(model)
    if fuse:
        opt = fused(given, optimizer_class, max_grad_norm=clip, piece_bytes=piece_bytes, **options)
    else:
        opt = optimizer_class(given.parameters() if given is model else given, **options)
    schedule = scheduler(opt) if scheduler else None
    for step in range(steps):
        seen.clear()
        losses = []
        for part in range(parts):
            torch.manual_seed(step)

            def closure(step: int = step, part: int = part) -> torch.Tensor:
                return model(batch(step, part)) / parts

            with ExitStack() as stack:
                if fuse and part < parts - 1:
                    stack.enter_context(opt.accumulate())
                if fuse and clip:
                    losses.append(opt.backward(closure).item())
                else:
                    loss = closure()
                    loss.backward()
                    losses.append(loss.item())
        if clip:
            if not fuse:
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            losses.append((norm if not fuse else opt.grad_norm).item())
        opt.step()
        opt.zero_grad()
        if schedule:
            schedule.step()
        trace.losses.append(losses)
        trace.gradients.append(dict(seen))
    trace.weights = weights_of(model)
    return trace
