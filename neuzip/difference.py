"""Which tensors of two checkpoints differ, and by how much."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neuzip.codec import Options
from neuzip.distance import Distance, DistanceTally
from neuzip.kinds.part import Part
from neuzip.layouts import DTYPES
from neuzip.report import Meter, Progress
from neuzip.tensor_file import TensorFile, list_files, open_tensors

__all__ = ["Difference", "Form", "TensorDifference", "diff_files"]

# Bytes of each side compared at a time: whole chunks of every layout, and elements of 3, 4, 6 … 64 bits.
_SLICE_BYTES = 6 << 20


@dataclass(frozen=True)
class Form:
    """A tensor's dtype, by its safetensors name or that of a quantised type, and shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TensorDifference:
    """One tensor that is not the same on both sides.

    file: the file that holds it, relative to the directory, if the name alone is not unique there; else None.
    left, right: its form on each side, None where it is absent. distance: None unless both forms are the same.
    """

    name: str
    file: str | None
    left: Form | None
    right: Form | None
    distance: Distance | None


@dataclass(frozen=True)
class Difference:
    """Two checkpoints. equal: the number of tensors that are the same, byte for byte, on both sides."""

    left: Path
    right: Path
    equal: int
    tensors: tuple[TensorDifference, ...]


def diff_files(
    left: str | os.PathLike[str],
    right: str | os.PathLike[str],
    threads: int | None = None,
    progress: Progress | None = None,
    backend: str | None = None,
) -> Difference:
    """Compares the tensors of two files of any kind that has some, or directories of them, each compressed or not.

    Tensors are paired by name, whichever files of a directory hold them; names that occur in several files of a
    directory are paired by file and name. Tensors are equal if dtype, shape and all bytes are; of quantised types
    the elements are bytes. Nothing else is
    compared: no metadata, no other files. Holds a few MiB of each side at a time.

    threads: for decoding; None is one a processor. progress: called with the original bytes done and in all, of
    one side. backend: as for compress_file.

    Raises CorruptFrame, TruncatedInput, UnsupportedFormat, StorageError; InvalidArgument if a file or directory has
    no tensors.
    """
    a, b = Path(left), Path(right)
    options = Options(threads=threads, backend=backend)
    with ExitStack() as stack:
        pairs = _pair(*(_open(path, options, stack) for path in (a, b)))
        meter = Meter(sum(pair.size for pair in pairs), progress)
        compared = [_compare(pair, meter) for pair in pairs]
    found = tuple(difference for difference in compared if difference is not None)
    return Difference(a, b, len(compared) - len(found), found)


@dataclass(frozen=True)
class _Held:
    """A tensor in its file; path: of the file, relative to its directory."""

    path: str
    file: TensorFile
    part: Part

    @property
    def form(self) -> Form:
        return Form(self.part.type, self.part.shape)


@dataclass(frozen=True)
class _Pair:
    name: str
    file: str | None
    left: _Held | None
    right: _Held | None

    @property
    def size(self) -> int:
        """Bytes to compare, of one side."""
        if self.left is None or self.right is None or self.left.form != self.right.form:
            return 0
        return self.left.part.size


def _open(root: Path, options: Options, stack: ExitStack) -> list[_Held]:
    """The tensors of a file or directory, in the order of their data."""
    held = []
    for path in list_files(root, options):
        file = stack.enter_context(open_tensors(path, options))
        name = path.relative_to(root).as_posix() if path != root else path.name
        held += [_Held(name, file, part) for part in file.tensors]
    return held


def _pair(left: list[_Held], right: list[_Held]) -> list[_Pair]:
    """All tensors of both sides, those of the left first."""
    repeated = {
        name
        for side in (left, right)
        for name, count in Counter(held.part.name for held in side).items()
        if count > 1
    }

    def key(held: _Held) -> tuple[str, str | None]:
        return held.part.name, held.path if held.part.name in repeated else None

    ours, theirs = ({key(held): held for held in side} for side in (left, right))
    return [_Pair(*name, ours.get(name), theirs.get(name)) for name in {**ours, **theirs}]


def _compare(pair: _Pair, meter: Meter) -> TensorDifference | None:
    """None if the tensors are equal."""
    left, right = pair.left, pair.right
    ours = None if left is None else left.form
    theirs = None if right is None else right.form
    if left is None or right is None or ours != theirs:
        return TensorDifference(pair.name, pair.file, ours, theirs, None)
    fields = left.part.fields
    tally = DistanceTally(fields[0][0] if len(fields) == 1 else DTYPES["U8"])
    for start, count in _slices(left.part.size):
        a, b = np.empty(count, np.uint8), np.empty(count, np.uint8)
        left.file.read(left.part, start, a)
        right.file.read(right.part, start, b)
        tally.add(a, b)
        left.file.forget()
        right.file.forget()
        meter.advance(count)
    distance = tally.total()
    return TensorDifference(pair.name, pair.file, ours, theirs, distance) if distance.bits else None


def _slices(size: int) -> Iterator[tuple[int, int]]:
    """Start and length of each slice."""
    for start in range(0, size, _SLICE_BYTES):
        yield start, min(_SLICE_BYTES, size - start)
