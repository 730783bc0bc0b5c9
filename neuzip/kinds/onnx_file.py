"""ONNX models: protocol buffers, of which the tensors that hold their data as bytes are found.

The fields are those of onnx.proto: a ModelProto's graph has initialisers, and nodes whose attributes are constants, or
graphs in turn: the branches of If, the bodies of Loop and Scan.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from neuzip.errors import CorruptFrame
from neuzip.kinds.cursor import Cursor
from neuzip.kinds.part import Part, Source, plain_part
from neuzip.layouts import DTYPES, DType

# A model begins with its ir_version: field 1, a number.
_FIELD_LIMIT = 1 << 22  # of messages; a graph of 10 000 nodes has some 200 000
_NAME_BYTES = 1 << 16
_DIMENSIONS = 64
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_U64, _U32 = struct.Struct("<Q"), struct.Struct("<I")

# Field numbers.
_GRAPH = 7
_NODE, _INITIALIZER = 1, 5
_ATTRIBUTE = 5
_VALUES, _SUBGRAPHS = (5, 10), (6, 11)  # of an attribute: one, and several
_DIMS, _DATA_TYPE, _FLOATS, _NAME, _RAW, _DOUBLES, _EXTERNAL = 1, 2, 4, 8, 9, 10, 13
_KEY, _TEXT = 1, 2  # of an entry of external data

_DTYPES = {
    1: "F32",
    2: "U8",
    3: "I8",
    4: "U16",
    5: "I16",
    6: "I32",
    7: "I64",
    9: "BOOL",
    10: "F16",
    11: "F64",
    12: "U32",
    13: "U64",
    14: "C64",
    15: "C128",
    16: "BF16",
    17: "F8_E4M3",
    18: "F8_E4M3FNUZ",
    19: "F8_E5M2",
    20: "F8_E5M2FNUZ",
    23: "F4",
    24: "F8_E8M0",
}


def read_onnx(source: Source) -> list[Part] | None:
    """The tensors of an ONNX model, or None if it has no graph. Raises CorruptFrame, TruncatedInput."""
    tensors = _read_model(source)
    if tensors is None:
        return None
    return [part for tensor in tensors if (part := tensor.part()) is not None]


def read_external(source: Source, name: str, size: int) -> list[Part]:
    """The tensors that a model has in another file, of this name and size. Errors as for read_onnx."""
    tensors = _read_model(source) or []
    return [part for tensor in tensors if (part := tensor.external_part(name, size)) is not None]


@dataclass
class _Tensor:
    """A TensorProto. data: start and size of its bytes. external: where they are if in another file."""

    name: str = ""
    dtype: DType | None = None
    shape: list[int] = field(default_factory=list)
    data: tuple[int, int] | None = None
    external: dict[str, str] = field(default_factory=dict)

    def part(self) -> Part | None:
        """None if the data is not bytes in this file, or not as much as the shape says."""
        if self.dtype is None or self.data is None:
            return None
        start, size = self.data
        if math.prod(self.shape) * self.dtype.bits != 8 * size:
            return None
        return plain_part(self.name, self.dtype, tuple(self.shape), start, size)

    def external_part(self, name: str, size: int) -> Part | None:
        """None if the data is not in the file of this name, or beyond its size."""
        where = {"offset": "0", **self.external}
        numbers = [where["offset"], where.get("length", str(size))]
        if where.get("location") != name or not all(re.fullmatch("[0-9]{1,19}", text) for text in numbers):
            return None
        start = int(numbers[0])
        return replace(self, data=(start, min(int(numbers[1]), size - start))).part()


def _read_model(source: Source) -> list[_Tensor] | None:
    """Initialisers and constants of all graphs, or None if there is none."""
    reader = _Reader(source)
    graphs = [span for number, span in reader.messages(0, source.size) if number == _GRAPH]
    if not graphs:
        return None
    tensors = []
    while graphs:
        for number, (first, last) in reader.messages(*graphs.pop()):
            if number == _INITIALIZER:
                tensors.append(_read_tensor(reader, first, last))
            elif number == _NODE:
                tensors += _read_constants(reader, first, last, graphs)
    return tensors


def _read_constants(
    reader: _Reader, start: int, end: int, graphs: list[tuple[int, int]]
) -> Iterator[_Tensor]:
    """The tensors among the attributes of a node; graphs among them are added to `graphs`."""
    for number, attribute in reader.messages(start, end):
        if number == _ATTRIBUTE:
            for inner, span in reader.messages(*attribute):
                if inner in _VALUES:
                    yield _read_tensor(reader, *span)
                elif inner in _SUBGRAPHS:
                    graphs.append(span)


def _read_tensor(reader: _Reader, start: int, end: int) -> _Tensor:
    tensor = _Tensor()
    for number, kind, first, last in reader.fields(start, end):
        if number == _DIMS:
            tensor.shape += [first] if kind == _VARINT else reader.numbers(first, last)
            if len(tensor.shape) > _DIMENSIONS:
                raise CorruptFrame(f"{len(tensor.shape)} dimensions", offset=start)
        elif number == _DATA_TYPE and kind == _VARINT:
            tensor.dtype = DTYPES.get(_DTYPES.get(first, ""))
        elif number == _NAME and kind == _BYTES:
            tensor.name = reader.text(first, last)
        elif number in (_RAW, _FLOATS, _DOUBLES) and kind == _BYTES:
            tensor.data = first, last - first
        elif number == _EXTERNAL and kind == _BYTES:
            entry = {inner: reader.text(*span) for inner, span in reader.messages(first, last)}
            tensor.external[entry.get(_KEY, "")] = entry.get(_TEXT, "")
    return tensor


class _Reader:
    """Reads the wire format: fields of numbers and of bytes, which may be messages."""

    def __init__(self, source: Source) -> None:
        self._cursor = Cursor(source)
        self._left = _FIELD_LIMIT

    def messages(self, start: int, end: int) -> Iterator[tuple[int, tuple[int, int]]]:
        """Field number, and start and end, of every field of bytes in a message."""
        return ((n, (first, last)) for n, kind, first, last in self.fields(start, end) if kind == _BYTES)

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Number and wire type of every field, with start and end of bytes, or a number and 0."""
        cursor, position = self._cursor, start
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise CorruptFrame(f"more than {_FIELD_LIMIT} fields", offset=position)
            cursor.position, cursor.end = position, end
            key = self._varint()
            number, kind = key >> 3, key & 7
            if number == 0:
                raise CorruptFrame("a field has number 0", offset=position)
            value, last = self._value(kind)
            position = cursor.position
            yield number, kind, value, last

    def numbers(self, start: int, end: int) -> list[int]:
        """Packed numbers; at most one more than a tensor may have dimensions."""
        self._cursor.position, self._cursor.end = start, end
        found: list[int] = []
        while self._cursor.position < end and len(found) <= _DIMENSIONS:
            found.append(self._varint())
        return found

    def text(self, start: int, end: int) -> str:
        """Bytes as text, of which the first _NAME_BYTES are enough."""
        self._cursor.position, self._cursor.end = start, end
        return bytes(self._cursor.take(min(end - start, _NAME_BYTES))).decode("utf-8", "replace")

    def _value(self, kind: int) -> tuple[int, int]:
        cursor = self._cursor
        if kind == _VARINT:
            return self._varint(), 0
        if kind == _BYTES:
            size = self._varint()
            start = cursor.position
            cursor.skip(size)
            return start, cursor.position
        if kind in (_FIXED64, _FIXED32):
            return int(cursor.number(_U64 if kind == _FIXED64 else _U32)), 0
        raise CorruptFrame(f"wire type {kind}", offset=cursor.position)

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._cursor.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise CorruptFrame("a number of more than 10 bytes", offset=self._cursor.position)
