"""Frames made of pieces: they decode, whole and in part, to what was given."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from neuzip import frame
from neuzip.codec import Options
from neuzip.errors import InvalidArgument
from neuzip.layouts import DTYPES
from neuzip.piecewise import PiecewiseEncoder

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "formats"))  # formats/ is not a package

import reference

CHUNK = 1 << 16  # elements


def _values(kind: str, count: int, seed: int = 0) -> np.ndarray:
    """Units of bf16 as u16."""
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 1 << 16, count, dtype=np.uint16)
    scale = {"weights": 0.02, "large": 3e4, "zero": 0.0}[kind]
    normal = (rng.normal(0, 1, count) * scale).astype(np.float32)
    return (normal.view(np.uint32) >> 16).astype(np.uint16)


def _encode(pieces: list[np.ndarray], dtype: str, options: Options) -> tuple[np.ndarray, np.ndarray]:
    whole = np.concatenate([piece.reshape(-1).view(np.uint8) for piece in pieces])
    row = DTYPES[dtype]
    encoder = PiecewiseEncoder(row, (whole.size * 8 // row.bits,), options)
    for piece in pieces:
        encoder.add(piece)
    return encoder.finish(), whole


@pytest.mark.parametrize("level", ["default", "max"])
@pytest.mark.parametrize(
    "kinds",
    [
        ["weights"],
        ["weights", "weights", "weights"],
        ["weights", "large", "weights"],
        ["noise", "weights", "zero"],
        ["zero", "zero", "weights"],
        ["zero", "noise"],
    ],
)
@pytest.mark.parametrize("tail", [0, 7, 40_000])
def test_pieces_decode_to_the_whole(kinds: list[str], level: str, tail: int) -> None:
    pieces = [_values(kind, 2 * CHUNK, number) for number, kind in enumerate(kinds)]
    if tail:
        pieces.append(_values("weights", tail, 9))
    encoded, whole = _encode(pieces, "BF16", Options(level=level))
    out = np.empty_like(whole)
    frame.decode(encoded, out)
    assert (out == whole).all()
    header = frame.read_header(encoded, whole=True)
    data = encoded[int(header.offsets[1]) : int(header.offsets[2])]
    part = np.empty(header.chunk_size, np.uint8)
    frame.decode_chunks(header, data, 1, 1, part)
    assert (part == whole[header.chunk_size : 2 * header.chunk_size]).all()


@pytest.mark.parametrize(("dtype", "unit"), [("F16", 2), ("F32", 4), ("F64", 8), ("F8_E4M3", 1), ("I64", 8)])
def test_every_layout(dtype: str, unit: int) -> None:
    rng = np.random.default_rng(1)
    step = (1 << 20) if dtype == "I64" else CHUNK * unit
    pieces = [rng.integers(100, 140, size, dtype=np.uint8) for size in (step, 2 * step, 24)]
    encoded, whole = _encode(pieces, dtype, Options())
    out = np.empty_like(whole)
    frame.decode(encoded, out)
    assert (out == whole).all()


@pytest.mark.parametrize(
    "kinds", [["weights", "large", "weights"], ["zero", "weights"], ["noise", "weights"]]
)
@pytest.mark.parametrize("level", ["default", "max"])
def test_reference_decoder_agrees(kinds: list[str], level: str) -> None:
    pieces = [_values(kind, 4096, number) for number, kind in enumerate(kinds)] + [_values("weights", 300)]
    encoded, whole = _encode(pieces, "BF16", Options(level=level, chunk_log2=10))
    assert reference.decode_frame(encoded.tobytes()).data == whole.tobytes()


def test_size_is_that_of_a_whole_encoding() -> None:
    pieces = [_values("weights", 4 * CHUNK, seed) for seed in range(4)]
    encoded, whole = _encode(pieces, "BF16", Options())
    at_once = frame.encode(whole, DTYPES["BF16"], (whole.size // 2,))
    assert encoded.size < 1.01 * len(at_once)


@pytest.mark.parametrize("size", [0, 3, 1000])
def test_small_and_empty_tensors(size: int) -> None:
    pieces = [_values("weights", size)] if size else [np.empty(0, np.uint16)]
    encoded, whole = _encode(pieces, "BF16", Options())
    out = np.empty_like(whole)
    frame.decode(encoded, out)
    assert (out == whole).all()
    assert encoded.tobytes() == frame.encode(whole, DTYPES["BF16"], (size,))


def test_pieces_must_be_whole_chunks_and_fill_the_tensor() -> None:
    encoder = PiecewiseEncoder(DTYPES["BF16"], (3 * CHUNK,))
    encoder.add(_values("weights", CHUNK))
    with pytest.raises(InvalidArgument, match="have been given"):
        encoder.finish()
    encoder.add(_values("weights", CHUNK - 8))
    with pytest.raises(InvalidArgument, match="do not continue"):
        encoder.add(_values("weights", 8))
    with pytest.raises(InvalidArgument, match="do not continue"):
        PiecewiseEncoder(DTYPES["BF16"], (8,)).add(_values("weights", 9))
