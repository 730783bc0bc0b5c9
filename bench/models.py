"""How fast do models train and answer while their weights are compressed?

A training step on 2,048 tokens, reading a prompt of 512, and writing one token after another, beside plain PyTorch.
Losses and logits must be the same to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from llama import Llama, Size
from rounds import OURS, PEER, Contender, Label, Measurement, measure

import neuzip.nn
import neuzip.optim

TRAIN, PREFILL, TOKEN = "train", "prefill", "token"
QUESTIONS = (TRAIN, PREFILL, TOKEN)
PLAIN, LOMO, FRAMES, FIXED = (
    "plain",
    "plain, stepped in backward",
    "compress_model",
    "compress_model_fixed_width",
)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
WORK = Size(vocab=4096, width=768, hidden=2048, layers=3, heads=12)
MEMORY = Size(
    vocab=8192, width=2048, hidden=5504, layers=4, heads=16
)  # of which no cache holds a part worth having
TINY = Size(vocab=512, width=128, hidden=256, layers=2, heads=2)
LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Scale:
    """work, memory: models that are bound by it. batch: rows and ids of a training step, of each row all but the first
    to be predicted. prompt, written: tokens.
    """

    work: Size = WORK
    memory: Size = MEMORY
    batch: tuple[int, int] = (2, 1025)
    prompt: int = 512
    written: int = 8
    rounds: int = 5
    threads: tuple[int, ...] = (1, 2)


TINY_SCALE = Scale(TINY, TINY, (2, 33), 32, 2, 2)


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


def ask(question: str, scale: Scale) -> Iterator[Measurement]:
    """The answers for each dtype and number of threads."""
    for threads in scale.threads:
        torch.set_num_threads(threads)
        for name, dtype in DTYPES.items():
            if question == TRAIN:
                yield from trained(name, dtype, scale)
            elif question == PREFILL:
                yield from read(name, dtype, scale)
            elif dtype == torch.bfloat16:
                yield from written(name, scale)


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


def trained(name: str, dtype: torch.dtype, scale: Scale) -> list[Measurement]:
    """Steps of SGD: backward and then a step, the step inside backward, and so with compressed weights."""
    model, agreement = Llama(scale.work, dtype), Agreement()
    ids = torch.randint(0, scale.work.vocab, scale.batch, generator=torch.Generator().manual_seed(1))
    size = model_bytes(model)

    def stepper(codec: str) -> Contender:
        own = copy.deepcopy(model)
        if codec == PLAIN:
            optimizer: Any = torch.optim.SGD(own.parameters(), lr=LEARNING_RATE)
        else:
            own = neuzip.nn.compress_model(own) if codec == FRAMES else own
            optimizer = neuzip.optim.fused(own, torch.optim.SGD, lr=LEARNING_RATE)

        def step(_: Any) -> torch.Tensor:
            loss = own.loss(ids)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return contender(codec, step, agreement)

    contenders = [stepper(codec) for codec in (PLAIN, LOMO, FRAMES)]
    return measure(TRAIN, name, size, contenders, scale.rounds)


def read(name: str, dtype: torch.dtype, scale: Scale) -> list[Measurement]:
    """The logits of a prompt."""
    model, agreement = Llama(scale.work, dtype).eval(), Agreement()
    ids = torch.randint(0, scale.work.vocab, (1, scale.prompt), generator=torch.Generator().manual_seed(1))

    def reader(codec: str, own: Llama) -> Contender:
        @torch.inference_mode()
        def logits(_: Any) -> torch.Tensor:
            return own(ids)[0]

        return contender(codec, logits, agreement)

    contenders = [reader(codec, own) for codec, own in forms(model, dtype)]
    return measure(PREFILL, name, model_bytes(model), contenders, scale.rounds)


def written(name: str, scale: Scale) -> list[Measurement]:
    """The time of a token, of several written after one another."""
    model, agreement = Llama(scale.memory, torch.bfloat16).eval(), Agreement()
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

    contenders = [writer(codec, own) for codec, own in forms(model, torch.bfloat16)]
    found = measure(TOKEN, name, model_bytes(model), contenders, scale.rounds)
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
