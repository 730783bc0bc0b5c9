"""A Llama-like model with a cache of keys and values, of normal weights: what models are timed on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

Cache = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, (batch, heads, length, head size)."""

_SPREAD = 0.02  # of the weights: Llama's initializer_range


@dataclass(frozen=True)
class Size:
    vocab: int
    width: int
    hidden: int
    layers: int
    heads: int


class Layer(nn.Module):
    def __init__(self, size: Size, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads = size.heads
        self.norm1, self.norm2 = (nn.RMSNorm(size.width, dtype=dtype) for _ in range(2))
        self.q, self.k, self.v, self.o = (linear(size.width, size.width, dtype) for _ in range(4))
        self.gate, self.up = (linear(size.width, size.hidden, dtype) for _ in range(2))
        self.down = linear(size.hidden, size.width, dtype)

    def forward(
        self, x: torch.Tensor, turns: torch.Tensor, past: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        normed = self.norm1(x)
        q, k, v = (self.split(each(normed)) for each in (self.q, self.k, self.v))
        q, k = turned(q, turns), turned(k, turns)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        x = x + self.o(attended.transpose(1, 2).flatten(2))
        normed = self.norm2(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed)), (k, v)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Llama(nn.Module):
    def __init__(self, size: Size, dtype: torch.dtype, seed: int = 0) -> None:
        super().__init__()
        self.head_size = size.width // size.heads
        self.embed = nn.Embedding(size.vocab, size.width, dtype=dtype)
        self.layers = nn.ModuleList(Layer(size, dtype) for _ in range(size.layers))
        self.norm = nn.RMSNorm(size.width, dtype=dtype)
        self.head = linear(size.width, size.vocab, dtype)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, _SPREAD, generator=generator)

    def forward(self, ids: torch.Tensor, cache: Cache | None = None) -> tuple[torch.Tensor, Cache]:
        """Logits (batch, length, vocab) of ids (batch, length), and the cache grown by them."""
        start = cache[0][0].shape[2] if cache else 0
        turns = angles(start, ids.shape[1], self.head_size)
        x, grown = self.embed(ids), []
        for number, layer in enumerate(self.layers):
            x, kept = layer(x, turns, cache[number] if cache else None)
            grown.append(kept)
        return self.head(self.norm(x)), grown

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        """Of predicting each next token."""
        logits, _ = self(ids[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def linear(inner: int, outer: int, dtype: torch.dtype) -> nn.Linear:
    return nn.Linear(inner, outer, bias=False, dtype=dtype)


def angles(start: int, count: int, head_size: int) -> torch.Tensor:
    """Of rotary embedding, (count, head_size / 2)."""
    steps = 10000.0 ** (-torch.arange(0, head_size, 2) / head_size)
    return torch.outer(torch.arange(start, start + count).float(), steps)


def turned(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of (batch, heads, length, head size)."""
    cos, sin = by.cos().to(x.dtype), by.sin().to(x.dtype)
    one, other = x.chunk(2, -1)
    return torch.cat([one * cos - other * sin, one * sin + other * cos], -1)
