"""A safetensors file to its container (§7)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any, BinaryIO, Protocol

from neuzip import _native, frame, kept
from neuzip._system import Scratch
from neuzip.codec import Options, Plan, make_plan
from neuzip.collector import paused_collector
from neuzip.container import BATCH_BYTES, batches
from neuzip.container_metadata import checksums_bound, complete_metadata, container_metadata, kept_header
from neuzip.digest import SHA256_DIGITS, Digest
from neuzip.errors import InvalidArgument, UnsupportedFormat
from neuzip.frame_run import TensorPlace, encode_run
from neuzip.layouts import DTYPES
from neuzip.safetensors_header import HEADER_LIMIT, LENGTH, Entry, SafetensorsHeader, format_header
from neuzip.tables import plan_pieces

# Bytes of a larger tensor whose tables are chosen together: whole chunks of every layout.
PLAN_BYTES = 64 << 20
_U8 = DTYPES["U8"]
# §5: ndim is 0 … 32. A tensor of more dimensions is kept as it is.
_FRAME_DIMENSIONS = 32
# Bytes below which a tensor is kept as it is. A frame has about 180 bytes beside its planes, so that a third of
# 540 bytes is lost again. Where there are very many tensors, trying them all takes several times as long as reading
# and writing them; of fp32, 1 KiB saves nothing.
_LEAST_FRAME = 1 << 9
_LEAST_OF_MANY = 1 << 11
_MANY = 1 << 14
# A container that is larger than its original by more than this part of it is written as a kept file instead.
_MOST_GROWTH = 1000


class PlainFile(Protocol):
    """What write_container reads: a Container that is not compressed, or tensors in memory."""

    @property
    def path(self) -> Any:
        """The file, for errors."""

    @property
    def compressed(self) -> bool:
        """Whether this is a container already."""

    @property
    def original(self) -> SafetensorsHeader:
        """The file's header."""

    def lazy_data(self, name: str) -> Any:
        """A tensor's bytes, to be sliced."""

    def read(self, batch: list[Entry]) -> memoryview:
        """The bytes of consecutive tensors."""

    def ready_frame(self, name: str) -> memoryview | None:
        """A tensor's frame, if there is one already."""

    def encode_there(self, name: str) -> memoryview | None:
        """A tensor's frame, if it lies where it can be encoded; on the host it is encoded here."""

    def forget(self) -> None:
        """Called where what has been read will not soon be read again."""


Advance = Callable[[int], None]


def write_container(
    source: PlainFile, out: BinaryIO, options: Options, advance: Advance = lambda count: None
) -> str:
    """Writes the container of a plain safetensors file to a seekable, empty `out`; returns the file's sha256.

    advance: called with each number of original bytes done. Raises InvalidArgument if source is compressed
    already, UnsupportedFormat if the container's header would be too long for a safetensors file.
    """
    if source.compressed:
        raise InvalidArgument("already compressed", file=source.path)
    original = source.original
    blocks = -(-original.data_size // kept.BLOCK_BYTES)
    room = kept_header(original, "0" * SHA256_DIGITS, bytes(4 * blocks))
    if room is not None and len(room) > HEADER_LIMIT:
        room = None
    least = _LEAST_OF_MANY if len(original.entries) > _MANY else _LEAST_FRAME
    wanted = {
        entry.name
        for entry in original.entries.values()
        if entry.end - entry.start >= least and len(entry.shape) <= _FRAME_DIMENSIONS
    }
    if room is not None and not wanted and not any(map(source.ready_frame, original.entries)):
        return _write_kept(source, out, len(room), advance)
    sha256 = _write_frames(source, wanted, out, options, advance)
    if room is not None and out.tell() - original.file_size > original.file_size // _MOST_GROWTH:
        out.seek(0)
        return _write_kept(source, out, len(room), lambda count: None)
    return sha256


def _write_kept(source: PlainFile, out: BinaryIO, length: int, advance: Advance) -> str:
    """Writes a container of version 2, whose header has `length` bytes."""
    original, sums = source.original, kept.BlockSums()
    out.seek(LENGTH.size + length)
    with Digest() as digest:
        digest.update([memoryview(original.prefix)])
        advance(original.data_start)
        for piece in _pieces(source):
            digest.update([piece])
            sums.add(piece)
            out.write(piece)
            advance(len(piece))
        sha256 = digest.hexdigest()
    out.truncate()
    text = kept_header(original, sha256, sums.finish())
    assert text is not None and len(text) == length
    _write_header(out, text)
    return sha256


def _pieces(source: PlainFile) -> Iterator[memoryview]:
    """The file's data."""
    for batch in batches(source.original.entries.values()):
        if batch[0].size > BATCH_BYTES:
            yield from _slices(source.lazy_data(batch[0].name))
        else:
            yield source.read(batch)


def _write_frames(
    source: PlainFile, wanted: Set[str], out: BinaryIO, options: Options, advance: Advance
) -> str:
    """Writes a container of version 1, in which the wanted tensors are frames if that is smaller; `out` is left at its
    end.
    """
    with paused_collector():
        metadata = container_metadata(source.original)
        length = _header_bound(source.original, metadata)
    if length > HEADER_LIMIT:
        raise UnsupportedFormat(
            f"the container's header would have {length} bytes, more than {HEADER_LIMIT}", file=source.path
        )
    # The header is written last: it holds the frames' sizes and the sha256.
    out.seek(LENGTH.size + length)
    with Digest() as digest:
        digest.update([memoryview(source.original.prefix)])
        advance(source.original.data_start)
        with paused_collector():
            entries, sums = _write_data(source, wanted, out, options, digest, advance)
        sha256 = digest.hexdigest()
    end = out.tell()
    out.truncate()
    text = format_header(complete_metadata(metadata, sha256, sums), entries, length)
    assert len(text) == length
    _write_header(out, text)
    out.seek(end)
    return sha256


def _write_header(out: BinaryIO, text: bytes) -> None:
    out.seek(0)
    out.write(LENGTH.pack(len(text)))
    out.write(text)


def _write_data(
    source: PlainFile, wanted: Set[str], out: BinaryIO, options: Options, digest: Digest, advance: Advance
) -> tuple[list[Entry], bytes]:
    """Writes frames and tensors from out's position on; returns the container's entries, and the checksums of
    those that are no frames."""
    entries: list[Entry] = []
    sums = bytearray()
    position = 0
    scratch = Scratch()
    for batch in batches(source.original.entries.values()):
        if batch[0].size > BATCH_BYTES and batch[0].name in wanted:
            written = [_write_stream(source, batch[0], out, options, scratch, digest, sums, advance)]
        else:
            written = _write_batch(source, wanted, batch, out, options, scratch, digest, sums)
            advance(batch[-1].end - batch[0].start)
        for (name, dtype, shape, start, end), size in zip(batch, written, strict=True):
            if size != end - start:
                dtype, shape = _U8, (size,)
            entries.append(Entry(name, dtype, shape, position, position + size))
            position += size
    return entries, bytes(sums)


def _write_batch(
    source: PlainFile,
    wanted: Set[str],
    batch: list[Entry],
    out: BinaryIO,
    options: Options,
    scratch: Scratch,
    digest: Digest,
    sums: bytearray,
) -> list[int]:
    """Writes a batch of whole tensors; returns the bytes each was given, and adds to the checksums."""
    data = source.read(batch)
    digest.update([data])
    base = batch[0].start
    parts: list[memoryview | bytes] = []
    plain = []
    for entry, coded in zip(batch, _frames(source, wanted, batch, data, options, scratch), strict=True):
        size = entry.end - entry.start
        if coded is None or len(coded) >= size:
            coded = data[entry.start - base : entry.end - base]
            plain.append(entry)
        parts.append(coded)
    out.writelines(parts)
    for run in kept.runs(plain, BATCH_BYTES):
        sums += kept.checksums32(data[run[0].start - base : run[-1].end - base], kept.tensor_sizes(run))
    return list(map(len, parts))


def _frames(
    source: PlainFile,
    wanted: Set[str],
    batch: list[Entry],
    data: memoryview,
    options: Options,
    scratch: Scratch,
) -> Sequence[memoryview | bytes | None]:
    """The frame of each tensor of a batch that is to have one; valid until the scratch memory is used again."""
    base = batch[0].start
    frames: list[memoryview | bytes | None] = [_ready_frame(source, entry.name, wanted) for entry in batch]
    floats: list[int] = []
    others: list[int] = []
    for number, (frame_there, entry) in enumerate(zip(frames, batch, strict=True)):
        if frame_there is None and entry.name in wanted:
            (floats if entry.dtype.layout.planes else others).append(number)
    places = [
        TensorPlace(start - base, end - start, dtype, shape)
        for _, dtype, shape, start, end in map(batch.__getitem__, floats)
    ]
    for number, coded in zip(floats, encode_run(data, places, options, scratch), strict=True):
        frames[number] = coded
    items = [
        (data[start - base : end - base], dtype, shape)
        for _, dtype, shape, start, end in map(batch.__getitem__, others)
    ]
    for number, packed in zip(others, frame.encode_many(items, options), strict=True):
        frames[number] = packed
    return frames


def _write_stream(
    source: PlainFile,
    entry: Entry,
    out: BinaryIO,
    options: Options,
    scratch: Scratch,
    digest: Digest,
    sums: bytearray,
    advance: Advance,
) -> int:
    """Writes one tensor of more than a batch; returns the bytes it was given, and adds to the checksums."""
    data = source.lazy_data(entry.name)
    ready = _ready_frame(source, entry.name, {entry.name})
    if ready is not None and len(ready) < entry.size:
        for piece in _slices(data):
            digest.update([piece])
            advance(len(piece))
        return out.write(ready)
    plan = plan_pieces(_plan_pieces(source, entry, data, options), entry.dtype.layout, entry.size, options)
    encoder = frame.Encoder(data, entry.dtype, entry.shape, options, plan)
    start = out.tell()
    out.seek(start + encoder.header_size)
    for original, coded in itertools.zip_longest(_slices(data), encoder.batches(BATCH_BYTES, scratch)):
        if original is not None:
            digest.update([original])
        if coded is not None:
            out.write(coded)
        if original is not None:
            advance(len(original))
    end = out.tell()
    out.seek(start)
    if end - start >= entry.size:
        for piece in _slices(data):
            sums += kept.checksums32(piece, kept.cut(len(piece), kept.CHUNK_BYTES))
            out.write(piece)
        return entry.size
    out.write(encoder.header())
    out.seek(end)
    return end - start


def _ready_frame(source: PlainFile, name: str, wanted: Set[str]) -> memoryview | None:
    ready = source.ready_frame(name)
    return source.encode_there(name) if ready is None and name in wanted else ready


def _plan_pieces(source: PlainFile, entry: Entry, data: Any, options: Options) -> Iterator[Plan]:
    for number, piece in enumerate(_slices(data, PLAN_BYTES)):
        if number:
            source.forget()  # but not what is read again at once
        yield make_plan(_native.as_bytes(piece), entry.dtype.layout, options)


def _slices(data: Any, size: int | None = None) -> Iterator[memoryview]:
    step = size or BATCH_BYTES
    return (data[start : start + step] for start in range(0, len(data), step))


def _header_bound(original: SafetensorsHeader, metadata: dict[str, str]) -> int:
    """Bytes that suffice for the container's header: every frame is smaller than its tensor, every offset at
    most the original's. A multiple of 8, so that frames are aligned where the tensors before them are.

    "U8" and a frame's bytes are no longer than a tensor's dtype and shape: the product of the extents, times the bytes
    of an element, has at most one digit more than they, and then the dtype's name is longer.
    """
    entries = original.entries.values()
    if len(entries) > _MANY:
        # No JSON text of the entries and the metadata is shorter than the one that is written.
        length = len(original.text) + len(format_header(metadata, ()))
    else:
        length = len(format_header(metadata, entries))
    return -(-(length + checksums_bound(entries)) // 8) * 8
