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
from neuzip.errors import NeuzipError
from neuzip.files import View
from neuzip.histogram import Histogram, entropy
from neuzip.kinds.part import Part, field_size, split_fields
from neuzip.tensor_file import Held, TensorFile, open_tensors

Array = np.ndarray[Any, Any]

MODES = ("raw", "constant", "rank", "byte", "local", "joint", "six")  # §4
HEADS = ("rank", "byte", "joint")  # modes of plane 0 whose stream carries a payload
PAYLOAD = 64  # bytes of it, §4.5
LANES = 32
CODINGS = ("stored", "planes", "zstd")  # §5
PLANES = CODINGS.index("planes")
RECORD = struct.Struct("<BBHI")  # of a plane, §4: mode, param, patches, words
_FORGET_CHUNKS = 256  # whose planes are counted before what was read of them is let go
BATCH_BYTES = 1 << 24  # original bytes looked at a time: numpy's counting takes four times as much again


@dataclass(frozen=True)
class TensorInspection:
    """One tensor. Sizes are bytes.

    dtype: of quantised tensors the name of the type, such as "Q8_0". compressed_size and coding are None in a file
    that is not compressed; coding is "stored", "planes", "zstd", "records" for quantised blocks whose scales and
    codes are coded apart, "copy" for a tensor that its container holds as it was, or "shared" for one that its
    archive has coded with the bytes around it; its compressed_size is then its share. planes counts, for each plane,
    the modes of its chunks, and plane_sizes are the bytes of their sections; the rest of compressed_size is headers,
    tables and checksums. exponents counts the stored, biased exponents that occur, None for integers and quantised
    types; exponent_entropy is theirs, in bits an element. bound_size is None where a dtype is not cut into planes;
    of quantised blocks it is the sum of their fields'. Tensors of the same bytes have the same checksum.
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
    """One file with tensors, compressed or not. compressed_size is None if it is not."""

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


def inspect_file(
    path: Path,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    backend: str | None = None,
) -> Inspection:
    """Reads a file with tensors whole, decoding what is compressed.

    progress: called with (done, total) original bytes. backend: as for compress_file.

    Raises CorruptFrame, TruncatedInput, UnsupportedFormat, StorageError; InvalidArgument for a file in which no
    tensors are known.
    """
    done = 0
    tensors = []
    with open_tensors(path, Options(threads=threads, backend=backend)) as file:
        total = sum(part.size for part in file.tensors)
        for part in file.tensors:
            survey = Survey(file, part)
            for size in survey.count():
                done += size
                if progress is not None:
                    progress(done, total)
            tensors.append(survey.report())
        return Inspection(path, file.original_size, file.compressed_size, tuple(tensors))


class Survey:
    """One tensor on its way through its original bytes."""

    def __init__(self, file: TensorFile, part: Part) -> None:
        self.file = file
        self.part = part
        width = part.fields[0][0].layout.width
        self.histograms = [Histogram(dtype) if dtype.layout.planes else None for dtype, _ in part.fields]
        self.modes: list[Counter[str]] = [Counter() for _ in range(width)]
        self.plane_sizes = [0] * width
        self.checksums = bytearray()

    def count(self) -> Iterator[int]:
        """Reads the tensor in pieces of about BATCH_BYTES; their sizes."""
        part = self.part
        step = BATCH_BYTES // part.record_size * part.record_size
        try:
            for start in range(0, part.size, step):
                data = np.empty(min(step, part.size - start), np.uint8)
                self.file.read(part, start, data)
                self.file.forget()
                self._add(data)
                yield len(data)
        except NeuzipError as error:
            error.at(file=self.file.path, tensor=part.name)
            raise

    def _add(self, data: Array) -> None:
        for (_, _, column), histogram in zip(split_fields(self.part, data), self.histograms, strict=True):
            if histogram is not None:
                histogram.add(column)
        self.checksums += _native.checksum64(data).to_bytes(8, "little")

    def report(self) -> TensorInspection:
        """What was seen, once the tensor is counted: frames that have been decoded are checked."""
        part, held = self.part, self.file.held(self.part)
        coding = None if held is None else self._coding(held)
        in_planes = coding == "planes"
        single = self.histograms[0] if len(part.fields) == 1 else None
        counts = None if single is None else single.exponents()
        return TensorInspection(
            name=part.name,
            dtype=part.type,
            shape=part.shape,
            original_size=part.size,
            compressed_size=None if held is None else held.size,
            coding=coding,
            planes=tuple(dict(modes.most_common()) for modes in self.modes) if in_planes else (),
            plane_sizes=tuple(self.plane_sizes) if in_planes else (),
            exponents=None if counts is None else {int(e): int(counts[e]) for e in np.flatnonzero(counts)},
            exponent_entropy=None if counts is None else entropy(counts),
            bound_size=self._bound_size(),
            checksum=f"{_native.checksum64(self.checksums):016x}",
        )

    def _coding(self, held: Held) -> str:
        if held.records:
            return "records"
        found = {self._count_frame(data) for data in held.frames}
        return min(found, key=("planes", "zstd", "stored").index, default=held.rest)

    def _bound_size(self) -> float | None:
        """Of all fields of the records; a field without planes counts as it is."""
        if not any(self.histograms):
            return None
        count = self.part.size // self.part.record_size
        return sum(
            count * float(field_size(field)) if histogram is None else histogram.bound_size()
            for field, histogram in zip(self.part.fields, self.histograms, strict=True)
        )

    def _count_frame(self, data: View) -> str:
        """Counts the planes of a frame; its coding."""
        header = frame.read_whole_header(data)
        if header.coding == PLANES:
            for chunk in range(header.chunk_count):
                if chunk % _FORGET_CHUNKS == 0:
                    self.file.forget()
                start = header.offsets[chunk]
                units = min(header.chunk_size, header.size - chunk * header.chunk_size) // len(self.modes)
                self._count_planes(data[start : start + header.lengths[chunk]], units)
        return CODINGS[header.coding]

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
