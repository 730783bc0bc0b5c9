"""The metadata of a container: the original file's header, size and sha256, and checksums (§7)."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import zstandard

from neuzip import _native
from neuzip.digest import SHA256_DIGITS, is_sha256
from neuzip.errors import CorruptFrame, UnsupportedFormat
from neuzip.safetensors_header import HEADER_LIMIT, Entry, SafetensorsHeader, parse_header

VERSION = 1

_VERSION_KEY = "neuzip.version"
_HEADER_KEY = "neuzip.header"
_SIZE_KEY = "neuzip.size"
_SHA256_KEY = "neuzip.sha256"
_CHECKSUMS_KEY = "neuzip.checksums"
_KEYS = (_VERSION_KEY, _HEADER_KEY, _SIZE_KEY, _SHA256_KEY, _CHECKSUMS_KEY)
CHUNK_BYTES = 1 << 20
"""Bytes of an uncompressed tensor that have a checksum of their own (§7)."""
# Of zstd. Higher ones take seconds for the headers of models with very many experts.
_HEADER_LEVEL = 9

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


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
    return -(-sum(_checksum_bytes(entry) for entry in entries) // 3) * 4


def checksums(data: Any) -> bytes:
    """checksum32 (§1) of each CHUNK_BYTES of an uncompressed tensor, from a chunk's beginning on."""
    found = [
        _native.checksum64(data[start : start + CHUNK_BYTES]) & 0xFFFFFFFF
        for start in range(0, len(data), CHUNK_BYTES)
    ]
    return struct.pack(f"<{len(found)}I", *found)


def uncompressed_checksums(metadata: Mapping[str, str], entries: Iterable[Entry]) -> dict[str, bytes]:
    """The checksums of each uncompressed tensor, by name. Raises CorruptFrame.

    entries: of the uncompressed tensors, in the order of the data.
    """
    try:
        data = base64.b64decode(metadata[_CHECKSUMS_KEY], validate=True)
    except (KeyError, ValueError) as error:
        raise CorruptFrame(f"{_CHECKSUMS_KEY} is missing or no base64") from error
    found = {}
    at = 0
    for entry in entries:
        end = at + _checksum_bytes(entry)
        found[entry.name] = data[at:end]
        at = end
    if at != len(data):
        raise CorruptFrame(f"{_CHECKSUMS_KEY} has {len(data)} bytes; the uncompressed tensors need {at}")
    return found


def _checksum_bytes(entry: Entry) -> int:
    return 4 * -(-entry.size // CHUNK_BYTES)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def original_sha256(metadata: Mapping[str, str]) -> str:
    """The original file's sha256. Raises CorruptFrame."""
    sha256 = metadata.get(_SHA256_KEY)
    if not is_sha256(sha256):
        raise CorruptFrame(f"{_SHA256_KEY} is missing or no sha256")
    return sha256


def original_header(metadata: Mapping[str, str]) -> SafetensorsHeader:
    """The original file's header. Raises CorruptFrame, or UnsupportedFormat for a later version or dtype."""
    version = metadata.get(_VERSION_KEY, "")
    if not _DECIMAL.fullmatch(version):
        raise CorruptFrame(f"{_VERSION_KEY} is missing or no number")
    if int(version) != VERSION:
        raise UnsupportedFormat(f"the container has version {version}; this decoder knows {VERSION}")
    original = parse_header(_expand_header(metadata.get(_HEADER_KEY, "")))
    size = metadata.get(_SIZE_KEY, "")
    if not _DECIMAL.fullmatch(size) or int(size) != original.file_size:
        raise CorruptFrame(f"{_SIZE_KEY} is {size[:20]!r}; the original header says {original.file_size}")
    return original


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
