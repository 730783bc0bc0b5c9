"""Where a checkpoint's bytes go: per tensor, its compressed size beside what its exponents' entropy allows.

The bound is the usual yardstick of lossless float compression (DFloat11, ZipNN): plane 0 (§3: the exponent,
for fp16 with three mantissa bits) at its order-0 entropy, and every other plane as it is. It is no law: level
"max" and planes that repeat go below it.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuzip import _native, frame
from neuzip.codec import Options
from neuzip.container import Container, Entry
from neuzip.errors import InvalidArgument, NeuzipError
from neuzip.files import walk_files
from neuzip.histogram import Histogram, entropy

Array = np.ndarray[Any, Any]

MODES = ("raw", "constant", "rank", "byte", "local", "joint", "six")  # §4
HEADS = ("rank", "byte", "joint")  # modes of plane 0 whose stream carries a payload
PAYLOAD = 64  # bytes of it, §4.5
LANES = 32
CODINGS = ("stored", "planes", "zstd")  # §5
PLANES = CODINGS.index("planes")
RECORD = struct.Struct("<BBHI")  # of a plane, §4: mode, param, patches, words
BATCH_BYTES = 1 << 24  # original bytes looked at a time: numpy's counting takes four times as much again


@dataclass(frozen=True)
class TensorInspection:
    """One tensor. Sizes are bytes.

    compressed_size and coding are None in a file that is not compressed; coding is "stored", "planes", "zstd"
    or, for a tensor that its container holds as it was, "copy". planes counts, for each plane, the modes of
    its chunks, and plane_sizes are the bytes of their sections; the rest of compressed_size is headers, tables and
    checksums. exponents counts the stored, biased exponents that occur, None for integers; exponent_entropy is
    theirs, in bits an element. bound_size is None where a dtype is not cut into planes. Tensors of the same bytes
    have the same checksum.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    original_size: int
    compressed_size: int | None
    coding: str | None
    planes: tuple[dict[str, int], ...]
    plane_sizes: tuple[int, ...]
    exponents: dict[int, int] | None
    exponent_entropy: float | None
    bound_size: float | None
    checksum: str

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
        self.plane_sizes = [0] * entry.dtype.layout.width
        self.checksums = bytearray()

    def pieces(self, options: Options) -> Iterator[Array]:
        """The tensor's original bytes, counted, in pieces of about BATCH_BYTES."""
        try:
            for data in self._decoded(self.header, options) if self.header is not None else self._plain():
                if self.histogram is not None:
                    self.histogram.add(data)
                self.checksums += _native.checksum64(data).to_bytes(8, "little")
                yield data
        except NeuzipError as error:
            error.at(file=self.container.path, tensor=self.entry.name)
            raise

    def report(self) -> TensorInspection:
        entry, compressed, coding = self.entry, None, None
        if self.container.compressed:
            compressed = len(self.container.data(entry.name))
            coding = "copy" if self.header is None else CODINGS[self.header.coding]
        counts = None if self.histogram is None else self.histogram.exponents()
        in_planes = coding == "planes"
        return TensorInspection(
            name=entry.name,
            dtype=entry.dtype.name,
            shape=entry.shape,
            original_size=entry.size,
            compressed_size=compressed,
            coding=coding,
            planes=tuple(dict(modes.most_common()) for modes in self.modes) if in_planes else (),
            plane_sizes=tuple(self.plane_sizes) if in_planes else (),
            exponents=None if counts is None else {int(e): int(counts[e]) for e in np.flatnonzero(counts)},
            exponent_entropy=None if counts is None else entropy(counts),
            bound_size=None if self.histogram is None else self.histogram.bound_size(),
            checksum=f"{_native.checksum64(self.checksums):016x}",
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
                    start = header.offsets[chunk] - base
                    units = min(header.chunk_size, header.size - chunk * header.chunk_size) // len(self.modes)
                    self._count_planes(chunks[start : start + header.lengths[chunk]], units)
            yield out

    def _count_planes(self, chunk: memoryview, units: int) -> None:
        records = [RECORD.unpack_from(chunk, RECORD.size * plane) for plane in range(len(self.modes))]
        for modes, (mode, *_) in zip(self.modes, records, strict=True):
            modes[MODES[mode]] += 1
        coded = [MODES[mode] for mode, *_ in records]
        at = RECORD.size * len(records)
        for plane in reversed(range(len(records))):
            at = -(-at // 4) * 4
            size = section_size(chunk[at:], records[plane], units)
            if plane == 1 and coded[0] in HEADS and coded[1] in ("raw", "six") and size >= PAYLOAD:
                size -= PAYLOAD
            self.plane_sizes[plane] += size
            at += size


def section_size(section: memoryview, record: tuple[int, int, int, int], units: int) -> int:
    """Bytes of a section of a chunk that has been checked (§4), its payload included."""
    mode, _, patches, words = record
    stream = 4 * LANES + 2 * words
    match MODES[mode]:
        case "raw":
            return units
        case "constant":
            return 0
        case "six":
            return 96 * -(-units // 128)
        case "joint":
            return stream + 4 * patches
        case "local":
            table = 36 + 2 * int.from_bytes(section[2:4], "little")  # §4.3
            return -(-table // 4) * 4 + stream + 3 * patches
        case _:
            return stream + 3 * patches
