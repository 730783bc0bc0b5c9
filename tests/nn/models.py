"""Small models for the tests of neuzip.nn, and what makes their runs comparable to the bit."""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import nn

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Block(nn.Module):
    """A Llama-like layer: RMS norm, causal attention, gated MLP."""

    def __init__(self, width: int, hidden: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.gate, self.up = nn.Linear(width, hidden, bias=bias), nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class TinyLlama(nn.Module):
    """Embedding, blocks, norm and head; ``forward`` gives the loss of predicting the next token."""

    def __init__(
        self, vocab: int = 512, width: int = 64, hidden: int = 160, layers: int = 2, *, tied=False, bias=False
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(Block(width, hidden, 4, bias) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self.logits(ids)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def make(seed: int = 0, dtype: torch.dtype = torch.bfloat16, **options: object) -> TinyLlama:
    """The same model for the same arguments."""
    torch.manual_seed(seed)
    return TinyLlama(**options).to(dtype)


def batch(step: int, vocab: int = 512, size: int = 2, length: int = 32) -> torch.Tensor:
    """Token ids of a training step."""
    return torch.randint(0, vocab, (size, length), generator=torch.Generator().manual_seed(1000 + step))


def digest(tensor: torch.Tensor) -> str:
    """A hash of a dense tensor's bytes."""
    flat = tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()])
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two dense tensors agree in dtype, shape and every bit."""
    return a.dtype == b.dtype and a.shape == b.shape and digest(a) == digest(b)
