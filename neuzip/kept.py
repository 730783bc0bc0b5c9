"""The bytes that a container keeps as they are, and the checksums that they have (§7)."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from neuzip import _native
from neuzip.errors import CorruptFrame
from neuzip.safetensors_header import Entry

CHUNK_BYTES = 1 << 20
"""Bytes of a tensor that have a checksum of their own in a container of version 1."""
BLOCK_BYTES = 1 << 14
"""Bytes of the data, of any tensors, that have one in version 2: .03 % of them, in base64."""


class Pieces(NamedTuple):
    """Consecutive bytes of a container's data in pieces: where they begin, each one's bytes and checksum32."""

    start: int
    sizes: array[int]
    sums: memoryview

    @property
    def end(self) -> int:
        """Where they end."""
        return self.start + sum(self.sizes)

    def first_wrong(self, data: memoryview) -> int | None:
        """Where the first piece begins that does not match its checksum; None if all do."""
        found = checksums32(data, self.sizes)
        if found.tobytes() == self.sums.tobytes():
            return None
        wrong = next(i for i, (a, b) in enumerate(zip(found, self.sums, strict=True)) if a != b)
        return self.start + sum(self.sizes[:wrong])


def checksums32(data: memoryview, sizes: array[int]) -> memoryview:
    """checksum32 (§1), u32, of consecutive pieces of `data`."""
    starts = array("Q", itertools.accumulate(sizes, initial=0))
    return _native.checksums32(data, starts[:-1], sizes)


def cut(size: int, step: int) -> array[int]:
    """The bytes of each piece of at most `step`."""
    whole, rest = divmod(size, step)
    sizes = array("Q", [step]) * whole
    if rest:
        sizes.append(rest)
    return sizes


class Checksums(Protocol):
    """Those of a container's uncompressed tensors."""

    def __contains__(self, name: object) -> bool:
        """Whether the tensor is uncompressed."""

    def pieces(self, entries: Sequence[Entry], start: int, end: int) -> Pieces:
        """What has to be looked at for bytes start … end − 1 of the data, which are of consecutive tensors."""

    def number(self, entry: Entry, position: int) -> int:
        """For people: which of a tensor's chunks begins at a position of the data."""


@dataclass(frozen=True)
class TensorChecksums:
    """One for every CHUNK_BYTES of each uncompressed tensor: version 1. places: which is a tensor's first."""

    sums: memoryview
    places: Mapping[str, int]

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def pieces(self, entries: Sequence[Entry], start: int, end: int) -> Pieces:
        """See Checksums. Of several tensors all the bytes are looked at."""
        first, skipped = entries[0], 0
        if len(entries) == 1:
            skipped = (start - first.start) // CHUNK_BYTES
            stop = min(-(-(end - first.start) // CHUNK_BYTES) * CHUNK_BYTES, first.size)
            sizes = cut(stop - skipped * CHUNK_BYTES, CHUNK_BYTES)
        else:
            sizes = tensor_sizes(entries)
        place = self.places[first.name] + skipped
        return Pieces(first.start + skipped * CHUNK_BYTES, sizes, self.sums[place : place + len(sizes)])

    def number(self, entry: Entry, position: int) -> int:
        """See Checksums."""
        return (position - entry.start) // CHUNK_BYTES


@dataclass(frozen=True)
class DataChecksums:
    """One for every BLOCK_BYTES of the data, of which all is uncompressed: version 2."""

    sums: memoryview
    size: int

    def __contains__(self, name: object) -> bool:
        return True

    def pieces(self, entries: Sequence[Entry], start: int, end: int) -> Pieces:
        """See Checksums."""
        first, last = start // BLOCK_BYTES, -(-end // BLOCK_BYTES)
        size = min(last * BLOCK_BYTES, self.size) - first * BLOCK_BYTES
        return Pieces(first * BLOCK_BYTES, cut(size, BLOCK_BYTES), self.sums[first:last])

    def number(self, entry: Entry, position: int) -> int:
        """Of the data's blocks: one has bytes of several tensors."""
        return position // BLOCK_BYTES


def check(checksums: Checksums, entries: Sequence[Entry], pieces: Pieces, data: memoryview) -> None:
    """Raises CorruptFrame, with the tensor's name, unless pieces match their checksums. data: their bytes."""
    wrong = pieces.first_wrong(data)
    if wrong is not None:
        entry = next(e for e in reversed(entries) if e.start <= max(wrong, entries[0].start))
        raise CorruptFrame("checksum mismatch", tensor=entry.name, chunk=checksums.number(entry, wrong))


def tensor_sizes(entries: Iterable[Entry]) -> array[int]:
    """The pieces that tensors are cut into in version 1."""
    sizes = array("Q")
    for entry in entries:
        size = entry.end - entry.start
        if size > CHUNK_BYTES:
            sizes.extend(cut(size, CHUNK_BYTES))
        elif size:
            sizes.append(size)
    return sizes


def tensor_places(entries: Iterable[Entry]) -> tuple[dict[str, int], int]:
    """Which checksum is the first of each uncompressed tensor in version 1, and how many there are."""
    places, count = {}, 0
    for entry in entries:
        places[entry.name] = count
        count += -(-entry.size // CHUNK_BYTES)
    return places, count


def runs(entries: Iterable[Entry], most: int) -> Iterator[list[Entry]]:
    """Entries whose bytes are consecutive and of together at most `most`; a larger one is alone."""
    run: list[Entry] = []
    for entry in entries:
        if run and (entry.start != run[-1].end or entry.end - run[0].start > most):
            yield run
            run = []
        run.append(entry)
    if run:
        yield run


class BlockSums:
    """The checksums of version 2 of data that comes in pieces of any size."""

    def __init__(self) -> None:
        self._sums = bytearray()
        self._begun = bytearray()

    def add(self, data: memoryview) -> None:
        """Takes the next bytes."""
        if self._begun:
            missing = BLOCK_BYTES - len(self._begun)
            self._begun += data[:missing]
            data = data[missing:]
            if len(self._begun) < BLOCK_BYTES:
                return
            self._finish_block()
        whole = len(data) // BLOCK_BYTES * BLOCK_BYTES
        self._sums += checksums32(data[:whole], cut(whole, BLOCK_BYTES))
        self._begun += data[whole:]

    def finish(self) -> bytes:
        """The checksums, u32, of all."""
        if self._begun:
            self._finish_block()
        return bytes(self._sums)

    def _finish_block(self) -> None:
        self._sums += checksums32(memoryview(self._begun), array("Q", [len(self._begun)]))
        self._begun = bytearray()
