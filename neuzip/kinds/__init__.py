"""Files of any kind: which bytes of them are tensors, and of what dtype.

Nothing here writes or decodes: a kind is a function from a file's bytes to `Part`s. A file that breaks the
rules of its kind is a file of no kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

from neuzip.errors import NeuzipError
from neuzip.files import MappedFile
from neuzip.kinds import gguf_file, numpy_file, onnx_file, torch_file, zip_directory
from neuzip.kinds.part import Part, Source, ViewSource, plain_part
from neuzip.safetensors_header import HEADER_LIMIT, LENGTH, parse_header


class Kind(IntEnum):
    """What a file was taken for (§10)."""

    OTHER = 0
    SAFETENSORS = 1
    TORCH = 2
    GGUF = 3
    NUMPY = 4
    ONNX = 5


@dataclass(frozen=True)
class Structure:
    """A file's kind and its tensors, in the order of their bytes and without overlaps."""

    kind: Kind
    parts: tuple[Part, ...]


def find_parts(source: Source, path: Path | None = None) -> Structure:
    """What is in a file. Of a broken one, and one of no kind, nothing is known.

    path: of the file, if what lies beside it may say what it is: ONNX models have tensors in files of their own.
    """
    head = bytes(source.read(0, min(_HEAD_BYTES, source.size)))
    for kind, at, magic, read in _READERS:
        if head[at:].startswith(magic):
            try:
                parts = read(source)
            except NeuzipError:
                continue
            if parts is not None:
                return Structure(kind, tuple(_disjoint(parts, source.size)))
    external = _external(path, source.size) if path is not None else []
    return Structure(Kind.ONNX if external else Kind.OTHER, tuple(_disjoint(external, source.size)))


def _external(path: Path, size: int) -> list[Part]:
    """The tensors that ONNX models in the same folder have in this file."""
    found: list[Part] = []
    for model in sorted(path.parent.glob("*.onnx"))[:_MODEL_LIMIT]:
        with suppress(NeuzipError), MappedFile(model) as file:
            if bytes(file.view[:1]) == onnx_file.MAGIC:
                found += onnx_file.read_external(ViewSource(file.view), path.name, size)
    return found


def _safetensors(source: Source) -> list[Part]:
    (length,) = LENGTH.unpack(source.read(0, LENGTH.size))
    header = parse_header(bytes(source.read(LENGTH.size, min(length, HEADER_LIMIT + 1))))
    start = header.data_start
    return [plain_part(e.name, e.dtype, e.shape, start + e.start, e.size) for e in header.entries.values()]


def _torch(source: Source) -> list[Part] | None:
    found = torch_file.read_torch(source)
    return None if found is None else found.parts()


# Kind, where its magic lies and what that is, and what finds the tensors; None if a file is not of the kind.
_READERS: tuple[tuple[Kind, int, bytes, Callable[[Source], Iterable[Part] | None]], ...] = (
    (Kind.TORCH, 0, zip_directory.MAGIC, _torch),
    (Kind.TORCH, 0, torch_file.PICKLE_MAGIC, _torch),
    (Kind.NUMPY, 0, zip_directory.MAGIC, numpy_file.read_npz),
    (Kind.NUMPY, 0, numpy_file.MAGIC, numpy_file.read_npy),
    (Kind.GGUF, 0, gguf_file.MAGIC, gguf_file.read_gguf),
    (Kind.SAFETENSORS, LENGTH.size, b"{", _safetensors),
    (Kind.ONNX, 0, onnx_file.MAGIC, onnx_file.read_onnx),
)
_HEAD_BYTES = 16
_MODEL_LIMIT = 32


def _disjoint(parts: Iterable[Part], size: int) -> list[Part]:
    """Parts in order, with names of their own; of what overlaps, or goes beyond the file, only the first is kept."""
    kept: list[Part] = []
    names: Counter[str] = Counter()
    position = 0
    for part in sorted(parts, key=lambda part: (part.start, part.end)):
        if position <= part.start and part.end <= size:
            names[part.name] += 1
            number = names[part.name]
            kept.append(part if number == 1 else replace(part, name=f"{part.name} ({number})"))
            position = part.end
    return kept
