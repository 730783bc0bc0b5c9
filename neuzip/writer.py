"""Tensors in memory to a compressed safetensors file (spec §7), without an uncompressed file in between."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import TensorSpec, serialize

from neuzip import draft
from neuzip._system import address
from neuzip.codec import Options
from neuzip.collector import paused_collector
from neuzip.container_writer import write_container
from neuzip.errors import InvalidArgument
from neuzip.layouts import DType
from neuzip.safetensors_header import LENGTH, METADATA_KEY, Entry, SafetensorsHeader, parse_header

_EMPTY = '"shape":[0],"data_offsets":[0,0]'  # how serialize writes a tensor without elements
_FRAMES_ONLY = "C128"  # no safetensors dtype (floats.toml)
_RESERVED = "neuzip."  # metadata keys of a container (§7)
_MODE = 0o666  # of a file that is created, less the process's mask


@dataclass(frozen=True)
class Source:
    """A tensor to be written. shape counts elements of dtype.

    read() gives its bytes, u8, one-dimensional: the tensor's own memory where possible, else a copy. frame:
    the tensor as a frame, of a tensor that lies compressed in memory; it is written as it is. encode() gives the
    frame of a tensor whose device encodes it, else None.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    read: Callable[[], Any]
    frame: memoryview | None = None
    encode: Callable[[], memoryview | None] = lambda: None


class UnwrittenFile:
    """The file that safetensors would write for some tensors: its header, and its data as it is asked for.

    What container.write_container reads of a plain file; nothing is held but the batch being written.
    """

    path = None
    compressed = False

    def __init__(self, sources: Sequence[Source], metadata: Mapping[str, str] | None) -> None:
        with paused_collector():
            self.original: SafetensorsHeader = parse_header(original_header(sources, metadata))
        self._sources = {source.name: source for source in sources}

    def lazy_data(self, name: str) -> memoryview:
        """A tensor's bytes."""
        return memoryview(self._sources[name].read())

    def read(self, batch: Sequence[Entry]) -> memoryview:
        """The bytes of consecutive tensors."""
        if len(batch) == 1:
            return self.lazy_data(batch[0].name)
        return memoryview(b"".join([self.lazy_data(entry.name) for entry in batch]))

    def forget(self) -> None:
        """Nothing: tensors are the caller's."""

    def ready_frame(self, name: str) -> memoryview | None:
        """A tensor's frame, if there is one already."""
        return self._sources[name].frame

    def encode_there(self, name: str) -> memoryview | None:
        """A tensor's frame, if its device encodes it."""
        return self._sources[name].encode()


def save_file(
    sources: Sequence[Source],
    filename: str | os.PathLike[str],
    metadata: Mapping[str, str] | None,
    options: Options,
) -> None:
    """Write the container of the tensors beside filename, and rename it when it is complete and synced."""
    plain, path = UnwrittenFile(sources, metadata), Path(filename)
    with (
        draft.drafted_file(path, force=True) as partial,
        draft.created_file(partial, mode=_MODE & ~_mask(), destination=path) as out,
    ):
        write_container(plain, out, options)


def save(sources: Sequence[Source], metadata: Mapping[str, str] | None, options: Options) -> bytes:
    """The bytes of the container of the tensors."""
    out = io.BytesIO()
    write_container(UnwrittenFile(sources, metadata), out, options)
    return out.getvalue()


def original_header(sources: Sequence[Source], metadata: Mapping[str, str] | None) -> bytes:
    """The header that the installed safetensors writes for these tensors: its JSON text, padding included.

    The library itself puts tensors in order and escapes their names: it is given each without elements, and
    the shapes and offsets are put in afterwards. Metadata is in the mapping's order; the library's own order
    changes from run to run.

    Raises InvalidArgument for what a safetensors file cannot hold, TypeError for names or metadata that are
    no str.
    """
    empty = _serialized({source.name: _empty_spec(source) for source in sources}, None)
    by_name = {source.name: source for source in sources}
    text, *rest = empty.split(_EMPTY)  # no name contains it: a quote in a name is escaped
    parts, offset = [text], 0
    for name, piece in zip(json.loads(empty), rest, strict=True):
        source = by_name[name]
        stop = offset + (source.dtype.nbytes(source.shape) or 0)
        shape = ",".join(map(str, source.shape))
        parts += [f'"shape":[{shape}],"data_offsets":[{offset},{stop}]', piece]
        offset = stop
    text = _with_metadata("".join(parts), metadata)
    encoded = text.encode()
    return encoded.ljust(-(-len(encoded) // LENGTH.size) * LENGTH.size)


def _empty_spec(source: Source) -> TensorSpec:
    if source.name == METADATA_KEY:
        raise InvalidArgument("a tensor cannot have the name of the metadata", tensor=source.name)
    if source.dtype.torch is None or source.dtype.name == _FRAMES_ONLY:
        raise InvalidArgument(f"a safetensors file cannot hold {source.dtype.name}", tensor=source.name)
    return TensorSpec(dtype=source.dtype.torch, shape=[0], data_ptr=_ADDRESS, data_len=0)


# Tensors without elements still need an address.
_NOTHING = bytearray(1)
_ADDRESS = address(_NOTHING)


def _serialized(specs: dict[str, TensorSpec], metadata: dict[str, str] | None) -> str:
    """The JSON text that safetensors writes for tensors without elements."""
    return bytes(serialize(specs, metadata=metadata))[LENGTH.size :].decode().rstrip(" ")


def _with_metadata(text: str, metadata: Mapping[str, str] | None) -> str:
    """A header's JSON text with the metadata put in front, each item as safetensors escapes it."""
    # Where there is nothing at all, an empty mapping is as None: safetensors' own text for it is no JSON.
    if metadata is None or (not metadata and text == "{}"):
        return text
    for key in metadata:
        if isinstance(key, str) and key.startswith(_RESERVED):
            raise InvalidArgument(f"metadata key {key!r} is reserved for compressed files")
    opening = f'{{"{METADATA_KEY}":{{'
    items = [_serialized({}, {key: value})[len(opening) : -2] for key, value in metadata.items()]
    tensors = text[1:-1]
    return opening + ",".join(items) + "}" + ("," if tensors else "") + tensors + "}"


def _mask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
