"""GGUF files written by hand, for tests: any version, alignment, metadata and types, also wrong ones."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Tensor:
    """shape: in the file's order, the fastest dimension first. kind: the number of the type."""

    name: str
    kind: int
    shape: tuple[int, ...]
    data: bytes


def string(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def array(kind: int, items: Iterable[bytes], count: int | None = None) -> bytes:
    items = list(items)
    return struct.pack("<IQ", kind, len(items) if count is None else count) + b"".join(items)


def build(
    tensors: Iterable[Tensor],
    pairs: Iterable[bytes] = (),
    *,
    alignment: int = 32,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A whole file. counts: of tensors and pairs, if they are to lie."""
    tensors, pairs = list(tensors), list(pairs)
    if alignment != 32:
        pairs.append(pair(b"general.alignment", 4, struct.pack("<I", alignment)))
    described, data = b"", b""
    for tensor in tensors:
        data += bytes(-len(data) % alignment)
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        described += string(tensor.name.encode()) + shape + struct.pack("<IQ", tensor.kind, len(data))
        data += tensor.data
    numbers = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, *numbers) + b"".join(pairs) + described
    return head + bytes(-len(head) % alignment) + data
