"""GGUF, what llama.cpp reads: metadata, the descriptions of the tensors, their data.

The file's layout is that of ggml's docs/gguf.md, versions 2 and 3; the blocks are those of ggml-common.h.
"""

from __future__ import annotations

import math
import struct

from neuzip.errors import CorruptFrame, UnsupportedFormat
from neuzip.kinds.cursor import Cursor
from neuzip.kinds.magic import GGUF
from neuzip.kinds.part import Part, Source, field_size, plain_part
from neuzip.layouts import DTYPES

_VERSIONS = (2, 3)
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_STRING, _ARRAY, _UINT32 = 8, 9, 4
# Bytes of a metadata value, by its type: all but strings and arrays.
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_ALIGNMENT_KEY, _ALIGNMENT = b"general.alignment", 32
# What a file's header may have of strings, arrays and tensors: vocabularies have up to a million.
_ITEM_LIMIT = 1 << 22
_NAME_BYTES = 1 << 16
_DIMENSIONS = 8  # ggml has 4
_DEPTH_LIMIT = 4  # of arrays of arrays

_PLAIN = {
    0: "F32",
    1: "F16",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    30: "BF16",
}
# Type: its name, the elements of a block, and a block's fields in their order. A type that is not here is left to
# zstandard. The codes are bytes whatever they pack: few-bit codes are as uneven in pairs as they are alone.
_BLOCKS: dict[int, tuple[str, int, tuple[tuple[str, int], ...]]] = {
    2: ("Q4_0", 32, (("F16", 1), ("U8", 16))),
    3: ("Q4_1", 32, (("F16", 1), ("F16", 1), ("U8", 16))),
    6: ("Q5_0", 32, (("F16", 1), ("U8", 4), ("U8", 16))),
    7: ("Q5_1", 32, (("F16", 1), ("F16", 1), ("U8", 4), ("U8", 16))),
    8: ("Q8_0", 32, (("F16", 1), ("I8", 32))),
    10: ("Q2_K", 256, (("U8", 16), ("U8", 64), ("F16", 1), ("F16", 1))),
    11: ("Q3_K", 256, (("U8", 32), ("U8", 64), ("U8", 12), ("F16", 1))),
    12: ("Q4_K", 256, (("F16", 1), ("F16", 1), ("U8", 12), ("U8", 128))),
    13: ("Q5_K", 256, (("F16", 1), ("F16", 1), ("U8", 12), ("U8", 32), ("U8", 128))),
    14: ("Q6_K", 256, (("U8", 128), ("U8", 64), ("I8", 16), ("F16", 1))),
    15: ("Q8_K", 256, (("F32", 1), ("I8", 256), ("I16", 16))),
    16: ("IQ2_XXS", 256, (("F16", 1), ("U8", 64))),
    17: ("IQ2_XS", 256, (("F16", 1), ("U8", 64), ("U8", 8))),
    18: ("IQ3_XXS", 256, (("F16", 1), ("U8", 64), ("U8", 32))),
    19: ("IQ1_S", 256, (("F16", 1), ("U8", 32), ("U8", 16))),
    20: ("IQ4_NL", 32, (("F16", 1), ("U8", 16))),
    21: ("IQ3_S", 256, (("F16", 1), ("U8", 64), ("U8", 8), ("U8", 32), ("U8", 4))),
    22: ("IQ2_S", 256, (("F16", 1), ("U8", 32), ("U8", 32), ("U8", 8), ("U8", 8))),
    23: ("IQ4_XS", 256, (("F16", 1), ("U8", 2), ("U8", 4), ("U8", 128))),
    29: ("IQ1_M", 256, (("U8", 32), ("U8", 16), ("U8", 8))),
    34: ("TQ1_0", 256, (("U8", 48), ("U8", 4), ("F16", 1))),
    35: ("TQ2_0", 256, (("U8", 64), ("F16", 1))),
    39: ("MXFP4", 32, (("F8_E8M0", 1), ("U8", 16))),
    40: ("NVFP4", 64, (("F8_E4M3", 4), ("U8", 32))),
    41: ("Q1_0", 128, (("F16", 1), ("U8", 16))),
}


def read_gguf(source: Source) -> list[Part]:
    """The tensors of a GGUF file. Shapes are in the order of numpy and torch, the reverse of the file's.

    Raises CorruptFrame, TruncatedInput, UnsupportedFormat.
    """
    cursor = Cursor(source, len(GGUF))
    version = cursor.number(_U32)
    if version not in _VERSIONS:  # a big-endian file's looks like a large number
        raise UnsupportedFormat(f"a GGUF file of version {version:#x}")
    tensors, pairs = cursor.number(_U64), cursor.number(_U64)
    if tensors + pairs > _ITEM_LIMIT:
        raise UnsupportedFormat(f"{tensors} tensors and {pairs} metadata values")
    alignment = _read_alignment(cursor, pairs)
    described = [_read_tensor(cursor) for _ in range(tensors)]
    start = -(-cursor.position // alignment) * alignment
    return [part for fields in described if (part := _part(start, *fields)) is not None]


def _read_alignment(cursor: Cursor, pairs: int) -> int:
    """Goes through the metadata; returns the alignment of the data."""
    alignment, left = _ALIGNMENT, _ITEM_LIMIT
    for _ in range(pairs):
        key = cursor.take(cursor.number(_U64))
        kind = cursor.number(_U32)
        if kind == _UINT32 and key == _ALIGNMENT_KEY:
            alignment = cursor.number(_U32)
            if alignment == 0:
                raise CorruptFrame("the alignment is 0", offset=cursor.position)
        else:
            left = _skip_values(cursor, kind, 1, left, _DEPTH_LIMIT)
    return alignment


def _skip_values(cursor: Cursor, kind: int, count: int, left: int, depth: int) -> int:
    """Goes past values of one type. left: how many strings and arrays there may be; returns what is left."""
    if kind in _SCALARS:
        cursor.skip(count * _SCALARS[kind])
        return left
    if kind not in (_STRING, _ARRAY) or count > left or depth == 0:
        raise UnsupportedFormat(f"{count} metadata values of type {kind}", offset=cursor.position)
    left -= count
    for _ in range(count):
        if kind == _STRING:
            cursor.skip(cursor.number(_U64))
        else:
            inner = cursor.number(_U32)
            left = _skip_values(cursor, inner, cursor.number(_U64), left, depth - 1)
    return left


def _read_tensor(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and position in the data."""
    length = cursor.number(_U64)
    if length > _NAME_BYTES:
        raise CorruptFrame(f"a name of {length} bytes", offset=cursor.position)
    name = bytes(cursor.take(length)).decode("utf-8", "replace")
    dimensions = cursor.number(_U32)
    if dimensions > _DIMENSIONS:
        raise CorruptFrame(f"{dimensions} dimensions", tensor=name, offset=cursor.position)
    extents = [cursor.number(_U64) for _ in range(dimensions)]
    return name, tuple(extents[::-1]), cursor.number(_U32), cursor.number(_U64)


def _part(start: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Part | None:
    """A tensor of the data that begins at `start`; None if its type is unknown or does not fill blocks."""
    count = math.prod(shape)
    if kind in _PLAIN:
        dtype = DTYPES[_PLAIN[kind]]
        return plain_part(name, dtype, shape, start + offset, count * dtype.bits // 8)
    if kind not in _BLOCKS:
        return None
    title, elements, form = _BLOCKS[kind]
    fields = tuple((DTYPES[dtype], number) for dtype, number in form)
    if count % elements:
        return None
    size = count // elements * sum(field_size(field) for field in fields)
    return Part(name, title, shape, start + offset, size, fields)
