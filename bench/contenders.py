"""The codecs in memory: each encodes and decodes a dataset the way it likes best.

neuzip goes through its public API, one tensor a call. ZipNN and zstd get all bytes of a dtype at once, which spares
them their costs a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
import zstandard
from data import Dataset
from rounds import LIMIT, OURS, Contender, Label

from neuzip import _native
from neuzip.cli import peers
from neuzip.torch import compress, decompress, memory

LEVELS = ("default", "max")
THREADS = 2  # beside one
State = Sequence[torch.Tensor]


def available_isas() -> list[str]:
    """The instruction sets this processor runs, the one in use first."""
    current = _native.isa_current()
    others = [
        name for name in reversed(_native.isa_names()) if _native.isa_available(name) and name != current
    ]
    return [current, *others]


def same(state: State, others: State) -> bool:
    """Whether all bytes are equal."""
    return all(np.array_equal(memory(a), memory(b)) for a, b in zip(state, others, strict=True))


class Neuzip:
    """neuzip.torch with a level, threads and instruction set."""

    def __init__(
        self, data: Dataset, level: str = "default", threads: int = 1, isa: str | None = None
    ) -> None:
        self.data, self.level, self.threads = data, level, threads
        self.isa = isa or _native.isa_current()

    def label(self, memory: str) -> Label:
        return Label(f"neuzip {self.level}", self.threads, memory, self.isa, OURS)

    def encode(self) -> list[bytes]:
        return [compress(tensor, self.level, self.threads) for tensor in self.data.tensors]

    def encoder(self) -> Contender:
        return Contender(
            self.label("fresh"),
            run=lambda _: self.encode(),
            check=lambda frames: same([decompress(frame) for frame in frames], self.data.tensors),
            prepare=lambda: _native.isa_select(self.isa),
        )

    def decoder(self, frames: Sequence[bytes], outs: State | None) -> Contender:
        """Decodes into outs or, if there are none, into tensors of its own."""
        targets: Sequence[torch.Tensor | None] = outs or [None] * len(frames)

        def run(_: Any) -> State:
            return [decompress(frame, out, self.threads) for frame, out in zip(frames, targets, strict=True)]

        return Contender(
            self.label("reused" if outs else "fresh"),
            run=run,
            check=lambda state: same(state, self.data.tensors),
            prepare=lambda: self._scrub(outs),
        )

    def _scrub(self, outs: State | None) -> None:
        """Selects the loops; spoils a byte of each output, so that what an earlier contender left there is no pass."""
        _native.isa_select(self.isa)
        for out in outs or ():
            memory(out)[:1] ^= 255


class ZipNN:
    """ZipNN's byte interface. It overwrites what it compresses and is given copies, unclocked."""

    def __init__(self, data: Dataset, threads: int = 1) -> None:
        self.data, self.threads = data, threads
        # A dtype it does not know (none is here) would count as stored.
        self.groups = {name: raw for name, raw in data.groups.items() if name in peers.ZipNN.dtypes}
        codec = import_module("zipnn").ZipNN
        self.codecs = {
            name: codec(input_format="byte", bytearray_dtype=peers.ZipNN.dtypes[name], threads=threads)
            for name in self.groups
        }
        self.label = Label("ZipNN", threads)

    def copies(self) -> dict[str, bytearray]:
        return {name: bytearray(raw) for name, raw in self.groups.items()}

    def encode(self, copies: dict[str, bytearray]) -> dict[str, Any]:
        return {name: self.codecs[name].compress(copy) for name, copy in copies.items()}

    def decode(self, packed: dict[str, bytes]) -> dict[str, Any]:
        return {name: self.codecs[name].decompress(part) for name, part in packed.items()}

    def check(self, restored: dict[str, Any]) -> bool:
        return all(bytes(restored[name]) == raw for name, raw in self.groups.items())

    def encoder(self) -> Contender:
        return Contender(self.label, self.encode, self._decodes, self.copies)

    def decoder(self, packed: dict[str, bytes]) -> Contender:
        return Contender(self.label, lambda _: self.decode(packed), self.check)

    def _decodes(self, packed: dict[str, Any]) -> bool:
        return self.check(self.decode({name: bytes(part) for name, part in packed.items()}))


class Zstd:
    """zstd's fastest ordinary level, one thread."""

    label = Label("zstd -1")

    def __init__(self, data: Dataset) -> None:
        self.groups = list(data.groups.values())

    def encode(self) -> list[bytes]:
        compressor = zstandard.ZstdCompressor(level=1)
        return [compressor.compress(raw) for raw in self.groups]

    def decode(self, packed: Sequence[bytes]) -> list[bytes]:
        decompressor = zstandard.ZstdDecompressor()
        return [decompressor.decompress(part) for part in packed]

    def encoder(self) -> Contender:
        return Contender(
            self.label, lambda _: self.encode(), check=lambda packed: self.decode(packed) == self.groups
        )

    def decoder(self, packed: Sequence[bytes]) -> Contender:
        return Contender(
            self.label, lambda _: self.decode(packed), check=lambda restored: restored == self.groups
        )


def copiers(data: Dataset, outs: State) -> list[Contender]:
    """The limits: copying the tensors to memory in use, and to new memory."""

    def copy(_: Any) -> State:
        for tensor, out in zip(data.tensors, outs, strict=True):
            np.copyto(memory(out), memory(tensor))
        return outs

    def clone(_: Any) -> State:
        return [tensor.clone() for tensor in data.tensors]

    def check(state: State) -> bool:
        return same(state, data.tensors)

    return [
        Contender(Label("memcpy", 1, "reused", role=LIMIT), copy, check),
        Contender(Label("memcpy", 1, "fresh", role=LIMIT), clone, check),
    ]
