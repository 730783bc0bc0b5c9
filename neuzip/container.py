"""The container: a safetensors file of frames, and the original file inside it (§7)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import numpy as np

from neuzip import frame
from neuzip.codec import Options
from neuzip.collector import paused_collector
from neuzip.container_metadata import (
    CHUNK_BYTES,
    checksums,
    checksums_bound,
    complete_metadata,
    container_metadata,
    is_container,
    original_header,
    original_sha256,
    uncompressed_checksums,
)
from neuzip.digest import Digest
from neuzip.errors import CorruptFrame, InvalidArgument, NeuzipError, TruncatedInput, UnsupportedFormat
from neuzip.files import MappedFile, lazy_part
from neuzip.layouts import DTYPES
from neuzip.piecewise import plan_pieces
from neuzip.safetensors_header import (
    HEADER_LIMIT,
    LENGTH,
    Entry,
    SafetensorsHeader,
    format_header,
    parse_file,
)

__all__ = ["BATCH_BYTES", "CHUNK_BYTES", "Container", "Entry", "batches", "write_container"]

# Original bytes coded at a time: enough to keep every thread busy, and what bounds the memory needed.
BATCH_BYTES = 16 << 20

# Bytes of a larger tensor whose tables are chosen together: whole chunks of every layout.
_PLAN_BYTES = 64 << 20
_U8 = DTYPES["U8"]
# §5: ndim is 0 … 32. A tensor of more dimensions is kept as it is.
_FRAME_DIMENSIONS = 32
# Bytes below which a tensor is kept as it is. A frame has about 180 bytes beside its planes, so that a third of
# 540 bytes is lost again; and files of very many tensors are written and read several times as fast.
_LEAST_FRAME = 1 << 9


@dataclass(frozen=True)
class Container:
    """A safetensors file, compressed or plain. A plain one is a container without frames. A context manager.

    header: of the file as it is. original: of the original file; the same object if the file is plain.
    sha256: of the original file; None if the file is plain. checksums: those of each uncompressed tensor of a
    compressed file (§7); the others are frames, which have their own.
    """

    path: Path | None
    header: SafetensorsHeader
    original: SafetensorsHeader
    sha256: str | None
    view: Any
    file: MappedFile | None = None
    checksums: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: str | Path, *, damaged: bool = False, backend: str | None = None) -> Container:
        """Opens a file and checks its headers, not its frames.

        backend: see MappedFile. damaged: open also a file that ends too early; to read what is missing raises
        TruncatedInput.

        Raises CorruptFrame, TruncatedInput, UnsupportedFormat, StorageError; InvalidArgument for a directory.
        """
        path = Path(path)
        file = MappedFile(path, backend)
        try:
            return replace(cls.parse(file.view, path, damaged=damaged), file=file)
        except BaseException:
            file.close()
            raise

    @classmethod
    def parse(cls, data: Any, path: Path | None = None, *, damaged: bool = False) -> Container:
        """As open, for the bytes of a file: a memoryview or a ReadView."""
        try:
            with paused_collector():
                header = parse_file(data, whole=not damaged)
                if not is_container(header.metadata):
                    return cls(path, header, header, None, data)
                original = original_header(header.metadata)
                kept = _uncompressed(header, original)
                sums = uncompressed_checksums(header.metadata, kept)
                sha256 = original_sha256(header.metadata)
                return cls(path, header, original, sha256, data, checksums=sums)
        except NeuzipError as error:
            error.at(file=path)
            raise

    @property
    def compressed(self) -> bool:
        """Whether the file is a container of §7 and not a plain safetensors file."""
        return self.sha256 is not None

    @property
    def original_size(self) -> int:
        """Bytes of the original file."""
        return self.original.file_size

    @property
    def entries(self) -> dict[str, Entry]:
        """The tensors of the original file, in the order of their data."""
        return self.original.entries

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the original file."""
        return self.original.metadata

    def data(self, name: str) -> memoryview:
        """A tensor's bytes in this file: a frame, or the tensor as it is."""
        data: memoryview = self.lazy_data(name)[:]
        return data

    def lazy_data(self, name: str) -> Any:
        """As data, to be sliced: a memoryview, or a ReadView that reads no more than is asked for."""
        entry, start = self.header.entries[name], self.header.data_start
        return lazy_part(self.view, start + entry.start, start + entry.end)

    def read(self, batch: Sequence[Entry]) -> memoryview:
        """The bytes of consecutive tensors of a plain file."""
        start = self.header.data_start
        data: memoryview = self.view[start + batch[0].start : start + batch[-1].end]
        return data

    def ready_frame(self, name: str) -> memoryview | None:
        """The frame to write for a tensor of a plain file: none is ready, it has to be encoded."""
        return None

    def is_frame(self, name: str) -> bool:
        """Whether a tensor is compressed (§7)."""
        return self.compressed and name not in self.checksums

    def check(self, name: str, data: Any, chunk: int = 0) -> None:
        """Raises CorruptFrame unless bytes of an uncompressed tensor match their checksums, if there are any.

        data: from the beginning of a chunk of CHUNK_BYTES on, up to the end of another or of the tensor.
        """
        if not self.compressed:
            return
        found, expected = checksums(data), self.checksums[name][4 * chunk :]
        if expected.startswith(found):
            return
        wrong = next(i for i in range(0, len(found), 4) if found[i : i + 4] != expected[i : i + 4]) // 4
        raise CorruptFrame("checksum mismatch", file=self.path, tensor=name, chunk=chunk + wrong)

    def frame_header(self, name: str) -> frame.Header:
        """The header of a tensor's frame. Raises CorruptFrame if that is not the original tensor's (§7)."""
        entry = self.original.entries[name]
        try:
            header = frame.read_whole_header(self.lazy_data(name))
            if (header.dtype, tuple(header.shape), header.size) != (entry.dtype, entry.shape, entry.size):
                raise CorruptFrame(
                    f"the frame holds {header.dtype.name} of shape {list(header.shape)}, "
                    f"the original {entry.dtype.name} of shape {list(entry.shape)}"
                )
        except NeuzipError as error:
            error.at(file=self.path, tensor=name)
            raise
        return header

    def pieces(self, options: Options) -> Iterator[memoryview]:
        """The original file's bytes in order, in pieces of at most BATCH_BYTES but for the first, its header.

        A piece keeps its contents until the iterator has been advanced twice. The sha256 is the caller's to
        check. Raises CorruptFrame, TruncatedInput, UnsupportedFormat.
        """
        yield memoryview(self.original.prefix)
        buffers = self.buffers()
        for batch in batches(self.entries.values()):
            yield from self.decode(batch, buffers, options)

    def buffers(self) -> Iterator[memoryview]:
        """What decode writes to, without end: two in turn."""
        room = min(BATCH_BYTES, self.original.data_size)
        return itertools.cycle([np.empty(room, np.uint8).data for _ in range(2)])

    def decode(
        self, batch: Sequence[Entry], buffers: Iterator[memoryview], options: Options
    ) -> Iterator[memoryview]:
        """The original bytes of one of `batches`, in pieces. Lifetime and errors as for pieces."""
        name = batch[0].name
        if batch[0].size <= BATCH_BYTES:
            yield self._decode_batch(batch, next(buffers), options)
        elif self.is_frame(name):
            yield from self._decode_stream(name, buffers, options)
        else:
            data = self.lazy_data(name)
            if len(data) != batch[0].size:
                raise TruncatedInput("the file ends in it", file=self.path, tensor=name)
            for number, piece in enumerate(_slices(data)):
                self.check(name, piece, number * (BATCH_BYTES // CHUNK_BYTES))
                yield piece

    def _decode_batch(self, batch: Sequence[Entry], buffer: memoryview, options: Options) -> memoryview:
        base = batch[0].start
        out = buffer[: batch[-1].end - base]
        frames = []
        for entry in batch:
            target = out[entry.start - base : entry.end - base]
            if self.is_frame(entry.name):
                self.frame_header(entry.name)
                frames.append((entry.name, target))
            else:
                data = self.data(entry.name)
                if len(data) != len(target):  # of a file opened as a damaged one
                    raise TruncatedInput("the file ends in it", file=self.path, tensor=entry.name)
                target[:] = data
                self.check(entry.name, target)
        names = [name for name, _ in frames]
        try:
            frame.decode_many([(self.data(name), target) for name, target in frames], options, names)
        except NeuzipError as error:
            error.at(file=self.path)
            raise
        return out

    def _decode_stream(
        self, name: str, buffers: Iterator[memoryview], options: Options
    ) -> Iterator[memoryview]:
        header, data = self.frame_header(name), self.lazy_data(name)
        step = max(1, BATCH_BYTES // header.chunk_size)
        for first in range(0, header.chunk_count, step):
            count = min(step, header.chunk_count - first)
            start = first * header.chunk_size
            out = next(buffers)[: min(count * header.chunk_size, header.size - start)]
            chunks = data[header.offsets[first] : header.offsets[first + count]]
            try:
                frame.decode_chunks(header, chunks, first, count, out, options)
            except NeuzipError as error:
                error.at(file=self.path, tensor=name)
                raise
            yield out

    def forget(self, name: str | None = None) -> None:
        """Lets go of what has been read of a tensor, or of the whole file. See MappedFile.forget."""
        if self.file is None:
            return
        if name is None:
            self.file.forget()
        else:
            entry, start = self.header.entries[name], self.header.data_start
            self.file.forget(start + entry.start, start + entry.end)

    def close(self) -> None:
        """Closes the file, if the container has one of its own."""
        if self.file is not None:
            self.file.close()

    def __enter__(self) -> Container:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PlainFile(Protocol):
    """What write_container reads: a Container that is not compressed, or tensors in memory."""

    @property
    def path(self) -> Path | None:
        """The file, for errors."""

    @property
    def compressed(self) -> bool:
        """Whether this is a container already."""

    @property
    def original(self) -> SafetensorsHeader:
        """The file's header."""

    def lazy_data(self, name: str) -> Any:
        """A tensor's bytes, to be sliced."""

    def read(self, batch: Sequence[Entry]) -> memoryview:
        """The bytes of consecutive tensors."""

    def ready_frame(self, name: str) -> memoryview | None:
        """A tensor's frame, if there is one already."""

    def forget(self) -> None:
        """Called where what has been read will not soon be read again."""


def write_container(
    source: PlainFile, out: BinaryIO, options: Options, advance: Callable[[int], None] = lambda count: None
) -> str:
    """Writes the container of a plain safetensors file to a seekable, empty `out`; returns the file's sha256.

    advance: called with each number of original bytes done. Raises InvalidArgument if source is compressed
    already, UnsupportedFormat if the container's header would be too long for a safetensors file.
    """
    if source.compressed:
        raise InvalidArgument("already compressed", file=source.path)
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
        entries, sums = _write_data(source, out, options, digest, advance)
        sha256 = digest.hexdigest()
    out.truncate()
    text = format_header(complete_metadata(metadata, sha256, sums), entries, length)
    out.seek(0)
    out.write(LENGTH.pack(length) + text)
    return sha256


def batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Consecutive entries of together at most BATCH_BYTES; a larger entry is alone in its batch."""
    batch: list[Entry] = []
    for entry in entries:
        if batch and entry.end - batch[0].start > BATCH_BYTES:
            yield batch
            batch = []
        batch.append(entry)
    if batch:
        yield batch


def _write_data(
    source: PlainFile, out: BinaryIO, options: Options, digest: Digest, advance: Callable[[int], None]
) -> tuple[list[Entry], bytes]:
    """Writes frames and tensors from out's position on; returns the container's entries, and the checksums of
    those that are no frames."""
    entries: list[Entry] = []
    sums: list[bytes] = []
    position = 0
    for batch in batches(source.original.entries.values()):
        if batch[0].size > BATCH_BYTES and _may_be_frame(batch[0]):
            written = [_write_stream(source, batch[0], out, options, digest, sums, advance)]
        else:
            with paused_collector():
                written = _write_batch(source, batch, out, options, digest, sums)
            advance(batch[-1].end - batch[0].start)
        for entry, size in zip(batch, written, strict=True):
            dtype, shape = (entry.dtype, entry.shape) if size == entry.size else (_U8, (size,))
            entries.append(Entry(entry.name, dtype, shape, position, position + size))
            position += size
    return entries, b"".join(sums)


def _write_batch(
    source: PlainFile,
    batch: list[Entry],
    out: BinaryIO,
    options: Options,
    digest: Digest,
    sums: list[bytes],
) -> list[int]:
    """Writes a batch of whole tensors; returns the bytes each was given, and adds to the checksums."""
    data = source.read(batch)
    digest.update([data])
    base = batch[0].start
    tensors = [data[entry.start - base : entry.end - base] for entry in batch]
    ready = [source.ready_frame(entry.name) for entry in batch]
    encode = [r is None and _may_be_frame(entry) for r, entry in zip(ready, batch, strict=True)]
    items = [(d, e.dtype, e.shape) for d, e, needed in zip(tensors, batch, encode, strict=True) if needed]
    frames = iter(frame.encode_many(items, options))
    sizes = []
    for tensor, held, needed in zip(tensors, ready, encode, strict=True):
        coded = next(frames) if needed else held or tensor
        smaller = coded if len(coded) < len(tensor) else tensor
        if smaller is tensor:
            sums.append(checksums(tensor))
        out.write(smaller)
        sizes.append(len(smaller))
    return sizes


def _write_stream(
    source: PlainFile,
    entry: Entry,
    out: BinaryIO,
    options: Options,
    digest: Digest,
    sums: list[bytes],
    advance: Callable[[int], None],
) -> int:
    """Writes one tensor of more than a batch; returns the bytes it was given, and adds to the checksums."""
    data = source.lazy_data(entry.name)
    ready = source.ready_frame(entry.name)
    if ready is not None and len(ready) < entry.size:
        for piece in _slices(data):
            digest.update([piece])
            advance(len(piece))
        return out.write(ready)
    plan = plan_pieces(_slices(data, _PLAN_BYTES), entry.dtype.layout, entry.size, options, source.forget)
    encoder = frame.Encoder(data, entry.dtype, entry.shape, options, plan)
    start = out.tell()
    out.seek(start + encoder.header_size)
    for original, coded in itertools.zip_longest(_slices(data), encoder.batches(BATCH_BYTES)):
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
            sums.append(checksums(piece))
            out.write(piece)
        return entry.size
    out.write(encoder.header())
    out.seek(end)
    return end - start


def _may_be_frame(entry: Entry) -> bool:
    return entry.size >= _LEAST_FRAME and len(entry.shape) <= _FRAME_DIMENSIONS


def _slices(data: Any, size: int | None = None) -> Iterator[memoryview]:
    step = size or BATCH_BYTES
    return (data[start : start + step] for start in range(0, len(data), step))


def _header_bound(original: SafetensorsHeader, metadata: dict[str, str]) -> int:
    """Bytes that suffice for the container's header: every frame is smaller than its tensor, every offset at
    most the original's. A multiple of 8, so that frames are aligned where the tensors before them are."""
    entries = original.entries.values()
    longer = checksums_bound(entries)
    longer += sum(max(0, _frame_digits(entry) - _plain_digits(entry)) for entry in entries)
    return -(-(len(format_header(metadata, entries)) + longer) // 8) * 8


def _frame_digits(entry: Entry) -> int:
    """Characters of a frame's dtype and shape in a header, where the frame has one byte less than its tensor."""
    return len(_U8.name) + len(str(entry.size))


def _plain_digits(entry: Entry) -> int:
    """Characters of a tensor's dtype and shape."""
    return len(entry.dtype.name) + sum(len(str(extent)) + 1 for extent in entry.shape) - bool(entry.shape)


def _uncompressed(header: SafetensorsHeader, original: SafetensorsHeader) -> list[Entry]:
    """The tensors that are as in the original. Refuses a container whose others are not one frame each (§7)."""
    if header.entries.keys() != original.entries.keys():
        names = sorted(header.entries.keys() ^ original.entries.keys())
        raise CorruptFrame("not in both the container's and the original's header", tensor=names[0])
    kept = []
    for name, theirs in original.entries.items():
        ours = header.entries[name]
        if (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape):
            kept.append(theirs)
        elif ours.dtype != _U8 or len(ours.shape) != 1:
            raise CorruptFrame(
                f"{ours.dtype.name} of shape {list(ours.shape)[:33]} is neither the original nor a frame",
                tensor=name,
            )
    return kept
