"""How fast do models train and answer while their weights are compressed?

A training step on 2,048 tokens, reading a prompt of 512, and writing one token after another, beside plain PyTorch.
Losses and logits must be the same to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from llama import Llama, Size, linear
from rounds import OURS, PEER, Contender, Label, Measurement, measure
from torch import nn

import neuzip.nn
import neuzip.optim

TRAIN, PREFILL, TOKEN = "train", "prefill", "token"
BF16, FP32 = "bf16", "fp32"
SGD, MOMENTUM, ADAMW, LORA = "SGD", "SGD with momentum", "AdamW", "LoRA"
QUESTIONS = {
    TRAIN: (f"{BF16}, {SGD}", *(f"{FP32}, {mode}" for mode in (SGD, MOMENTUM, ADAMW, LORA))),
    PREFILL: (BF16, FP32),
    TOKEN: (BF16,),
}
"""And what they are asked for: a dtype, and how it is trained."""
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, float]]] = {
    SGD: (torch.optim.SGD, {"lr": 0.01}),
    MOMENTUM: (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
    ADAMW: (torch.optim.AdamW, {"lr": 1e-4}),
    LORA: (torch.optim.AdamW, {"lr": 1e-4}),
}
RANK = 8  # of adapters
PLAIN, LOMO, FRAMES, FIXED = (
    "plain",
    "plain, stepped in backward",
    "compress_model",
    "compress_model_fixed_width",
)
DTYPES = {BF16: torch.bfloat16, FP32: torch.float32}
STEPS = {
    BF16: Size(vocab=512, width=256, hidden=704, layers=1, heads=4),  # torch's bf16 products are slow here
    FP32: Size(vocab=1024, width=512, hidden=1408, layers=1, heads=8),
}
WORK = Size(vocab=4096, width=768, hidden=2048, layers=3, heads=12)
MEMORY = Size(
    vocab=8192, width=2048, hidden=5504, layers=4, heads=16
)  # of which no cache holds a part worth having
TINY = Size(vocab=512, width=128, hidden=256, layers=2, heads=2)


@dataclass(frozen=True)
class Scale:
    """steps: the models that are trained, smaller because a step is the work of a dozen prompts. work, memory: models
    that are bound by it. batch: rows and ids of a training step, of each row all but the first to be predicted. prompt,
    written: tokens.
    """

    steps: Mapping[str, Size] = field(default_factory=lambda: STEPS)
    work: Size = WORK
    memory: Size = MEMORY
    batch: tuple[int, int] = (2, 1025)
    prompt: int = 512
    written: int = 8
    rounds: int = 4
    threads: tuple[int, ...] = (1, 2)


TINY_SCALE = Scale({BF16: TINY, FP32: TINY}, TINY, TINY, (2, 33), 32, 2, 2)


class Agreement:
    """What all contenders must come to: the n-th result of each is the n-th result of all."""

    def __init__(self) -> None:
        self.first: list[torch.Tensor] = []

    def recorder(self) -> Callable[[torch.Tensor], bool]:
        seen = 0

        def agrees(result: torch.Tensor) -> bool:
            nonlocal seen
            seen += 1
            if len(self.first) < seen:
                self.first.append(result.clone())
            return torch.equal(bits(result), bits(self.first[seen - 1]))

        return agrees


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)


def ask(question: str, data: str, threads: int, scale: Scale) -> list[Measurement]:
    torch.set_num_threads(threads)
    return {TRAIN: trained, PREFILL: read, TOKEN: written}[question](data, scale)


def dtype_of(data: str) -> torch.dtype:
    return DTYPES[data.partition(", ")[0]]


def label(codec: str) -> Label:
    role = OURS if codec in (FRAMES, FIXED) else PEER
    return Label(codec, torch.get_num_threads(), role=role)


def contender(codec: str, run: Callable[[Any], torch.Tensor], agreement: Agreement, **more: Any) -> Contender:
    """One whose every result is compared, and which is right if all were."""
    agrees, right = agreement.recorder(), True

    def record(ready: Any) -> torch.Tensor:
        nonlocal right
        result = run(ready)
        right = agrees(result) and right
        return result

    return Contender(label(codec), record, lambda _: right, **more)


def trained(data: str, scale: Scale) -> list[Measurement]:
    """Steps: backward and then a step, the step inside backward (for SGD, LOMO), and so with compressed weights."""
    name, _, mode = data.partition(", ")
    trained_size = scale.steps[name]
    model, agreement = Llama(trained_size, DTYPES[name]), Agreement()
    ids = torch.randint(0, trained_size.vocab, scale.batch, generator=torch.Generator().manual_seed(1))
    optimizer_class, options = OPTIMIZERS[mode]
    size = model_bytes(model)

    def stepper(codec: str) -> Contender:
        own = copy.deepcopy(model)
        if codec == FRAMES:
            neuzip.nn.compress_model(own)
        if mode == LORA:
            optimizer: Any = optimizer_class(adapters(own).parameters(), **options)
        elif codec == PLAIN:
            optimizer = optimizer_class(own.parameters(), **options)
        else:
            optimizer = neuzip.optim.fused(own, optimizer_class, **options)

        def step(_: Any) -> torch.Tensor:
            loss = own.loss(ids)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return contender(codec, step, agreement)

    contenders = [stepper(codec) for codec in ((PLAIN, LOMO, FRAMES) if mode == SGD else (PLAIN, FRAMES))]
    return measure(TRAIN, data, size, contenders, scale.rounds)


def adapters(model: Llama) -> nn.Module:
    """Freezes a model and hangs new adapters of a low rank on its linear layers."""
    torch.manual_seed(2)
    made = nn.ModuleList()
    model.requires_grad_(False)
    for layer in [each for each in model.modules() if isinstance(each, nn.Linear)]:
        dtype, sizes = layer.weight.dtype, (layer.in_features, layer.out_features)
        pair = nn.Sequential(linear(sizes[0], RANK, dtype), linear(RANK, sizes[1], dtype))
        layer.register_forward_hook(lambda _, inputs, out, pair=pair: out + pair(inputs[0]))
        made.append(pair)
    return made


def read(data: str, scale: Scale) -> list[Measurement]:
    """The logits of a prompt."""
    model, agreement = Llama(scale.work, dtype_of(data)).eval(), Agreement()
    ids = torch.randint(0, scale.work.vocab, (1, scale.prompt), generator=torch.Generator().manual_seed(1))

    def reader(codec: str, own: Llama) -> Contender:
        @torch.inference_mode()
        def logits(_: Any) -> torch.Tensor:
            return own(ids)[0]

        return contender(codec, logits, agreement)

    contenders = [reader(codec, own) for codec, own in forms(model, dtype_of(data))]
    return measure(PREFILL, data, model_bytes(model), contenders, scale.rounds)


def written(data: str, scale: Scale) -> list[Measurement]:
    """The time of a token, of several written after one another."""
    model, agreement = Llama(scale.memory, dtype_of(data)).eval(), Agreement()
    prompt = torch.randint(0, scale.memory.vocab, (1, 16), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits, cache = model(prompt)
    first = logits[:, -1:].argmax(-1)

    def writer(codec: str, own: Llama) -> Contender:
        @torch.inference_mode()
        def write(_: Any) -> torch.Tensor:
            token, grown, all_logits = first, cache, []
            for _ in range(scale.written):
                logits, grown = own(token, grown)
                token = logits.argmax(-1)
                all_logits.append(logits)
            return torch.cat(all_logits)

        return contender(codec, write, agreement)

    contenders = [writer(codec, own) for codec, own in forms(model, dtype_of(data))]
    found = measure(TOKEN, data, model_bytes(model), contenders, scale.rounds)
    return [
        replace(
            row,
            median_seconds=row.median_seconds / scale.written,
            best_seconds=row.best_seconds / scale.written,
        )
        for row in found
    ]


def forms(model: Llama, dtype: torch.dtype) -> list[tuple[str, Llama]]:
    """The model as it is and compressed, in the forms there are for its dtype."""
    found = [(PLAIN, model), (FRAMES, neuzip.nn.compress_model(copy.deepcopy(model)))]
    if dtype == torch.bfloat16:
        found.append((FIXED, neuzip.nn.compress_model_fixed_width(copy.deepcopy(model))))
    return found


def model_bytes(model: Llama) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())
