"""The comparison of `neuzip bench`: every codec over every batch of tensors, in turn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from neuzip.cli.peers import Codec, Tensor, Unsupported, find_codecs
from neuzip.codec import Options
from neuzip.kinds.part import Part, split_fields
from neuzip.layouts import DTYPES
from neuzip.tensor_file import TensorFile, list_files, open_tensors

WARM_BYTES = 3 << 19  # run before the clock starts; a multiple of every element's size
BATCH_BYTES = 256 << 20  # of tensors measured at a time; about four times as much is held in memory


@dataclass
class Score:
    """Sums over the batches of one codec. error is why it was given up."""

    codec: Codec
    original_size: int = 0
    compressed_size: int = 0
    compress_seconds: float = 0.0
    decompress_seconds: float = 0.0
    equal: bool = True
    warm: bool = False
    unsupported: set[str] = field(default_factory=set)
    error: str | None = None

    def run(self, batch: list[Tensor]) -> None:
        if self.error is not None:
            return
        original = sum(len(tensor.data) for tensor in batch)
        try:
            with redirect_stdout(sys.stderr):  # stdout is ours
                if not self.warm:  # imports, libraries, threads
                    self.codec.run([tensor_head(batch[0])])
                    self.warm = True
                trial = self.codec.run(batch)
        except Unsupported as error:
            self.unsupported.add(str(error))
            return
        except self.codec.failures as error:
            self.error = f"{type(error).__name__}: {error}"
            return
        self.original_size += original
        self.compressed_size += trial.compressed_size
        self.compress_seconds += trial.compress_seconds
        self.decompress_seconds += trial.decompress_seconds
        self.equal &= trial.equal


def tensor_head(tensor: Tensor) -> Tensor:
    """The first bytes of a tensor, as a tensor of one dimension."""
    size = min(len(tensor.data), WARM_BYTES)
    return replace(tensor, shape=(size * 8 // tensor.dtype.bits,), data=tensor.data[:size])


@dataclass(frozen=True)
class Comparison:
    """absent: distributions that were not installed."""

    source: Path
    threads: int
    scores: list[Score]
    absent: list[str]


def compare(
    path: Path, threads: int | None, progress: Callable[[int, int], None] | None = None
) -> Comparison:
    """Runs all codecs over the tensors of a file or a directory. progress: called with the bytes done and in all, of
    all.
    """
    options = Options(threads=threads)
    codecs, absent = find_codecs(options.thread_count)
    scores = [Score(codec) for codec in codecs]
    with ExitStack() as stack:
        files = [stack.enter_context(open_tensors(file, options)) for file in list_files(path, options)]
        total, done = sum(part.size for file in files for part in file.tensors) * len(scores), 0
        for batch in batches(files):
            for score in scores:
                score.run(batch)
                done += sum(len(tensor.data) for tensor in batch)
                if progress is not None:
                    progress(done, total)
    return Comparison(path, options.thread_count, scores, absent)


def batches(files: Iterable[TensorFile]) -> Iterator[list[Tensor]]:
    """The files' tensors in memory, each batch of one dtype and of at most BATCH_BYTES or one tensor."""
    pending: dict[str, list[Tensor]] = {}
    parts = [(file, part) for file in files for part in file.tensors if part.size]
    for file, part in parts:
        for tensor in columns(file, part):
            batch = pending.setdefault(tensor.dtype.name, [])
            if batch and sum(len(held.data) for held in batch) + len(tensor.data) > BATCH_BYTES:
                yield batch
                batch = pending[tensor.dtype.name] = []
            batch.append(tensor)
    yield from pending.values()


def columns(file: TensorFile, part: Part) -> Iterator[Tensor]:
    """A tensor; of quantised blocks the scales and the codes, each as a tensor, to every codec alike."""
    data = np.empty(part.size, np.uint8)
    file.read(part, 0, data)
    if len(part.fields) == 1:
        dtype, shape = part.fields[0][0], part.shape
        if dtype.name == "C128":  # some codecs are given safetensors files, which have no such type
            dtype, shape = DTYPES["F64"], (*shape, 2)
        yield Tensor(part.name, dtype, shape, data)
        return
    for number, (dtype, count, column) in enumerate(split_fields(part, data)):
        shape = part.size // part.record_size, count
        yield Tensor(f"{part.name} [{number}]", dtype, shape, column)
