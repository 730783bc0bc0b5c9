"""Safetensors files that are compressed as files of any kind."""

from __future__ import annotations

from neuzip.kinds.part import Part, Source, plain_part
from neuzip.safetensors_header import HEADER_LIMIT, LENGTH, parse_header


def read_safetensors(source: Source) -> list[Part]:
    """The tensors of a safetensors file. Raises CorruptFrame, TruncatedInput, UnsupportedFormat."""
    (length,) = LENGTH.unpack(source.read(0, LENGTH.size))
    header = parse_header(bytes(source.read(LENGTH.size, min(length, HEADER_LIMIT + 1))))
    start = header.data_start
    return [plain_part(e.name, e.dtype, e.shape, start + e.start, e.size) for e in header.entries.values()]
