"""Weights in ggml's Q4_K and Q6_K, which the gguf package only reads: rounded to the nearest, without ggml's search."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
BLOCK = 256


def _bytes(values: Array, dtype: str) -> Array:
    """One number a block, as its bytes."""
    return values.astype(dtype).reshape(-1, 1).view(np.uint8)


def q6_k(weights: Array) -> Array:
    """Blocks of 210 bytes: low four bits, high two bits, 16 scales, their scale."""
    groups = weights.reshape(-1, 16, 16)
    wanted = np.abs(groups).max(axis=2) / 31
    scale = (wanted.max(axis=1) / 127).astype(np.float16)
    step = scale.astype(np.float32)[:, None]
    scales = np.rint(wanted / step).clip(1, 127)
    codes = np.rint(groups / (step * scales)[:, :, None]).clip(-32, 31).astype(np.int8) + 32
    rows = codes.reshape(-1, 2, 4, 32).astype(np.uint8)  # blocks, halves, rows of 32
    low, high = rows & 15, rows >> 4
    ql = np.concatenate([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], axis=2)
    qh = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    parts = (ql.reshape(-1, 128), qh.reshape(-1, 64), scales.astype(np.int8).view(np.uint8))
    return np.concatenate([*parts, _bytes(scale, "<f2")], axis=1)


def q4_k(weights: Array) -> Array:
    """Blocks of 144 bytes: the scales of scales and of minima, eight of each in 6 bits, codes of four bits."""
    groups = weights.reshape(-1, 8, 32)
    minima = -np.minimum(groups.min(axis=2), 0)
    wanted = (groups.max(axis=2) + minima) / 15
    d, dmin = (wanted.max(axis=1) / 63).astype(np.float16), (minima.max(axis=1) / 63).astype(np.float16)
    step, low = d.astype(np.float32)[:, None], dmin.astype(np.float32)[:, None]
    scales = np.rint(wanted / step).clip(1, 63).astype(np.uint8)
    mins = np.rint(minima / low).clip(0, 63).astype(np.uint8)
    codes = np.rint((groups + (low * mins)[:, :, None]) / (step * scales)[:, :, None]).clip(0, 15)
    pairs = codes.astype(np.uint8).reshape(-1, 4, 2, 32)
    first = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    second = mins[:, :4] | (mins[:, 4:] >> 4) << 6
    third = scales[:, 4:] & 15 | (mins[:, 4:] & 15) << 4
    packed = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    return np.concatenate([_bytes(d, "<f2"), _bytes(dmin, "<f2"), first, second, third, packed], axis=1)
