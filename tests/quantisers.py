"""Weights in the types of GGUF that the gguf package only reads: rounded to the nearest, without ggml's search.

The IQ types' codes are places in code books, which are the package's: of the magnitudes of four or eight weights, of
eight trits, or of single weights. `quant` is the package's class of a type, `d` a block's scale, `s` the few bits that
multiply it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import quants

Array = np.ndarray[Any, Any]
_BATCH = 1 << 12  # groups compared at once with a whole book, which has up to 2,048 rows


def _one_a_block(values: Array, dtype: str) -> Array:
    """One number a block, as its bytes."""
    return values.astype(dtype).reshape(-1, 1).view(np.uint8)


def _stepped(wanted: Array, largest: int) -> tuple[Array, Array]:
    """Scales of groups (blocks, groups) as integers up to `largest`, and the blocks' scale of them, in fp16."""
    scale = (wanted.max(axis=1) / largest).astype(np.float16)
    return np.rint(wanted / scale.astype(np.float32)[:, None]).clip(0, largest).astype(np.uint8), scale


def _affine(groups: Array, codes: int, scale_limit: int) -> tuple[Array, Array, Array, Array, Array]:
    """Codes of groups (blocks, groups, elements) between minimum and maximum; scales, minima, and their scales."""
    lows = -np.minimum(groups.min(axis=2), 0)
    scales, d = _stepped((groups.max(axis=2) + lows) / codes, scale_limit)
    scales = np.maximum(scales, 1)
    minima, dmin = _stepped(lows, scale_limit)
    offset = (dmin.astype(np.float32)[:, None] * minima)[:, :, None]
    step = (d.astype(np.float32)[:, None] * scales)[:, :, None]
    return np.rint((groups + offset) / step).clip(0, codes).astype(np.uint8), scales, minima, d, dmin


def _packed(codes: Array, bits: int, width: int = 32) -> Array:
    """Codes (blocks, …) of a few bits: rows of `width` above each other in a byte, the first in the lowest bits."""
    rows = codes.reshape(len(codes), -1, 8 // bits, width)
    shifted = rows << np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce(shifted, axis=2).reshape(len(codes), -1)


def _symmetric(groups: Array, largest: int, zero: int, most: int) -> tuple[Array, Array, Array]:
    """Codes of groups (blocks, groups, elements), `zero` for 0; scales, of which `largest` are a group's largest, up to
    `most`; and their scale.
    """
    scales, d = _stepped(np.abs(groups).max(axis=2) / largest, most)
    scales = np.maximum(scales, 1)
    step = (d.astype(np.float32)[:, None] * scales)[:, :, None]
    return (np.rint(groups / step).clip(-zero, zero - 1) + zero).astype(np.uint8), scales, d


def q2_k(weights: Array) -> Array:
    """Blocks of 84 bytes: 16 scales and minima of four bits, codes of two bits, the scales of both."""
    codes, scales, minima, d, dmin = _affine(weights.reshape(-1, 16, 16), 3, 15)
    parts = (scales | minima << 4, _packed(codes, 2), _one_a_block(d, "<f2"), _one_a_block(dmin, "<f2"))
    return np.concatenate(parts, axis=1)


def q3_k(weights: Array) -> Array:
    """Blocks of 110 bytes: the codes' high bit, their two low bits, 16 scales of six bits, their scale."""
    codes, scales, d = _symmetric(weights.reshape(-1, 16, 16), 4, 4, 31)
    signed = scales + 32
    low, high = _packed(signed & 15, 4, 8), _packed(signed >> 4, 2, 4)
    parts = (_packed(codes >> 2, 1), _packed(codes & 3, 2), low, high, _one_a_block(d, "<f2"))
    return np.concatenate(parts, axis=1)


def _six_bits(scales: Array, minima: Array) -> Array:
    """Eight scales and eight minima of six bits in 12 bytes, as Q4_K and Q5_K have them."""
    first = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    second = minima[:, :4] | (minima[:, 4:] >> 4) << 6
    return np.concatenate([first, second, scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4], axis=1)


def q4_k(weights: Array) -> Array:
    """Blocks of 144 bytes: the scales of scales and of minima, eight of each in 6 bits, codes of four bits."""
    codes, scales, minima, d, dmin = _affine(weights.reshape(-1, 8, 32), 15, 63)
    parts = (_one_a_block(d, "<f2"), _one_a_block(dmin, "<f2"), _six_bits(scales, minima), _packed(codes, 4))
    return np.concatenate(parts, axis=1)


def q5_k(weights: Array) -> Array:
    """Blocks of 176 bytes: as Q4_K, with the codes' fifth bit before the four others."""
    codes, scales, minima, d, dmin = _affine(weights.reshape(-1, 8, 32), 31, 63)
    head = (_one_a_block(d, "<f2"), _one_a_block(dmin, "<f2"), _six_bits(scales, minima))
    return np.concatenate([*head, _packed(codes >> 4, 1), _packed(codes & 15, 4)], axis=1)


def q6_k(weights: Array) -> Array:
    """Blocks of 210 bytes: low four bits, high two bits, 16 scales, their scale."""
    codes, scales, d = _symmetric(weights.reshape(-1, 16, 16), 31, 32, 127)
    halves = codes.reshape(-1, 128)  # of each half, rows 0 and 2 share bytes, and 1 and 3
    low = _packed(halves & 15, 4, 64).reshape(-1, 128)
    high = _packed(halves >> 4, 2).reshape(-1, 64)
    return np.concatenate([low, high, scales, _one_a_block(d, "<f2")], axis=1)


def _nearest(groups: Array, quant: Any) -> Array:
    """The place in a type's book that is nearest to each group: (…, width) to (…)."""
    quant.init_grid()
    book = quant.grid.reshape(quant.grid_shape)
    norms = (book * book).sum(axis=1)
    flat = groups.reshape(-1, book.shape[1])
    batches = (flat[at : at + _BATCH] for at in range(0, len(flat), _BATCH))
    codes = np.concatenate([np.argmin(norms - 2 * batch @ book.T, axis=1) for batch in batches])
    return codes.reshape(groups.shape[:-1])


def _odd_steps(wanted: Array, bits: int) -> tuple[Array, Array, Array]:
    """Steps (blocks, groups) as d · (2s + 1): d as bytes, s, and the steps that they give."""
    d = (wanted.max(axis=1) / (2 ** (bits + 1) - 1)).astype("<f2")
    first = d.astype(np.float32)[:, None]
    s = np.rint((wanted / first - 1) / 2).clip(0, 2**bits - 1).astype(np.uint8)
    return _one_a_block(d, "<f2"), s, first * (2 * s + 1)


def _magnitudes(
    weights: Array, quant: Any, *, size: int, unit: float, even: bool = False
) -> tuple[Array, Array, Array, Array]:
    """d, s, codes and bits of signs of blocks with magnitudes from a book and a step of unit · d · (2s + 1).

    size: the weights of a step. even: eight weights have an even number of minuses, so that seven bits say them; the
    smallest is turned where they have not.
    """
    groups = weights.reshape(-1, 256 // size, size)
    d, s, steps = _odd_steps(np.abs(groups).max(axis=2) / (unit * max(quant.grid_map)), 4)
    signs = (groups < 0).reshape(-1, 32, 8)
    if even:
        least = np.abs(groups).reshape(signs.shape).argmin(axis=2)[..., None]
        odd = signs.sum(axis=2, keepdims=True) % 2 == 1
        np.put_along_axis(signs, least, np.take_along_axis(signs, least, axis=2) ^ odd, axis=2)
    scaled = (np.abs(groups) / (unit * steps)[..., None]).reshape(len(groups), -1, quant.grid_shape[1])
    return d, s, _nearest(scaled, quant), _packed(signs.astype(np.uint8), 1, 1)


def _sevens(signs: Array, s: Array) -> Array:
    """The signs of 32 weights in four times seven bits, below a scale of four."""
    parts = (signs & 127).astype(np.uint32).reshape(-1, 8, 4) << np.arange(0, 28, 7, dtype=np.uint32)
    return (np.bitwise_or.reduce(parts, axis=2) | s.astype(np.uint32) << 28).astype("<u4")


def _few(codes: Array, bits: int) -> Array:
    return _packed(codes.astype(np.uint8), bits, 1)


def iq2_xxs(weights: Array) -> Array:
    """Blocks of 66 bytes: d, and for 32 weights four codes, signs and s."""
    d, s, codes, signs = _magnitudes(weights, quants.IQ2_XXS, size=32, unit=1 / 8, even=True)
    pairs = np.stack([codes.astype(np.uint8).view("<u4"), _sevens(signs, s)], axis=2)
    return np.concatenate([d, pairs.reshape(len(d), -1).view(np.uint8)], axis=1)


def iq2_xs(weights: Array) -> Array:
    """Blocks of 74 bytes: d, codes of nine bits below signs of seven, s."""
    d, s, codes, signs = _magnitudes(weights, quants.IQ2_XS, size=16, unit=1 / 8, even=True)
    words = (codes | (signs & 127).astype(np.uint16) << 9).astype("<u2")
    return np.concatenate([d, words.view(np.uint8), _few(s, 4)], axis=1)


def iq2_s(weights: Array) -> Array:
    """Blocks of 82 bytes: d, the low eight of the codes' ten bits, signs, the high two, s."""
    d, s, codes, signs = _magnitudes(weights, quants.IQ2_S, size=16, unit=1 / 8)
    return np.concatenate([d, codes.astype(np.uint8), signs, _few(codes >> 8, 2), _few(s, 4)], axis=1)


def iq3_xxs(weights: Array) -> Array:
    """Blocks of 98 bytes: d, codes, signs and s."""
    d, s, codes, signs = _magnitudes(weights, quants.IQ3_XXS, size=32, unit=1 / 4, even=True)
    return np.concatenate([d, codes.astype(np.uint8), _sevens(signs, s).view(np.uint8)], axis=1)


def iq3_s(weights: Array) -> Array:
    """Blocks of 110 bytes: d, the low eight of the codes' nine bits, the high one, signs, s."""
    d, s, codes, signs = _magnitudes(weights, quants.IQ3_S, size=32, unit=1)
    return np.concatenate([d, codes.astype(np.uint8), _few(codes >> 8, 1), signs, _few(s, 4)], axis=1)


def _trits(weights: Array, *, size: int, shared: int) -> tuple[Array, Array, Array, Array]:
    """d, s, codes and shifts of blocks of trits: d · (2s + 1) · (trits ± 1/8), the sign being that of a shift's bit.

    size: the weights of a step, which is their mean magnitude and half of it: more trits would be 0 with the largest.
    shared: those of a shift; the one that leaves the smaller error is taken.
    """
    groups = weights.reshape(-1, 256 // size, size)
    d, s, steps = _odd_steps(1.5 * np.abs(groups).mean(axis=2), 3)
    scaled = (groups / steps[..., None]).reshape(-1, 32, 8)
    tried = []
    for delta in (quants.IQ1_S.delta, -quants.IQ1_S.delta):
        codes = _nearest(scaled - delta, quants.IQ1_S)
        book = quants.IQ1_S.grid.reshape(quants.IQ1_S.grid_shape)
        error = ((book[codes] + delta - scaled) ** 2).reshape(len(d), 256 // shared, shared).sum(axis=2)
        tried.append((codes, error))
    shifts = tried[1][1] < tried[0][1]
    return d, s, np.where(np.repeat(shifts, shared // 8, axis=1), tried[1][0], tried[0][0]), shifts


def iq1_s(weights: Array) -> Array:
    """Blocks of 50 bytes: d, the low eight of the codes' eleven bits; for 32 weights the high three, s, a shift."""
    d, s, codes, shifts = _trits(weights, size=32, shared=32)
    high = (codes >> 8).reshape(-1, 8, 4) << np.arange(0, 12, 3)
    words = np.bitwise_or.reduce(high, axis=2) | s.astype(np.int64) << 12 | shifts.astype(np.int64) << 15
    return np.concatenate([d, codes.astype(np.uint8), words.astype("<u2").view(np.uint8)], axis=1)


def iq1_m(weights: Array) -> Array:
    """Blocks of 56 bytes: the low eight of the codes' eleven bits, the high three with a shift, s and d among it."""
    d, s, codes, shifts = _trits(weights, size=16, shared=8)
    steps = np.bitwise_or.reduce(
        s.astype(np.uint16).reshape(-1, 4, 4) << np.arange(0, 12, 3, dtype=np.uint16), axis=2
    )
    words = steps | (d.view("<u2") >> np.arange(0, 16, 4, dtype=np.uint16) & 15) << 12
    return np.concatenate(
        [codes.astype(np.uint8), _few(codes >> 8 | shifts << 3, 4), words.view(np.uint8)], axis=1
    )


def _values(scaled: Array) -> Array:
    """The nearest of the sixteen values of IQ4, as their numbers."""
    return (
        np.abs(scaled[..., None] - np.array(quants.IQ4_NL.kvalues, np.float32))
        .argmin(axis=-1)
        .astype(np.uint8)
    )


def iq4_nl(weights: Array) -> Array:
    """Blocks of 18 bytes: d, codes of four bits."""
    groups = weights.reshape(-1, 32)
    d = (np.abs(groups).max(axis=1) / max(quants.IQ4_NL.kvalues)).astype("<f2")
    return np.concatenate(
        [_one_a_block(d, "<f2"), _packed(_values(groups / d.astype(np.float32)[:, None]), 4, 16)], axis=1
    )


def iq4_xs(weights: Array) -> Array:
    """Blocks of 136 bytes: d, the high two of the scales' six bits, the low four, codes of four bits."""
    groups = weights.reshape(-1, 8, 32)
    scales, d = _stepped(np.abs(groups).max(axis=2) / max(quants.IQ4_NL.kvalues), 31)
    scales = np.maximum(scales, 1)
    codes = _values(groups / (d.astype(np.float32)[:, None] * scales)[..., None])
    signed = scales + 32
    return np.concatenate(
        [_one_a_block(d, "<f2"), _few(signed >> 4, 2), _few(signed & 15, 4), _packed(codes, 4, 16)], axis=1
    )


def nvfp4(weights: Array) -> Array:
    """Blocks of 36 bytes: a scale in F8_E4M3 for 16 weights, codes of four bits."""
    quant = quants.NVFP4
    groups = weights.reshape(-1, 4, 16)
    scales = quant.fp32_to_ue4m3(np.abs(groups).max(axis=2) / max(quant.kvalues) * 2)
    steps = quant.ue4m3_to_fp32(scales)[..., None, None]
    codes = np.abs(groups[..., None] - steps * np.array(quant.kvalues, np.float32)).argmin(axis=-1)
    return np.concatenate([scales, _packed(codes.astype(np.uint8), 4, 8)], axis=1)


QUANTISERS = {
    "Q2_K": q2_k,
    "Q3_K": q3_k,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
    "IQ2_XXS": iq2_xxs,
    "IQ2_XS": iq2_xs,
    "IQ2_S": iq2_s,
    "IQ3_XXS": iq3_xxs,
    "IQ3_S": iq3_s,
    "IQ1_S": iq1_s,
    "IQ1_M": iq1_m,
    "IQ4_NL": iq4_nl,
    "IQ4_XS": iq4_xs,
    "NVFP4": nvfp4,
}
