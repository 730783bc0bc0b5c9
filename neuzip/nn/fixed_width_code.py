"""Weights at a fixed width of 12 bits: bf16, lossless, and fast enough to be decoded for every token.

A weight keeps its sign and mantissa as a byte, and the rank of its exponent among the fifteen that are most frequent
in its tensor as four bits; the few weights of other exponents are listed. That is 12 bits where the entropy coder
takes 10.6, but each comes from one shuffle of bytes, so that a matrix is multiplied while it streams from memory.
``csrc/fixed_width.h`` defines the bytes. This is a form in memory, not on disk: nothing of it is ever read.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from neuzip import _abi, _native
from neuzip.codec import Options
from neuzip.nn.team import torch_options
from neuzip.torch import memory

_BLOCK = 64  # values


def is_fixed_width(code: torch.Tensor) -> bool:
    """Whether a weight's bytes, uint8 (size,), are those of this form and not a frame."""
    return code.device.type == "cpu" and _native.is_fixed(code.data_ptr(), code.numel())


def encode_fixed_width(dense: torch.Tensor) -> torch.Tensor | None:
    """The code of a contiguous bf16 CPU tensor, uint8 (size,); None if it would be hardly smaller than the tensor."""
    code = _native.fixed_encode(memory(dense.detach()))
    return None if code is None else torch.from_numpy(code)


def decode_fixed_width_rows(
    data: np.ndarray[Any, Any], out: torch.Tensor, options: Options | None = None, first_row: int = 0
) -> None:
    """Decodes rows ``first_row`` … into ``out``, a contiguous bf16 CPU tensor of as many rows."""
    threads = (options or torch_options()).native_threads
    _native.fixed_decode(data, first_row * out[:1].numel(), memory(out), threads)


def linear_fixed_width(
    x: torch.Tensor, code: torch.Tensor, bias: torch.Tensor | None, out_features: int
) -> torch.Tensor | None:
    """``F.linear(x, W, bias)``, bit for bit, from the code of W, decoded as it is multiplied. None if this machine,
    or a product of this kind, has no such loop: then decode W and call ``F.linear``.

    x: (…, in_features). bias: (out_features,). Returns (…, out_features).
    """
    plain = _is_plain(x) and (bias is None or _is_plain(bias))
    if not plain or x.dim() == 0 or x.shape[-1] % _BLOCK or not _multiplies_as_torch():
        return None
    return _multiply(x, code, bias, out_features)


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu" and tensor.is_contiguous()


def _multiply(
    x: torch.Tensor, code: torch.Tensor, bias: torch.Tensor | None, out_features: int
) -> torch.Tensor:
    in_features = x.shape[-1]
    y = x.new_empty((*x.shape[:-1], out_features))
    if y.numel() == 0 or in_features == 0:
        return y.copy_(F.linear(x, x.new_empty((out_features, in_features)), bias))
    job = _abi.FixedLinearJob(
        code=code.data_ptr(),
        size=code.numel(),
        out_features=out_features,
        in_features=in_features,
        x=x.data_ptr(),
        rows=x.numel() // in_features,
        bias=None if bias is None else bias.data_ptr(),
        y=y.data_ptr(),
    )
    _native.fixed_linear(job, torch_options().native_threads)
    return y


def _multiplies_as_torch() -> bool:
    """Whether the loops in use are fast, and sum as torch does on this processor. They are tried once."""
    return _native.isa_current() in ("avx2", "avx512") and _sums_as_torch()


@cache
def _sums_as_torch() -> bool:
    # torch's kernels for AVX-512 and those of other processors sum in other orders, which also depend on sizes.
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        return False
    generator = torch.Generator().manual_seed(0)
    for shape, out_features in (((1, 1088), 64), ((3, 2, 448), 96), ((64,), 1), ((17, 1024), 128)):
        x, weight, bias = (
            torch.randn(size, generator=generator).to(torch.bfloat16)
            for size in (shape, (out_features, shape[-1]), (out_features,))
        )
        code = encode_fixed_width(weight)
        assert code is not None  # fifteen exponents cover normal weights
        for added in (None, bias):
            ours, torchs = _multiply(x, code, added, out_features), F.linear(x, weight, added)
            if not torch.equal(ours.view(torch.int16), torchs.view(torch.int16)):
                return False
    return True
