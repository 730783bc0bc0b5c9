"""Files of any kind: which bytes of them are tensors, and of what dtype.

Nothing here writes or decodes: a kind is a function from a file's bytes to `Part`s. A file that breaks the
rules of its kind is a file of no kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

from neuzip.errors import NeuzipError
from neuzip.kinds import torch_file, zip_directory
from neuzip.kinds.part import Part, Source, plain_part
from neuzip.safetensors_header import HEADER_LIMIT, LENGTH, parse_header


class Kind(IntEnum):
    """What a file was taken for (§10)."""

    OTHER = 0
    SAFETENSORS = 1
    TORCH = 2


@dataclass(frozen=True)
class Structure:
    """A file's kind and its tensors, in the order of their bytes and without overlaps."""

    kind: Kind
    parts: tuple[Part, ...]


def find_parts(source: Source) -> Structure:
    """What is in a file. Of a broken one, and one of no kind, nothing is known."""
    head = bytes(source.read(0, min(_HEAD_BYTES, source.size)))
    for kind, at, magic, read in _READERS:
        if head[at:].startswith(magic):
            try:
                parts = read(source)
            except NeuzipError:
                continue
            if parts is not None:
                return Structure(kind, tuple(_disjoint(parts, source.size)))
    return Structure(Kind.OTHER, ())


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
    (Kind.SAFETENSORS, LENGTH.size, b"{", _safetensors),
)
_HEAD_BYTES = 16


def _disjoint(parts: Iterable[Part], size: int) -> list[Part]:
    """Parts in order; of what overlaps, or goes beyond the file, only the first is kept."""
    kept: list[Part] = []
    position = 0
    for part in sorted(parts, key=lambda part: part.start):
        if position <= part.start and part.end <= size and part.size > 0:
            kept.append(part)
            position = part.end
    return kept
