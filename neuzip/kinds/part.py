"""Tensors in files of any kind: where their bytes lie, and how those are made up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from neuzip.errors import TruncatedInput
from neuzip.files import FileBytes
from neuzip.layouts import DType

if TYPE_CHECKING:
    import numpy as np

    Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Part:
    """The bytes of a tensor in a file, `size` of them from `start` on.

    type: for people: a dtype's name, or that of a quantised type. fields: what a record of the bytes is made
    of, as (dtype, elements); the bytes are whole records. A plain tensor's record is one element.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    start: int
    size: int
    fields: tuple[tuple[DType, int], ...]

    @property
    def end(self) -> int:
        """The first byte after the tensor's."""
        return self.start + self.size

    @property
    def record_size(self) -> int:
        """Bytes of a record."""
        return sum(field_size(field) for field in self.fields)


def field_size(field: tuple[DType, int]) -> int:
    """Bytes of a field of a record."""
    dtype, count = field
    return dtype.bits * count // 8


def split_fields(part: Part, data: Any) -> list[tuple[DType, int, Bytes]]:
    """Whole records, a buffer, field by field: its dtype, its elements in a record, its bytes in all of them."""
    import numpy as np

    data = np.frombuffer(data, np.uint8)
    if len(part.fields) == 1:
        return [(*part.fields[0], data)]
    records = data.reshape(-1, part.record_size)
    found, at = [], 0
    for dtype, count in part.fields:
        end = at + field_size((dtype, count))
        found.append((dtype, count, np.ascontiguousarray(records[:, at:end]).reshape(-1)))
        at = end
    return found


def plain_part(name: str, dtype: DType, shape: tuple[int, ...], start: int, size: int) -> Part:
    """A tensor of one dtype."""
    per_byte = math.lcm(dtype.bits, 8) // dtype.bits  # elements that fill whole bytes
    return Part(name, dtype.name, shape, start, size, ((dtype, per_byte),))


class Source(Protocol):
    """A file's bytes, wherever they come from."""

    @property
    def size(self) -> int:
        """Bytes in all."""

    def read(self, start: int, size: int) -> memoryview:
        """The bytes start … start + size − 1. Raises TruncatedInput if the file ends before."""

    def fill(self, requests: list[tuple[int, Any]]) -> None:
        """Reads the bytes from each position on into the buffer beside it. Errors as for read."""

    def forget(self) -> None:
        """See FileBytes.forget."""


class ViewSource:
    """The bytes of a file's view (files.View). file: whose view it is, if it may let go of it."""

    def __init__(self, view: Any, file: FileBytes | None = None) -> None:
        self._view, self._file = view, file

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self._view)

    def read(self, start: int, size: int) -> memoryview:
        """See Source."""
        check_range(self, start, size)
        part: memoryview = self._view[start : start + size]
        return part

    def fill(self, requests: list[tuple[int, Any]]) -> None:
        """See Source."""
        for start, out in requests:
            target = memoryview(out).cast("B")
            target[:] = self.read(start, len(target))

    def forget(self) -> None:
        """See Source."""
        if self._file is not None:
            self._file.forget()


def check_range(source: Source, start: int, size: int) -> None:
    """Raises TruncatedInput unless these bytes are in the file."""
    if start < 0 or size < 0 or start + size > source.size:
        raise TruncatedInput(f"{size} bytes are missing; the file ends at {source.size}", offset=start)
