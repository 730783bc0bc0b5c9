"""The codecs that `neuzip bench` runs. Each takes a batch of one dtype's tensors the way it likes best."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from neuzip.layouts import DType


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file under test; data is its bytes (uint8)."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    data: Any


@dataclass(frozen=True)
class Trial:
    """What one codec did with one batch: bytes, seconds, and whether the bytes came back."""

    compressed_size: int
    compress_seconds: float
    decompress_seconds: float
    equal: bool


class Unsupported(Exception):
    """The codec has no setting for the dtype."""


class Codec(Protocol):
    """One row of the comparison.

    where: "memory" or "files". failures: errors that end the row and not the run.
    """

    name: str
    where: str
    ours: bool
    failures: tuple[type[Exception], ...]

    def run(self, batch: Sequence[Tensor]) -> Trial:
        """Compresses and decompresses a batch. Raises Unsupported, or one of `failures`."""


# What other people's code may raise on data that it does not like.
FOREIGN = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def joined(batch: Sequence[Tensor]) -> bytes:
    return b"".join(memoryview(tensor.data).cast("B") for tensor in batch)


class Memory:
    """neuzip from memory to memory, all tensors in one call."""

    where = "memory"
    ours = True
    failures: tuple[type[Exception], ...] = ()

    def __init__(self, level: str, threads: int) -> None:
        from neuzip.codec import Options

        self.name = f"neuzip {level}"
        self.options = Options(level=level, threads=threads)

    def run(self, batch: Sequence[Tensor]) -> Trial:
        import numpy as np

        from neuzip.frame import decode_many, encode_many

        start = perf_counter()
        frames = encode_many([(tensor.data, tensor.dtype, tensor.shape) for tensor in batch], self.options)
        encoded = perf_counter()
        outs = [np.empty(len(tensor.data), np.uint8) for tensor in batch]
        decode_many(list(zip(frames, outs, strict=True)), self.options)
        decoded = perf_counter()
        equal = all(np.array_equal(out, tensor.data) for out, tensor in zip(outs, batch, strict=True))
        return Trial(sum(map(len, frames)), encoded - start, decoded - encoded, equal)


class Zstd:
    """zstd over the batch's bytes as one frame. Only its compressor has threads."""

    where = "memory"
    ours = False
    failures: tuple[type[Exception], ...] = FOREIGN

    def __init__(self, level: int, threads: int) -> None:
        self.name = f"zstd -{level}"
        self.level = level
        self.threads = threads

    def run(self, batch: Sequence[Tensor]) -> Trial:
        import zstandard

        data = joined(batch)
        start = perf_counter()
        # threads=0 compresses in the calling thread, as one thread should.
        threads = self.threads if self.threads > 1 else 0
        packed = zstandard.ZstdCompressor(level=self.level, threads=threads).compress(data)
        encoded = perf_counter()
        restored = zstandard.ZstdDecompressor().decompress(packed)
        decoded = perf_counter()
        return Trial(len(packed), encoded - start, decoded - encoded, restored == data)


class ZipNN:
    """ZipNN's byte interface over the batch's bytes."""

    where = "memory"
    ours = False
    failures: tuple[type[Exception], ...] = FOREIGN
    dtypes: ClassVar[dict[str, str]] = {
        "BF16": "bfloat16",
        "F16": "float16",
        "F32": "float32",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
    }

    def __init__(self, threads: int) -> None:
        self.name = f"ZipNN {version('zipnn')}"
        self.threads = threads

    def run(self, batch: Sequence[Tensor]) -> Trial:
        dtype = self.dtypes.get(batch[0].dtype.name)
        if dtype is None:
            raise Unsupported(batch[0].dtype.name)
        codec = import_module("zipnn").ZipNN(input_format="byte", bytearray_dtype=dtype, threads=self.threads)
        data = joined(batch)
        copy = bytearray(data)  # it rewrites what it is given
        start = perf_counter()
        packed = codec.compress(copy)
        encoded = perf_counter()
        packed = bytes(packed)
        middle = perf_counter()
        restored = codec.decompress(packed)
        decoded = perf_counter()
        return Trial(len(packed), encoded - start, decoded - middle, bytes(restored) == data)


class Files:
    """From file to file, headers and checksums included."""

    where = "files"

    def compress(self, source: Path, packed: Path) -> None:
        raise NotImplementedError

    def decompress(self, packed: Path, restored: Path) -> None:
        raise NotImplementedError

    def run(self, batch: Sequence[Tensor]) -> Trial:
        original = sum(len(tensor.data) for tensor in batch)
        with tempfile.TemporaryDirectory(prefix="neuzip-bench-", dir=scratch(3 * original)) as folder:
            source, packed, restored = (Path(folder, name) for name in ("a.safetensors", "packed", "b"))
            write_safetensors(source, batch)
            start = perf_counter()
            self.compress(source, packed)
            encoded = perf_counter()
            self.decompress(packed, restored)
            decoded = perf_counter()
            overhead = source.stat().st_size - original  # the header of the file made here is not the user's
            equal = source.read_bytes() == restored.read_bytes()
            return Trial(packed.stat().st_size - overhead, encoded - start, decoded - encoded, equal)


def scratch(needed: int) -> str | None:
    """A folder in memory if there is one with room, so that no disk is measured; else the default."""
    shm = "/dev/shm"
    if os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 2 * needed:
        return shm
    return None


def write_safetensors(path: Path, batch: Sequence[Tensor]) -> None:
    header: dict[str, Any] = {}
    position = 0
    for number, tensor in enumerate(batch):
        end = position + len(tensor.data)
        header[f"{number} {tensor.name}"] = {  # files of a directory may have the same names
            "dtype": tensor.dtype.name,
            "shape": tensor.shape,
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in batch:
            file.write(tensor.data)


class NeuzipFiles(Files):
    ours = True
    failures: tuple[type[Exception], ...] = ()

    def __init__(self, threads: int) -> None:
        self.name = "neuzip default"
        self.threads = threads

    def compress(self, source: Path, packed: Path) -> None:
        from neuzip.checkpoint import compress_file

        compress_file(source, packed, threads=self.threads)

    def decompress(self, packed: Path, restored: Path) -> None:
        from neuzip.checkpoint import decompress_file

        decompress_file(packed, restored, threads=self.threads)


class LmzFiles(Files):
    ours = False
    failures: tuple[type[Exception], ...] = FOREIGN

    def __init__(self, threads: int) -> None:
        self.name = f"lmz {version('lmzip')}"
        self.threads = threads

    def compress(self, source: Path, packed: Path) -> None:
        import_module("lmz").compress(str(source), str(packed), workers=self.threads)

    def decompress(self, packed: Path, restored: Path) -> None:
        import_module("lmz").decompress(str(packed), str(restored), workers=self.threads)


def installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def find_codecs(threads: int) -> tuple[list[Codec], list[str]]:
    """What can be run here, and the distributions of what is not installed."""
    found: list[Codec] = [
        Memory("default", threads),
        Memory("max", threads),
        Zstd(1, threads),
        Zstd(3, threads),
    ]
    absent = []
    if installed("zipnn"):
        found.append(ZipNN(threads))
    else:
        absent.append("zipnn")
    found.append(NeuzipFiles(threads))
    if installed("lmzip"):
        found.append(LmzFiles(threads))
    else:
        absent.append("lmzip")
    return found, absent
