"""The metadata of a container: the original file's header, size and sha256, and checksums (§7)."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping

import zstandard

from neuzip.digest import SHA256_DIGITS, is_sha256
from neuzip.errors import CorruptFrame, UnsupportedFormat
from neuzip.kept import BLOCK_BYTES, DataChecksums, TensorChecksums, tensor_places
from neuzip.kept_header import insert_metadata, original_text
from neuzip.safetensors_header import HEADER_LIMIT, LENGTH, Entry, SafetensorsHeader, parse_header

VERSION = 1
KEPT_VERSION = 2
"""Of a container that is its original with text inserted into the header (§7.1)."""

_VERSION_KEY = "neuzip.version"
_HEADER_KEY = "neuzip.header"
_SIZE_KEY = "neuzip.size"
_SHA256_KEY = "neuzip.sha256"
_CHECKSUMS_KEY = "neuzip.checksums"
_KEYS = (_VERSION_KEY, _HEADER_KEY, _SIZE_KEY, _SHA256_KEY, _CHECKSUMS_KEY)
# Of zstd. Higher ones take seconds for the headers of models with very many experts.
_HEADER_LEVEL = 9

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_KEPT_KEYS = (_VERSION_KEY, _SIZE_KEY, _SHA256_KEY, _CHECKSUMS_KEY)


def is_container(metadata: Mapping[str, str]) -> bool:
    """Whether a safetensors file with this metadata is a container."""
    return any(key in metadata for key in _KEYS)


def container_metadata(original: SafetensorsHeader) -> dict[str, str]:
    """The container's metadata: zeros for the sha256, and no checksums."""
    text = zstandard.ZstdCompressor(level=_HEADER_LEVEL, write_checksum=True).compress(original.text)
    return original.metadata | {
        _VERSION_KEY: str(VERSION),
        _HEADER_KEY: _base64(text),
        _SIZE_KEY: str(original.file_size),
        _SHA256_KEY: "0" * SHA256_DIGITS,
        _CHECKSUMS_KEY: "",
    }


def complete_metadata(metadata: Mapping[str, str], sha256: str, checksums: bytes) -> dict[str, str]:
    """A container's metadata with what is known when all is written.

    checksums: those of each uncompressed tensor, as `checksums` makes them, in the order of the data.
    """
    return {**metadata, _SHA256_KEY: sha256, _CHECKSUMS_KEY: _base64(checksums)}


def checksums_bound(entries: Iterable[Entry]) -> int:
    """Characters of the checksums if no tensor were compressed."""
    return -(-4 * tensor_places(entries)[1] // 3) * 4


def tensor_checksums(metadata: Mapping[str, str], entries: Iterable[Entry]) -> TensorChecksums:
    """The checksums of a container of version 1. Raises CorruptFrame.

    entries: of the uncompressed tensors, in the order of the data.
    """
    places, count = tensor_places(entries)
    return TensorChecksums(_checksums(metadata, count), places)


def _checksums(metadata: Mapping[str, str], count: int) -> memoryview:
    try:
        data = base64.b64decode(metadata[_CHECKSUMS_KEY], validate=True)
    except (KeyError, ValueError) as error:
        raise CorruptFrame(f"{_CHECKSUMS_KEY} is missing or no base64") from error
    if len(data) != 4 * count:
        raise CorruptFrame(
            f"{_CHECKSUMS_KEY} has {len(data)} bytes; what is not compressed needs {4 * count}"
        )
    return memoryview(data).cast("I")


def kept_header(original: SafetensorsHeader, sha256: str, checksums: bytes) -> bytes | None:
    """The header of a container of version 2 (§7.1); None for an original that cannot be kept.

    checksums: those of the data's blocks.
    """
    values = (str(KEPT_VERSION), str(original.file_size), sha256, _base64(checksums))
    items = (f'"{key}":"{value}"' for key, value in zip(_KEPT_KEYS, values, strict=True))
    return insert_metadata(original, ",".join(items).encode())


def kept_original(header: SafetensorsHeader) -> SafetensorsHeader:
    """The original's header of a container of version 2. Raises CorruptFrame."""
    ours = header.metadata.keys() & set(_KEYS)
    if ours != set(_KEPT_KEYS):
        raise CorruptFrame("the metadata of a kept file are not those of one")
    length = _size(header.metadata) - LENGTH.size - header.data_size
    text = original_text(header.text, length)
    metadata = {key: value for key, value in header.metadata.items() if key not in ours}
    return SafetensorsHeader(text, header.entries, metadata, header.data_size)


def kept_checksums(header: SafetensorsHeader) -> DataChecksums:
    """The checksums of a container of version 2. Raises CorruptFrame."""
    count = -(-header.data_size // BLOCK_BYTES)
    return DataChecksums(_checksums(header.metadata, count), header.data_size)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def original_sha256(metadata: Mapping[str, str]) -> str:
    """The original file's sha256. Raises CorruptFrame."""
    sha256 = metadata.get(_SHA256_KEY)
    if not is_sha256(sha256):
        raise CorruptFrame(f"{_SHA256_KEY} is missing or no sha256")
    return sha256


def version(metadata: Mapping[str, str]) -> int:
    """The container's version. Raises CorruptFrame, or UnsupportedFormat for a later one."""
    text = metadata.get(_VERSION_KEY, "")
    if not _DECIMAL.fullmatch(text):
        raise CorruptFrame(f"{_VERSION_KEY} is missing or no number")
    if int(text) not in (VERSION, KEPT_VERSION):
        raise UnsupportedFormat(
            f"the container has version {text}; this decoder knows {VERSION} and {KEPT_VERSION}"
        )
    return int(text)


def original_header(metadata: Mapping[str, str]) -> SafetensorsHeader:
    """The original file's header, of version 1. Raises CorruptFrame, or UnsupportedFormat for a dtype not known."""
    original = parse_header(_expand_header(metadata.get(_HEADER_KEY, "")))
    if is_container(original.metadata):
        raise CorruptFrame("the original header is that of a container itself")
    if _size(metadata) != original.file_size:
        raise CorruptFrame(f"{_SIZE_KEY} is {_size(metadata)}; the original header says {original.file_size}")
    return original


def _size(metadata: Mapping[str, str]) -> int:
    size = metadata.get(_SIZE_KEY, "")
    if not _DECIMAL.fullmatch(size):
        raise CorruptFrame(f"{_SIZE_KEY} is missing or no number")
    return int(size)


def _expand_header(encoded: str) -> bytes:
    """Undoes base64 and zstd. The size is read before anything of that size is allocated."""
    try:
        data = base64.b64decode(encoded, validate=True)
        size = zstandard.frame_content_size(data)
        # §6's bound on what bytes can expand to; zstd itself stays below it.
        limit = min(HEADER_LIMIT, len(data) << 17)
        if size > limit:
            raise CorruptFrame(f"{_HEADER_KEY} would expand to {size} bytes, more than {limit}")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=limit, allow_extra_data=False)
    except (ValueError, zstandard.ZstdError) as error:
        raise CorruptFrame(f"{_HEADER_KEY} is no zstd frame in base64") from error
