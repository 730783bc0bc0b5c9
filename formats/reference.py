"""The educational decoder of spec.md: written from it alone, slow on purpose, sharing no code with neuzip.

`decode_frame` restores one tensor (§5), `decode_container` a whole safetensors file (§7). Both refuse what
spec.md does not allow. Chunks are in `reference_chunk.py`, archives in `reference_archive.py`; `§N` cites the sections
of spec.md.
"""

import base64
import binascii
import functools
import hashlib
import json
import math
import re
import struct
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
import zstandard
from reference_chunk import (
    PLANES,
    STORED,
    ZSTD,
    Corrupt,
    Cursor,
    Layout,
    Refused,
    Tables,
    Truncated,
    Unsupported,
    decode_chunk,
    read_tables,
)

__all__ = ["Corrupt", "Refused", "Tensor", "Truncated", "Unsupported", "decode_container", "decode_frame"]

MAGIC = b"NZFR"  # §5
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"  # RFC 8878: a zstd frame, not a skippable one
FIXED_HEADER = struct.Struct("<4sBBBBHBBIQQQ")  # §5, up to `shape`
HEADER_LIMIT = 100_000_000  # §7
OWN_KEYS = {f"neuzip.{key}" for key in ("version", "header", "size", "sha256", "checksums")}  # §7
KEPT_CHUNK = 1 << 20  # §7
KEPT_BLOCK = 1 << 14  # §7.1
KEPT_METADATA = re.compile(
    rb'"neuzip\.version":"2","neuzip\.size":"\d+","neuzip\.sha256":"[0-9a-f]{64}",'
    rb'"neuzip\.checksums":"[A-Za-z0-9+/=]*" *'
)
KEPT_FORMS = {  # §7.1: by what the header grows, what is before and behind, and the original's
    18: (b'"__metadata__":{', b"},", b""),
    17: (b'"__metadata__":{', b"}", b""),
    -2: (b"{", b"}", b"null"),
    0: (b"", b"", b""),
    1: (b"", b",", b""),
}


@dataclass(frozen=True)
class DType:
    """A tensor's type (§2); `bits` is the size of one element."""

    code: int
    name: str
    bits: int
    layout: Layout


@dataclass(frozen=True)
class Tensor:
    """A decoded tensor: safetensors dtype name, shape in elements, original bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class Header:
    """The header of a frame (§5); `index` has the length and the checksum32 of each chunk."""

    dtype: DType
    shape: tuple[int, ...]
    coding: int
    chunk_bytes: int  # original bytes of a full chunk
    size: int
    tables: Tables
    index: list[tuple[int, int]]
    header_size: int
    frame_size: int


@functools.cache
def dtypes() -> dict[int, DType]:
    """The rows of floats.toml by dtype code (§2)."""
    rows = tomllib.loads(Path(__file__).with_name("floats.toml").read_text(encoding="utf-8"))
    layouts = {row["name"]: Layout(**row) for row in rows["layout"]}
    return {
        row["code"]: DType(row["code"], row["name"], row["bits"], layouts[row["layout"]])
        for row in rows["dtype"]
    }


# --- Frames: §5, §6 ---


def read_header(data: bytes) -> Header:
    """Reads and checks everything before the chunks."""
    if not MAGIC.startswith(data[:4]):
        raise Unsupported("wrong magic (§5, §6)")
    if len(data) < FIXED_HEADER.size:
        raise Truncated("the bytes end inside the frame header (§5)")
    fields = FIXED_HEADER.unpack_from(data)
    _, version, code, coding, chunk_log2, required, ndim, _level, table_bytes, size, frame_size, checksum = (
        fields
    )
    if version != 1:
        raise Unsupported(f"version {version} (§9)")
    if required:
        raise Unsupported(f"required bits {required:#x} (§5)")
    if code not in dtypes() or coding not in (STORED, PLANES, ZSTD):
        raise Unsupported(f"dtype {code}, coding {coding} (§5)")
    dtype = dtypes()[code]
    if coding == PLANES and not dtype.layout.planes:
        raise Corrupt(f"coding planes for layout {dtype.layout.name} (§2)")
    if not 10 <= chunk_log2 <= (16 if coding == PLANES else 20) or ndim > 32:
        raise Corrupt(f"chunk_log2 {chunk_log2}, ndim {ndim} (§5)")
    if size > frame_size << 17:
        raise Corrupt(f"{size} bytes cannot come from a frame of {frame_size} (§6)")

    chunk_bytes = (1 << chunk_log2) * (dtype.layout.width if coding == PLANES else 1)
    chunk_count = -(-size // chunk_bytes)
    header_size = FIXED_HEADER.size + 8 * ndim + table_bytes + 8 * chunk_count
    if header_size > frame_size:
        raise Corrupt(f"a header of {header_size} bytes in a frame of {frame_size} (§5)")
    if header_size > len(data):
        raise Truncated("the bytes end inside the frame header (§5)")
    if xxhash.xxh3_64_intdigest(data[:32] + bytes(8) + data[40:header_size]) != checksum:
        raise Corrupt("the header does not match its checksum (§5)")

    cursor = Cursor(data[:header_size], "frame header")
    cursor.take(FIXED_HEADER.size)
    shape = tuple(cursor.integers(8, ndim))
    if math.prod(shape) * dtype.bits != 8 * size:
        raise Corrupt(f"shape {shape} of {dtype.name} is not {size} bytes (§5)")
    tables = read_tables(cursor.take(table_bytes), coding, dtype.layout)
    index = [
        (length, check)
        for length, check in zip(*[iter(cursor.integers(4, 2 * chunk_count))] * 2, strict=True)
    ]
    cursor.finish()
    end = header_size + sum(length for length, _ in index)
    if frame_size != end + -end % 8:
        raise Corrupt(f"frame_size {frame_size} is not the sum of the parts (§5)")
    return Header(dtype, shape, coding, chunk_bytes, size, tables, index, header_size, frame_size)


def decompress_zstd(data: bytes, limit: int) -> bytes:
    """The content of a single zstd frame that states its content size, refused beyond `limit` bytes."""
    if data[:4] != ZSTD_MAGIC:
        raise Corrupt("not a zstd frame (§5)")
    try:
        announced = zstandard.get_frame_parameters(data).content_size
        if announced == zstandard.CONTENTSIZE_UNKNOWN or announced > limit:
            raise Corrupt(f"a zstd frame of {announced} bytes, {limit} allowed (§5, §6)")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=limit, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Corrupt(f"zstd: {error} (§6)") from error


def decode_frame(data: bytes) -> Tensor:
    """Decodes one whole frame (§5). Raises a subclass of Refused."""
    header = read_header(data)
    if len(data) < header.frame_size:
        raise Truncated(f"{len(data)} bytes of a frame of {header.frame_size} (§5)")
    cursor = Cursor(data, "frame")
    cursor.take(header.header_size)
    original = bytearray()
    for number, (length, checksum) in enumerate(header.index):
        chunk, size = cursor.take(length), min(header.chunk_bytes, header.size - len(original))
        if header.coding == PLANES:
            layout, tables = header.dtype.layout, header.tables
            part = decode_chunk(chunk, size // layout.width, layout, tables.kind, tables.of_chunk(number))
        elif header.coding == STORED or length == size:
            part = chunk
        elif length > size:
            raise Corrupt(f"chunk {number} is longer than its {size} original bytes (§5)")
        else:
            part = decompress_zstd(chunk, size)
        if len(part) != size:
            raise Corrupt(f"chunk {number} has {len(part)} original bytes, not {size} (§5)")
        if xxhash.xxh3_64_intdigest(part) & 0xFFFFFFFF != checksum:
            raise Corrupt(f"chunk {number} does not match its checksum (§5)")
        original += part
    cursor.align(8)
    cursor.finish()
    return Tensor(header.dtype.name, header.shape, bytes(original))


# --- Containers: §7 ---


@dataclass(frozen=True)
class Member:
    """A tensor of a safetensors header; its data stands at start … end after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise Corrupt("a key appears twice in a safetensors header (§7)")
    return dict(pairs)


def is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 64


def is_decimal(text: str) -> bool:
    return text.isascii() and text.isdigit() and str(int(text)) == text


def read_entry(name: str, row: Any) -> Member:
    if not isinstance(row, dict) or not set(row) >= {"dtype", "shape", "data_offsets"}:
        raise Corrupt(f"{name}: not a safetensors entry (§7)")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if not isinstance(dtype, str) or not lists or not all(map(is_count, [*shape, *offsets])):
        raise Corrupt(f"{name}: not a safetensors entry (§7)")
    bits = {row.name: row.bits for row in dtypes().values()}.get(dtype)
    if bits is not None and math.prod(shape) * bits != 8 * (offsets[1] - offsets[0]):
        raise Corrupt(f"{name}: shape and offsets disagree (§7)")
    return Member(dtype, tuple(shape), *offsets)


def read_safetensors_header(text: bytes, data_size: int) -> tuple[dict[str, Member], dict[str, str]]:
    """Entries and metadata of a header whose tensors must cover `data_size` bytes without gap or overlap."""
    try:
        rows = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"safetensors header: {error} (§7)") from error
    if not isinstance(rows, dict):
        raise Corrupt("safetensors header: not an object (§7)")
    metadata = rows.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Corrupt("safetensors header: metadata that is not strings (§7)")
    entries = {name: read_entry(name, row) for name, row in rows.items()}
    end = 0
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.end)):
        if entry.start != end or entry.end < entry.start:
            raise Corrupt("safetensors header: gap or overlap in the data (§7)")
        end = entry.end
    if end > data_size:
        raise Truncated(f"{data_size} bytes of data, the safetensors header announces {end}")
    if end < data_size:
        raise Corrupt(f"safetensors header: {data_size - end} bytes of data are nobody's (§7)")
    return entries, metadata


def read_original_header(metadata: dict[str, str]) -> tuple[bytes, dict[str, Member], int]:
    """The original header's text and entries, and the size of the original file."""
    if metadata.get("neuzip.version") != "1":
        raise Unsupported(f"neuzip.version is {metadata.get('neuzip.version')!r} (§9)")
    try:
        packed = base64.b64decode(metadata["neuzip.header"], validate=True)
        size = metadata["neuzip.size"]
    except (KeyError, binascii.Error) as error:
        raise Corrupt(f"container metadata: {error!r} (§7)") from error
    if not is_decimal(size):
        raise Corrupt(f"neuzip.size is {size!r} (§7)")
    text = decompress_zstd(packed, HEADER_LIMIT)
    try:
        entries, theirs = read_safetensors_header(text, int(size) - 8 - len(text))
    except Truncated as error:  # the container itself is whole
        raise Corrupt(f"neuzip.size is too small: {error}") from error
    if set(theirs) & OWN_KEYS:
        raise Corrupt("the original header is that of a container (§7)")
    return text, entries, int(size)


def read_checksums(metadata: dict[str, str]) -> Iterator[int]:
    """The checksum32s of what is not compressed, in the order of the data."""
    try:
        packed = base64.b64decode(metadata["neuzip.checksums"], validate=True)
    except (KeyError, binascii.Error) as error:
        raise Corrupt(f"container metadata: {error!r} (§7)") from error
    if len(packed) % 4:
        raise Corrupt(f"{len(packed)} bytes of checksums (§7)")
    return iter(struct.unpack(f"<{len(packed) // 4}I", packed))


def decode_kept(text: bytes, data: bytes, metadata: dict[str, str]) -> bytes:
    """The original file of a container of version 2 (§7.1)."""
    found, size = KEPT_METADATA.search(text), metadata.get("neuzip.size", "")
    if found is None or "neuzip.header" in metadata or not is_decimal(size):
        raise Corrupt("metadata that are not those of a kept file (§7.1)")
    grown = 8 + len(text) + len(data) - len(found[0]) - int(size)
    if grown not in KEPT_FORMS:
        raise Corrupt(f"neuzip.size is {size}, which no form of the metadata has (§7.1)")
    before, behind, instead = KEPT_FORMS[grown]
    start, end = text[: found.start()], text[found.end() :]
    if not (start.endswith(before) and end.startswith(behind)):
        raise Corrupt("the metadata do not have the form that neuzip.size says (§7.1)")
    header = start.removesuffix(before) + instead + end.removeprefix(behind)
    blocks = [data[at : at + KEPT_BLOCK] for at in range(0, len(data), KEPT_BLOCK)]
    if [xxhash.xxh3_64_intdigest(block) & 0xFFFFFFFF for block in blocks] != list(read_checksums(metadata)):
        raise Corrupt("the data does not match its checksums (§7.1)")
    file = struct.pack("<Q", len(header)) + header + data
    if hashlib.sha256(file).hexdigest() != metadata.get("neuzip.sha256"):
        raise Corrupt("the restored file does not match neuzip.sha256 (§7.1)")
    return file


def decode_container(data: bytes) -> bytes:
    """The original safetensors file of a container (§7). Raises a subclass of Refused."""
    if len(data) < 8:
        raise Truncated("the bytes end inside the length of the safetensors header")
    length = int.from_bytes(data[:8], "little")
    if length > HEADER_LIMIT:
        raise Corrupt(f"a safetensors header of {length} bytes (§7)")
    if len(data) < 8 + length:
        raise Truncated("the bytes end inside the safetensors header")
    entries, metadata = read_safetensors_header(data[8 : 8 + length], len(data) - 8 - length)
    if metadata.get("neuzip.version") == "2":
        return decode_kept(data[8 : 8 + length], data[8 + length :], metadata)
    text, originals, size = read_original_header(metadata)
    if set(entries) != set(originals):
        raise Corrupt("container and original header list different names (§7)")
    checksums = read_checksums(metadata)
    file = bytearray(struct.pack("<Q", len(text)) + text)
    for name, original in sorted(originals.items(), key=lambda item: (item[1].start, item[1].end)):
        entry = entries[name]
        part = data[8 + length + entry.start : 8 + length + entry.end]
        if (entry.dtype, entry.shape) != (original.dtype, original.shape):
            if entry.dtype != "U8" or len(entry.shape) != 1:
                raise Corrupt(f"{name}: neither a frame nor the original tensor (§7)")
            tensor = decode_frame(part)
            if (tensor.dtype, tensor.shape) != (original.dtype, original.shape):
                raise Corrupt(f"{name}: the frame holds another dtype or shape (§7)")
            part = tensor.data
        else:
            for start in range(0, len(part), KEPT_CHUNK):
                found = xxhash.xxh3_64_intdigest(part[start : start + KEPT_CHUNK]) & 0xFFFFFFFF
                if found != next(checksums, None):
                    raise Corrupt(f"{name}: byte {start} and on do not match their checksum (§7)")
        if len(part) != original.end - original.start:
            raise Corrupt(f"{name}: {len(part)} bytes of {original.end - original.start} (§7)")
        file += part
    if next(checksums, None) is not None:
        raise Corrupt("checksums of no tensor (§7)")
    if len(file) != size or hashlib.sha256(file).hexdigest() != metadata.get("neuzip.sha256"):
        raise Corrupt("the restored file does not match neuzip.size or neuzip.sha256 (§7)")
    return bytes(file)
