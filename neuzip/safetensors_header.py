"""The header of a safetensors file: parsed strictly, with the tiling of the data checked; and written."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from neuzip.errors import CorruptFrame, TruncatedInput, UnsupportedFormat
from neuzip.layouts import DTYPES, DType

# The safetensors library refuses longer headers, so a longer one is not a safetensors file (§7).
HEADER_LIMIT = 100_000_000
METADATA_KEY = "__metadata__"
LENGTH = struct.Struct("<Q")
# What people take for a safetensors file because of its name, or give to what reads only these.
_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer to one, which `git lfs pull` fetches"),
    (b"NZAR", "an archive of neuzip (.nz)"),
)

# In floats.toml for frames only: the safetensors library has no such type.
_FRAMES_ONLY = frozenset({"C128"})
_BY_NAME = {name: dtype for name, dtype in DTYPES.items() if name not in _FRAMES_ONLY}
_INT = frozenset({int})  # and not bool, which is an int to Python
_FEW = 8  # dimensions, whose product is soon made
_STRINGS = 1 + 3 + 1  # of an entry: its name, its keys and its dtype's name
_quote = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_quote_text = json.encoder.encode_basestring  # what that does with a str, in a tenth of the time
# Sizes and offsets are u64 in the format. The bound also keeps products of hostile shapes small.
_U64_LIMIT = 1 << 64


class Entry(NamedTuple):
    """One tensor of a safetensors file. `start` and `end` count bytes from the first byte of the data."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes of the tensor's data."""
        return self.end - self.start


@dataclass(frozen=True)
class SafetensorsHeader:
    """A parsed header. `entries` are in the order of their data, and cover it without gaps or overlaps."""

    text: bytes = field(repr=False)
    entries: dict[str, Entry]
    metadata: dict[str, str]
    data_size: int

    @property
    def data_start(self) -> int:
        """Offset in the file of the first byte of the data."""
        return LENGTH.size + len(self.text)

    @property
    def file_size(self) -> int:
        """Bytes of the whole file: length, header text and data."""
        return self.data_start + self.data_size

    @property
    def prefix(self) -> bytes:
        """The bytes before the data: the length and the header text."""
        return LENGTH.pack(len(self.text)) + self.text


def parse_file(data: Any, *, whole: bool = True) -> SafetensorsHeader:
    """Parses the header of a safetensors file and checks the file's size against it.

    whole: refuse a file that ends in its data.

    Raises CorruptFrame, TruncatedInput, or UnsupportedFormat for a dtype that is not known.
    """
    if len(data) < LENGTH.size:
        raise TruncatedInput(f"{len(data)} bytes are too few for a safetensors file")
    (length,) = LENGTH.unpack(data[: LENGTH.size])
    if length > HEADER_LIMIT:
        for beginning, what in _OTHERS:
            if bytes(data[: len(beginning)]) == beginning:
                raise CorruptFrame(f"not a safetensors file but {what}", offset=0)
        raise CorruptFrame(
            f"not a safetensors file: a header of {length} bytes is more than {HEADER_LIMIT}", offset=0
        )
    if length > len(data) - LENGTH.size:
        raise TruncatedInput(
            f"the header has {length} bytes but only {len(data) - LENGTH.size} are left", offset=LENGTH.size
        )
    header = parse_header(bytes(data[LENGTH.size : LENGTH.size + length]))
    if whole and header.file_size > len(data):
        raise TruncatedInput(f"the header describes {header.file_size} bytes but the file has {len(data)}")
    if header.file_size < len(data):
        raise CorruptFrame(f"{len(data) - header.file_size} bytes follow the data", offset=header.file_size)
    return header


def parse_header(text: bytes) -> SafetensorsHeader:
    """Parses the JSON text of a header, padding included.

    Raises CorruptFrame, or UnsupportedFormat for a dtype that is not known.
    """
    fields = _plain_fields(text) or parse_json(text)
    metadata = _metadata(fields.pop(METADATA_KEY, None))
    found = [_quick_entry(name, value) or _entry(name, value) for name, value in fields.items()]
    found.sort(key=lambda entry: (entry.start, entry.end))
    position = 0
    for entry in found:
        if entry.start != position:
            what = "overlaps the tensor before it" if entry.start < position else "leaves a gap before it"
            raise CorruptFrame(
                f"the data starts at {entry.start}, which {what}: {position} was expected", tensor=entry.name
            )
        position = entry.end
    return SafetensorsHeader(text, {entry.name: entry for entry in found}, metadata, position)


def _plain_fields(text: bytes) -> dict[str, Any] | None:
    """What parse_json makes of a header, in a third of its time; None for one that is not as most are.

    Without escapes every second quote ends a string, and a duplicate key is a string that is missing from the result.
    A valid entry has at least _STRINGS strings: if the text has no more, none is missing.
    """
    if len(text) > HEADER_LIMIT or b"\\" in text:
        return None
    try:
        fields = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    strings = _STRINGS * len(fields)
    if METADATA_KEY in fields:
        metadata = fields[METADATA_KEY]
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            return None
        strings += 1 + 2 * len(metadata) - _STRINGS
    return fields if text.count(b'"') == 2 * strings else None


def parse_json(text: bytes) -> dict[str, Any]:
    """Parses a JSON object in UTF-8, of at most HEADER_LIMIT bytes and without duplicate keys at any depth.

    Raises CorruptFrame.
    """
    if len(text) > HEADER_LIMIT:
        raise CorruptFrame(f"{len(text)} bytes of JSON are more than {HEADER_LIMIT}")
    # Only an escape can spell half a surrogate pair: UTF-8 has none.
    hook = _unique_text if b"\\u" in text else _unique
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=hook, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        # Not the error's own text: UnicodeDecodeError's holds the whole input.
        raise CorruptFrame(f"not a JSON object in UTF-8 ({type(error).__name__})") from error
    if not isinstance(value, dict):
        raise CorruptFrame(f"not a JSON object but {type(value).__name__}")
    return value


def format_header(metadata: Mapping[str, str], entries: Iterable[Entry], length: int = 0) -> bytes:
    """The JSON text of a header, padded with spaces to at least `length` bytes."""
    fields = [f"{_quote(METADATA_KEY)}:{_quote(dict(metadata))}"] if metadata else []
    for name, dtype, shape, start, end in entries:
        extents = str(shape[0]) if len(shape) == 1 else ",".join(map(str, shape))
        fields.append(
            f'{_quote_text(name)}:{{"dtype":"{dtype.name}","shape":[{extents}],"data_offsets":[{start},{end}]}}'
        )
    return f"{{{','.join(fields)}}}".encode().ljust(length)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise CorruptFrame("a key of the JSON text occurs twice")
    return fields


def _unique_text(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = _unique(pairs)
    for key in fields:
        _refuse_surrogates(key)
    return fields


def _refuse_surrogates(text: str) -> None:
    """JSON escapes can spell half a surrogate pair: no UTF-8 text, and refused by the safetensors library."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CorruptFrame(f"{text!a} is not Unicode text") from error


def _refuse_constant(constant: str) -> NoReturn:
    raise CorruptFrame(f"{constant} is not JSON")


def _metadata(value: Any) -> dict[str, str]:
    # The safetensors library reads null as no metadata.
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CorruptFrame(f"{METADATA_KEY} does not map strings to strings")
    for text in value.values():
        _refuse_surrogates(text)
    return value


def _quick_entry(name: str, value: Any) -> Entry | None:
    """An entry that is as it has to be; None for one that has to be looked at more closely."""
    try:
        dtype, shape, (start, end) = _BY_NAME[value["dtype"]], value["shape"], value["data_offsets"]
    except (KeyError, TypeError, ValueError):
        return None
    if type(start) is not int or type(end) is not int or type(shape) is not list or len(shape) > _FEW:
        return None
    if not _INT.issuperset(map(type, shape)) or (shape and min(shape) <= 0):
        return None
    if not 0 <= start <= end < _U64_LIMIT or math.prod(shape) * dtype.bits != 8 * (end - start):
        return None
    return tuple.__new__(Entry, (name, dtype, tuple(shape), start, end))


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict):
        raise CorruptFrame("the header's entry is not an object", tensor=name)
    dtype_name = value.get("dtype")
    if not isinstance(dtype_name, str):
        raise CorruptFrame("the header's entry has no dtype", tensor=name)
    dtype = DTYPES.get(dtype_name)
    if dtype is None or dtype_name in _FRAMES_ONLY:
        raise UnsupportedFormat(f"unknown dtype {dtype_name!a}", tensor=name)
    shape = _integers(value.get("shape"), name, "shape")
    offsets = _integers(value.get("data_offsets"), name, "data_offsets")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CorruptFrame(f"data_offsets are {list(offsets)[:3]}, not a start and an end", tensor=name)
    bits = _element_count(shape, name) * dtype.bits
    found = 8 * (offsets[1] - offsets[0])
    if bits != found:
        raise CorruptFrame(
            f"{dtype_name} of shape {list(shape)[:33]} has {bits} bits, its data {found}",
            tensor=name,
        )
    return Entry(name, dtype, shape, *offsets)


def _integers(value: Any, name: str, what: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise CorruptFrame(f"{what} is not a list", tensor=name)
    for item in value:
        # type() and not isinstance(): JSON's true is an int to Python.
        if type(item) is not int or not 0 <= item < _U64_LIMIT:
            raise CorruptFrame(f"{what} is not a list of 64-bit sizes", tensor=name)
    return tuple(value)


def _element_count(shape: tuple[int, ...], name: str) -> int:
    if 0 in shape:
        return 0
    count = 1
    for extent in shape:
        count *= extent
        if count >= _U64_LIMIT:
            raise CorruptFrame("the shape has more elements than 64 bits count", tensor=name)
    return count
