"""The codecs in memory: each encodes and decodes a dataset the way it likes best.

neuzip gets all tensors in one call, one behind the other in memory in use, as the commands and save_file have them; or
as a user would: by neuzip.torch.load, and by a call for each tensor.
ZipNN and zstd get all bytes of a dtype in one call, which spares them their costs a call.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import torch
import zstandard
from data import Dataset
from rounds import LIMIT, OURS, Contender, Label

from neuzip import _native
from neuzip._system import Scratch, equal
from neuzip.cli import peers
from neuzip.codec import Options
from neuzip.frame_run import FramePlace, decode_run, encode_run
from neuzip.torch import compress, decompress, load, memory, save

LEVELS = ("default", "max")
THREADS = 2  # beside one
State = Sequence[torch.Tensor]
Frames = Sequence[bytes | memoryview]


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
    """neuzip with a level, threads and instruction set, all tensors in one call."""

    each = False

    def __init__(
        self, data: Dataset, level: str = "default", threads: int = 1, isa: str | None = None
    ) -> None:
        self.data = data
        self.options = Options(level=level, threads=threads)
        self.isa = isa or _native.isa_current()
        self.scratch = Scratch()

    def label(self, memory: str) -> Label:
        options = self.options
        return Label(f"neuzip {options.level}", options.threads or 1, memory, self.isa, self.each, OURS)

    def encode(self) -> Sequence[bytes | memoryview]:
        """Frames, until it encodes again."""
        return encode_run(self.data.contents, self.data.places, self.options, self.scratch)

    def decode(self, frames: bytes, places: Sequence[FramePlace], out: memoryview) -> memoryview:
        decode_run(
            frames, out, places, self.options
        )  # what it leaves out stays spoiled, which the check sees
        return out

    def encoder(self) -> Contender:
        return Contender(
            self.label("fresh" if self.each else "reused"),
            run=lambda _: self.encode(),
            check=lambda frames: same([decompress(part) for part in frames], self.data.tensors),
            prepare=lambda: _native.isa_select(self.isa),
        )

    def decoder(self, frames: Frames, out: memoryview) -> Contender:
        """Decodes frames that lie one behind the other, as in a file, to tensors that do."""
        run, places = b"".join(frames), self._places(frames)
        return Contender(
            self.label("reused"),
            run=lambda _: self.decode(run, places, out),
            check=lambda restored: equal(restored, memoryview(self.data.contents)),
            prepare=lambda: self._scrub(out),
        )

    def loader(self) -> Contender:
        """Decodes what neuzip.torch.save makes, into tensors of its own."""
        named = {str(number): tensor for number, tensor in enumerate(self.data.tensors)}
        saved = save(named, level=self.options.level)
        return Contender(
            self.label("fresh"),
            run=lambda _: load(saved, threads=self.options.threads),
            check=lambda state: same([state[name] for name in named], self.data.tensors),
            prepare=lambda: _native.isa_select(self.isa),
        )

    def _places(self, frames: Frames) -> list[FramePlace]:
        sizes = [len(part) for part in frames]
        starts = itertools.accumulate(sizes, initial=0)
        places = zip(starts, sizes, self.data.places, strict=False)
        return [FramePlace(start, size, *place) for start, size, place in places]

    def _scrub(self, out: memoryview) -> None:
        """Selects the loops, and spoils what an earlier contender left: it must not pass for this one's."""
        _native.isa_select(self.isa)
        for place in self.data.places:
            out[place.start] ^= 255


class EachTensor(Neuzip):
    """neuzip.torch.compress and decompress, a call for each tensor."""

    each = True

    def encode(self) -> Sequence[bytes]:
        options = self.options
        return [compress(tensor, options.level, options.threads) for tensor in self.data.tensors]

    def fresh_decoder(self, frames: Frames) -> Contender:
        """Decodes into tensors of its own."""
        return Contender(
            self.label("fresh"),
            run=lambda _: [decompress(part, threads=self.options.threads) for part in frames],
            check=lambda state: same(state, self.data.tensors),
            prepare=lambda: _native.isa_select(self.isa),
        )


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

    def packed(self) -> dict[str, bytes]:
        """What the decoders are given."""
        return {name: bytes(part) for name, part in self.encode(self.copies()).items()}

    def check(self, restored: dict[str, Any]) -> bool:
        return all(bytes(restored[name]) == raw for name, raw in self.groups.items())

    def encoder(self) -> Contender:
        return Contender(self.label, self.encode, self._decodes, self.copies)

    def decoder(self, packed: dict[str, bytes]) -> Contender:
        return Contender(self.label, lambda _: self.decode(packed), self.check)

    def reusing_decoder(self, packed: dict[str, bytes]) -> Contender:
        """It cannot be given memory, but malloc may have some (heap.keep)."""
        return replace(self.decoder(packed), label=replace(self.label, memory="reused"))

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


def copiers(data: Dataset, out: memoryview) -> list[Contender]:
    """The limits: copying the tensors to memory in use, and to new memory."""

    def copy(_: Any) -> memoryview:
        out[:] = data.contents
        return out

    def clone(_: Any) -> State:
        return [tensor.clone() for tensor in data.tensors]

    return [
        Contender(
            Label("memcpy", 1, "reused", role=LIMIT),
            copy,
            check=lambda copied: equal(copied, memoryview(data.contents)),
        ),
        Contender(
            Label("memcpy", 1, "fresh", role=LIMIT), clone, check=lambda state: same(state, data.tensors)
        ),
    ]
