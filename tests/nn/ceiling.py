"""A process with a ceiling on its memory that is below a model's dense weights: python ceiling.py ACTION FILE.

make: writes the model, compressed. compressed: loads, generates and trains it below the ceiling. dense: loads
the same as an ordinary model. Below the ceiling, memory that is asked for in vain raises, as on a full machine.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch
from models import TinyLlama, batch, make

import neuzip.torch
from neuzip.nn import compress_model, load_model
from neuzip.optim import fused

SHAPE = {"vocab": 2048, "width": 512, "hidden": 1408, "layers": 12}
SMALL = {"vocab": 512, "width": 64, "hidden": 160, "layers": 1}
ALLOWED = 0.9
"""The ceiling over what the process holds before, in dense bytes of the weights."""


def private_bytes() -> int:
    """Private writable memory: what RLIMIT_DATA bounds. Mapped files are not part of it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    raise OSError("/proc/self/status has no VmData")


def blank() -> TinyLlama:
    with torch.device("meta"):
        return TinyLlama(**SHAPE).bfloat16()


def train(model: TinyLlama, steps: int, vocab: int) -> list[float]:
    optimizer = fused(model, torch.optim.SGD, lr=0.05, piece_bytes=1 << 18)
    losses = []
    for _ in range(steps):
        loss = model(batch(0, vocab))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@torch.inference_mode()
def generate(model: TinyLlama, tokens: int, vocab: int) -> list[int]:
    ids = batch(1, vocab)[:1, :4]
    for _ in range(tokens):
        ids = torch.cat([ids, model.logits(ids)[:, -1:].argmax(-1)], 1)
    return ids[0].tolist()


def warm_up() -> None:
    """Threads, kernels and buffers of the libraries are there before the ceiling is set."""
    model = compress_model(make(**SMALL))
    train(model, 1, SMALL["vocab"])
    generate(model, 1, SMALL["vocab"])


def set_ceiling() -> int:
    """Returns the bytes that the dense weights would take."""
    dense = sum(parameter.nbytes for parameter in blank().parameters())
    ceiling = private_bytes() + int(dense * ALLOWED)
    resource.setrlimit(resource.RLIMIT_DATA, (ceiling, ceiling))
    return dense


def main(action: str, file: str) -> None:
    torch.set_num_threads(1)
    if action == "make":
        neuzip.torch.save_file(make(**SHAPE).state_dict(), file)
        return
    warm_up()
    before, dense = private_bytes(), set_ceiling()
    if action == "dense":
        model = blank().to_empty(device="cpu")
        model.load_state_dict(neuzip.torch.load_file(file))
    else:
        model = load_model(blank(), file)
        generate(model, 3, SHAPE["vocab"])
        losses = train(model, 3, SHAPE["vocab"])
        assert losses[-1] < losses[0], losses
        generate(model, 1, SHAPE["vocab"])
    print(f"grown by {private_bytes() - before} bytes, where dense weights take {dense}")


if __name__ == "__main__":
    main(*sys.argv[1:])
