"""Where a checkpoint's bytes go: per tensor, its compressed size beside what its exponents' entropy allows.

The bound is the usual yardstick of lossless float compression (DFloat11, ZipNN): plane 0 (§3: the exponent,
for fp16 with three mantissa bits) at its order-0 entropy, and every other plane as it is. It is no law: level
"max" and planes that repeat go below it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from neuzip import frame
from neuzip.codec import Options
from neuzip.container import Container, Entry
from neuzip.errors import InvalidArgument, NeuzipError
from neuzip.files import walk_files
from neuzip.layouts import DType

Array = np.ndarray[Any, Any]

MODES = ("raw", "constant", "rank", "byte", "local", "joint", "six")  # §4
CODINGS = ("stored", "planes", "zstd")  # §5
PLANES = CODINGS.index("planes")
RECORD_BYTES = 8  # of a plane record, spec §4
BATCH_BYTES = 1 << 24  # original bytes looked at a time: numpy's counting takes four times as much again


@dataclass(frozen=True)
class TensorInspection:
    """One tensor. Sizes are bytes.

    compressed_size and coding are None in a file that is not compressed; coding is "stored", "planes", "zstd"
    or, for a tensor that its container holds as it was, "copy". planes counts, for each plane, the modes of
    its chunks. exponent_entropy is in bits an element, None for integers. bound_size is None where a dtype is
    not cut into planes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    original_size: int
    compressed_size: int | None
    coding: str | None
    planes: tuple[dict[str, int], ...]
    exponent_entropy: float | None
    bound_size: float | None

    @property
    def ratio(self) -> float | None:
        """Compressed over original size."""
        if self.compressed_size is None or self.original_size == 0:
            return None
        return self.compressed_size / self.original_size

    @property
    def bound_ratio(self) -> float | None:
        """The ratio at the bound."""
        if self.bound_size is None or self.original_size == 0:
            return None
        return self.bound_size / self.original_size

    @property
    def distance(self) -> float | None:
        """ratio minus bound_ratio; negative where the bound is beaten."""
        return None if self.ratio is None or self.bound_ratio is None else self.ratio - self.bound_ratio


@dataclass(frozen=True)
class Inspection:
    """One safetensors file, compressed or not. compressed_size is None if it is not."""

    path: Path
    original_size: int
    compressed_size: int | None
    tensors: tuple[TensorInspection, ...]

    @property
    def bound_size(self) -> float:
        """The file's size if each tensor met its bound; what has none counts as it is, header included."""
        rest = float(self.original_size if self.compressed_size is None else self.compressed_size)
        for tensor in self.tensors:
            if tensor.bound_size is not None:
                held = tensor.original_size if tensor.compressed_size is None else tensor.compressed_size
                rest += tensor.bound_size - held
        return rest


def entropy(counts: Array) -> float:
    """Order-0 entropy of a histogram, in bits a symbol."""
    seen = counts[counts > 0].astype(np.float64)
    if seen.size < 2:
        return 0.0
    total = seen.sum()
    return float(np.log2(total) - (seen * np.log2(seen)).sum() / total)


class Histogram:
    """Counts of a tensor's heads: the top 16 bits of each unit, or the byte of a one-byte unit."""

    def __init__(self, dtype: DType) -> None:
        self.dtype = dtype
        self.width = dtype.layout.width
        self.counts = np.zeros(256 if self.width == 1 else 1 << 16, np.int64)

    def add(self, data: Array) -> None:
        """data: uint8, whole units."""
        heads = data if self.width == 1 else data.view("<u2")[self.width // 2 - 1 :: self.width // 2]
        self.counts += np.bincount(heads, minlength=len(self.counts))

    def group(self, symbols: Array) -> Array:
        """Counts of symbols[head]."""
        return np.bincount(symbols, weights=self.counts)

    def bound_size(self) -> float:
        """Bytes: plane 0 at its entropy, the others raw."""
        heads = np.arange(len(self.counts))
        if self.width > 1:  # rotl16 leaves bits 14 … 7 of the head in plane 0 (§3)
            heads = (heads >> 7 & 255) if self.dtype.layout.rotate else heads >> 8
        return float(self.counts.sum()) * (self.width - 1 + entropy(self.group(heads)) / 8)

    def exponent_entropy(self) -> float | None:
        """Bits an element; None for what has no exponent."""
        bits = exponent_bits(self.dtype)
        if bits is None:
            return None
        exponent, mantissa = bits
        heads = np.arange(len(self.counts))
        if self.dtype.bits == 4:  # two elements a byte
            nibbles = self.group(heads & 15) + self.group(heads >> 4)
            return entropy(np.bincount(np.arange(16) >> mantissa & (1 << exponent) - 1, weights=nibbles))
        shift = mantissa if self.width == 1 else 15 - exponent
        return entropy(self.group(heads >> shift & (1 << exponent) - 1))


def exponent_bits(dtype: DType) -> tuple[int, int] | None:
    """(exponent bits, mantissa bits) of a float or of a complex number's parts."""
    if dtype.numpy is None or not dtype.layout.planes:
        return None
    scalar = np.dtype(getattr(ml_dtypes, dtype.numpy, None) or dtype.numpy)
    if scalar.kind in "iub":
        return None
    info = ml_dtypes.finfo(scalar)  # type: ignore[no-untyped-call]
    return int(info.nexp), int(info.nmant)


def list_files(path: Path) -> list[Path]:
    """The safetensors files at `path`: itself, or those below a directory, sorted.

    Raises InvalidArgument if a directory has none, StorageError.
    """
    if not path.is_dir():
        return [path]
    found = [file for name, file in walk_files(path) if name.endswith(".safetensors")]
    if not found:
        raise InvalidArgument("the directory has no safetensors files", file=path)
    return found


def inspect_file(
    path: Path, threads: int | None = None, progress: Callable[[int, int], None] | None = None
) -> Inspection:
    """Reads a safetensors file whole, decoding what is compressed.

    progress: called with (done, total) original bytes. Raises CorruptFrame, TruncatedInput,
    UnsupportedFormat, StorageError.
    """
    options = Options(threads=threads)
    done = 0
    tensors = []
    with Container.open(path) as container:
        total = container.original.data_size
        for entry in container.entries.values():
            survey = Survey(container, entry)
            for data in survey.pieces(options):
                done += len(data)
                if progress is not None:
                    progress(done, total)
            tensors.append(survey.report())
        compressed_size = container.header.file_size if container.compressed else None
        return Inspection(path, container.original.file_size, compressed_size, tuple(tensors))


class Survey:
    """One tensor on its way through its original bytes."""

    def __init__(self, container: Container, entry: Entry) -> None:
        self.container = container
        self.entry = entry
        self.histogram = Histogram(entry.dtype) if entry.dtype.layout.planes else None
        self.header = container.frame_header(entry.name) if container.is_frame(entry.name) else None
        self.modes: list[Counter[str]] = [Counter() for _ in range(entry.dtype.layout.width)]

    def pieces(self, options: Options) -> Iterator[Array]:
        """The tensor's original bytes, counted, in pieces of about BATCH_BYTES."""
        try:
            for data in self._decoded(self.header, options) if self.header is not None else self._plain():
                if self.histogram is not None:
                    self.histogram.add(data)
                yield data
        except NeuzipError as error:
            error.at(file=self.container.path, tensor=self.entry.name)
            raise

    def report(self) -> TensorInspection:
        entry, compressed, coding = self.entry, None, None
        if self.container.compressed:
            compressed = len(self.container.data(entry.name))
            coding = "copy" if self.header is None else CODINGS[self.header.coding]
        return TensorInspection(
            name=entry.name,
            dtype=entry.dtype.name,
            shape=entry.shape,
            original_size=entry.size,
            compressed_size=compressed,
            coding=coding,
            planes=tuple(dict(modes.most_common()) for modes in self.modes) if coding == "planes" else (),
            exponent_entropy=None if self.histogram is None else self.histogram.exponent_entropy(),
            bound_size=None if self.histogram is None else self.histogram.bound_size(),
        )

    def _plain(self) -> Iterator[Array]:
        data = np.frombuffer(self.container.data(self.entry.name), np.uint8)
        for start in range(0, len(data), BATCH_BYTES):
            yield data[start : start + BATCH_BYTES]

    def _decoded(self, header: frame.Header, options: Options) -> Iterator[Array]:
        data = self.container.data(self.entry.name)
        step = max(1, BATCH_BYTES // header.chunk_size)
        for first in range(0, header.chunk_count, step):
            count = min(step, header.chunk_count - first)
            start = first * header.chunk_size
            out = np.empty(min(count * header.chunk_size, header.size - start), np.uint8)
            base = header.offsets[first]
            chunks = data[base : header.offsets[first + count]]
            frame.decode_chunks(header, chunks, first, count, out, options)  # checks the records read next
            if header.coding == PLANES:
                for chunk in range(first, first + count):
                    self._count_modes(chunks[header.offsets[chunk] - base :])
            yield out

    def _count_modes(self, chunk: memoryview) -> None:
        for plane, modes in enumerate(self.modes):
            modes[MODES[chunk[plane * RECORD_BYTES]]] += 1
