"""How small do weights get? Every tensor in memory, and whole files, beside the peers and the usual bound."""

from __future__ import annotations

import filecmp
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from contenders import LEVELS, Neuzip, ZipNN, Zstd, same
from data import Dataset
from rounds import WrongBytes

import neuzip
from neuzip.cli import peers
from neuzip.inspection import inspect_file
from neuzip.torch import decompress

TENSORS, FILE = "tensors", "file"
BOUND = "exponent entropy"


@dataclass(frozen=True)
class Ratio:
    """Sizes in bytes. scope: "tensors", without any header of the file, or "file", whole."""

    data: str
    codec: str
    scope: str
    original: int
    compressed: int

    @property
    def ratio(self) -> float:
        return self.compressed / self.original


def ask(data: Dataset) -> list[Ratio]:
    """All sizes of a dataset. Raises WrongBytes."""
    found = [Ratio(data.name, codec, TENSORS, data.size, size) for codec, size in tensor_sizes(data)]
    whole = data.path.stat().st_size
    return found + [Ratio(data.name, codec, FILE, whole, size) for codec, size in file_sizes(data)]


def tensor_sizes(data: Dataset) -> Iterator[tuple[str, int]]:
    for level in LEVELS:
        frames = Neuzip(data, level, threads=os.cpu_count() or 1).encode()
        if not same([decompress(frame) for frame in frames], data.tensors):
            raise WrongBytes(f"{data.name}: neuzip {level}")
        yield f"neuzip {level}", sum(map(len, frames))
    zipnn = ZipNN(data)
    packed = zipnn.packed()
    if not zipnn.check(zipnn.decode(packed)):
        raise WrongBytes(f"{data.name}: ZipNN")
    yield "ZipNN", sum(map(len, packed.values())) + data.size - sum(map(len, zipnn.groups.values()))
    yield "zstd -1", sum(map(len, Zstd(data).encode()))
    # Each tensor's exponents (of fp16: with three mantissa bits) at their order-0 entropy, the rest as it is.
    bounds = [tensor.bound_size for tensor in inspect_file(data.path).tensors]
    yield BOUND, round(sum(bound or 0 for bound in bounds))


def file_sizes(data: Dataset) -> Iterator[tuple[str, int]]:
    with tempfile.TemporaryDirectory(dir=peers.scratch(3 * data.size)) as folder:
        packed, restored = Path(folder, "packed"), Path(folder, "restored")
        for level in LEVELS:
            neuzip.compress_file(data.path, packed, level=level, force=True)
            neuzip.decompress_file(packed, restored, force=True)
            if not filecmp.cmp(data.path, restored, shallow=False):
                raise WrongBytes(f"{data.name}: neuzip {level}, file")
            yield f"neuzip {level}", packed.stat().st_size
        lmz = peers.LmzFiles(os.cpu_count() or 1)
        packed, restored = Path(folder, "packed.lmz"), Path(folder, "restored.lmz")
        lmz.compress(data.path, packed)
        lmz.decompress(packed, restored)
        if not filecmp.cmp(data.path, restored, shallow=False):
            raise WrongBytes(f"{data.name}: lmz, file")
        yield "lmz", packed.stat().st_size
