"""Safetensors files written by hand, for tests: any header text, any dtype, any order, also wrong ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuzip.layouts import DTYPES

# floats.toml has one dtype that only frames may have.
FILE_DTYPES = tuple(name for name in DTYPES if name != "C128")


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


def header_text(
    tensors: Iterable[Tensor], metadata: Mapping[str, str] | None = None, indent: int | None = None
) -> bytes:
    """The JSON text of a header; the data is in the order of the tensors."""
    fields: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    position = 0
    for tensor in tensors:
        end = position + len(tensor.data)
        fields[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": (position, end),
        }
        position = end
    return json.dumps(fields, indent=indent, ensure_ascii=False).encode()


def with_header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def build(
    tensors: Iterable[Tensor], metadata: Mapping[str, str] | None = None, *, indent: int | None = None
) -> bytes:
    """A whole file."""
    tensors = list(tensors)
    return with_header(header_text(tensors, metadata, indent), b"".join(tensor.data for tensor in tensors))


def split(file: bytes) -> tuple[dict[str, Any], bytes]:
    """The fields of a file's header, and its data."""
    (length,) = struct.unpack_from("<Q", file)
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def weights(dtype: str, units: int, seed: int = 0) -> bytes:
    """Bytes like a trained tensor's, with some NaN payloads, infinities and negative zeros."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 0.02, units)
    if dtype == "BF16":
        data = (values.astype("<f4").view("<u4") >> 16).astype("<u2")
        special = np.array([0x7FC1, 0xFFA5, 0x7F80, 0x8000], "<u2")
    elif dtype == "F16":
        data, special = values.astype("<f2").view("<u2"), np.array([0x7E01, 0xFD55, 0x7C00, 0x8000], "<u2")
    elif dtype in ("F32", "C64"):
        data = values.astype("<f4").view("<u4")
        special = np.array([0x7FC00001, 0xFFA12345, 0x7F800000, 0x80000000], "<u4")
    elif dtype == "F64":
        data = values.view("<u8")
        special = np.array([0x7FF8000000000001, 0xFFF4123456789ABC, 0x7FF0 << 48, 1 << 63], "<u8")
    else:
        # Nearly normal bytes: what the exponents of 8-bit floats and small integers look like.
        data = np.clip(rng.normal(60, 6, units * DTYPES[dtype].bits // 8), 0, 255).astype("u1")
        return data.tobytes()
    if units >= 4 * len(special):
        data[:: units // len(special)][: len(special)] = special
    return data.tobytes()


def model(dtypes: Iterable[str] = FILE_DTYPES, units: int = 4096) -> list[Tensor]:
    """One tensor of `units` elements for each dtype (twice as many 32-bit floats for a complex dtype)."""
    tensors = []
    for number, dtype in enumerate(dtypes):
        size = units * DTYPES[dtype].bits // 8
        stored = weights(dtype, units * (2 if dtype == "C64" else 1), number)
        assert len(stored) == size
        tensors.append(Tensor(f"layer.{number}.{dtype.lower()}", dtype, (units // 8, 8), stored))
    return tensors
