"""The container: a safetensors file of frames, and the original file inside it (§7)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from neuzip import _system, frame, kept
from neuzip.codec import Options
from neuzip.collector import paused_collector
from neuzip.container_metadata import (
    KEPT_VERSION,
    is_container,
    kept_checksums,
    kept_original,
    original_header,
    original_sha256,
    tensor_checksums,
    version,
)
from neuzip.errors import CorruptFrame, NeuzipError, TruncatedInput
from neuzip.files import FileBytes, lazy_part
from neuzip.frame_run import FramePlace, decode_run
from neuzip.layouts import DTYPES
from neuzip.safetensors_header import Entry, SafetensorsHeader, parse_file

__all__ = ["BATCH_BYTES", "Container", "Entry", "batches"]

# Original bytes coded at a time: enough to keep every thread busy, and what bounds the memory needed.
BATCH_BYTES = 16 << 20

_U8 = DTYPES["U8"]


@dataclass(frozen=True)
class Container:
    """A safetensors file, compressed or plain. A plain one is a container without frames. A context manager.

    header: of the file as it is. original: of the original file; the same object if the file is plain.
    sha256: of the original file; None if the file is plain. checksums: those of the uncompressed tensors of a
    compressed file (§7); the others are frames, which have their own.
    """

    path: Path | None
    header: SafetensorsHeader
    original: SafetensorsHeader
    sha256: str | None
    view: Any
    file: FileBytes | None = None
    checksums: kept.Checksums | None = None

    @classmethod
    def open(cls, path: str | Path, *, damaged: bool = False, backend: str | None = None) -> Container:
        """Opens a file and checks its headers, not its frames.

        backend: see FileBytes. damaged: open also a file that ends too early; to read what is missing raises
        TruncatedInput.

        Raises CorruptFrame, TruncatedInput, UnsupportedFormat, StorageError; InvalidArgument for a directory.
        """
        path = Path(path)
        file = FileBytes(path, backend)
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
                sums: kept.Checksums
                if version(header.metadata) == KEPT_VERSION:
                    original = kept_original(header)
                    sums = kept_checksums(header)
                else:
                    original = original_header(header.metadata)
                    sums = tensor_checksums(header.metadata, _uncompressed(header, original))
                return cls(path, header, original, original_sha256(header.metadata), data, checksums=sums)
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

    def encode_there(self, name: str) -> memoryview | None:
        """The frame of a tensor that lies elsewhere than on the host: none does."""
        return None

    def is_frame(self, name: str) -> bool:
        """Whether a tensor is compressed (§7)."""
        return self.checksums is not None and name not in self.checksums

    def kept_bytes(self, name: str, start: int, stop: int, *, verify: bool = True) -> memoryview:
        """Bytes start … stop − 1 of an uncompressed tensor. verify: compared with checksums, if there are any.

        Raises CorruptFrame; TruncatedInput for a file that was opened as a damaged one.
        """
        entry = self.header.entries[name]
        return self._kept([entry], entry.start + start, entry.start + stop, verify)

    def kept_run(self, run: Sequence[Entry], *, verify: bool = True) -> memoryview:
        """As kept_bytes, all of uncompressed tensors one behind the other: entries of this file's header."""
        return self._kept(run, run[0].start, run[-1].end, verify)

    def _kept(self, entries: Sequence[Entry], start: int, end: int, verify: bool) -> memoryview:
        try:
            if self.checksums is None or not verify:
                return self._data(entries[0], start, end)
            pieces = self.checksums.pieces(entries, start, end)
            data = self._data(entries[0], pieces.start, pieces.end)
            kept.check(self.checksums, entries, pieces, data)
            return data[start - pieces.start : end - pieces.start]
        except NeuzipError as error:
            error.at(file=self.path)
            raise

    def _data(self, entry: Entry, start: int, end: int) -> memoryview:
        """Bytes start … end − 1 of this file's data."""
        base = self.header.data_start
        data: memoryview = self.view[base + start : base + end]
        if len(data) != end - start:
            raise TruncatedInput("the file ends in it", tensor=entry.name)
        return data

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
        return itertools.cycle([_system.room(room) for _ in range(2)])

    def decode(
        self, batch: Sequence[Entry], buffers: Iterator[memoryview], options: Options
    ) -> Iterator[memoryview]:
        """The original bytes of one of `batches`, in pieces. Lifetime and errors as for pieces."""
        name = batch[0].name
        if batch[0].size <= BATCH_BYTES:
            out = next(buffers)[: batch[-1].end - batch[0].start]
            self.decode_run(batch, out, options, [entry.start - batch[0].start for entry in batch])
            yield out
        elif self.is_frame(name):
            yield from self._decode_stream(name, buffers, options)
        else:
            for start in range(0, batch[0].size, BATCH_BYTES):
                yield self.kept_bytes(name, start, min(start + BATCH_BYTES, batch[0].size))

    def decode_run(
        self, run: Sequence[Entry], out: memoryview, options: Options, starts: Sequence[int]
    ) -> None:
        """Writes the original bytes of tensors that lie one behind the other to `out`, each to its start there.

        run: entries of the original. starts: ascending, so that no tensor reaches the next; more than tensors do no
        harm. Raises CorruptFrame, TruncatedInput, UnsupportedFormat.
        """
        here = [self.header.entries[entry.name] for entry in run]
        first = here[0].start
        places: list[FramePlace] = []
        framed: list[tuple[Entry, int]] = []
        kept_here: list[tuple[Entry, int]] = []
        for entry, held, start in zip(run, here, starts, strict=False):
            if self.is_frame(entry.name):
                place = FramePlace(held.start - first, held.size, start, entry.size, entry.dtype, entry.shape)
                places.append(place)
                framed.append((entry, start))
            else:
                kept_here.append((held, start))
        self._copy_kept(kept_here, out, options)
        if places:
            left = decode_run(self._data(here[0], first, here[-1].end), out, places, options)
            self._decode_others([framed[number] for number in left], out, options)

    def _copy_kept(self, places: Sequence[tuple[Entry, int]], out: memoryview, options: Options) -> None:
        """Copies uncompressed tensors, entries of this file's header, each to its start in `out`."""
        starts = iter([start for _, start in places])
        for run in kept.runs((entry for entry, _ in places), BATCH_BYTES):
            data, base = self.kept_run(run, verify=options.verify), run[0].start
            targets = list(itertools.islice(starts, len(run)))
            if targets[-1] - targets[0] == run[-1].start - base:  # no gaps: they lie there as they do here
                out[targets[0] : targets[0] + len(data)] = data
                continue
            for (_, _, _, start, end), target in zip(run, targets, strict=True):
                out[target : target + end - start] = data[start - base : end - base]

    def _decode_others(self, places: Sequence[tuple[Entry, int]], out: memoryview, options: Options) -> None:
        """Decodes frames of coding zstd, and says of others what is wrong."""
        for entry, _ in places:
            self.frame_header(entry.name)
        items = [(self.data(entry.name), out[start : start + entry.size]) for entry, start in places]
        try:
            frame.decode_many(items, options, [entry.name for entry, _ in places])
        except NeuzipError as error:
            error.at(file=self.path)
            raise

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
        """Lets go of what has been read of a tensor, or of the whole file. See FileBytes.forget."""
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


def _uncompressed(header: SafetensorsHeader, original: SafetensorsHeader) -> list[Entry]:
    """The tensors that are as in the original. Refuses a container whose others are not one frame each (§7)."""
    if header.entries.keys() != original.entries.keys():
        names = sorted(header.entries.keys() ^ original.entries.keys())
        raise CorruptFrame("not in both the container's and the original's header", tensor=names[0])
    if list(header.entries) != list(original.entries):
        raise CorruptFrame("the tensors are not in the order of the original's data")
    plain = []
    for name, theirs in original.entries.items():
        ours = header.entries[name]
        if ours.dtype is theirs.dtype and ours.shape == theirs.shape:
            plain.append(theirs)
        elif ours.dtype != _U8 or len(ours.shape) != 1:
            raise CorruptFrame(
                f"{ours.dtype.name} of shape {list(ours.shape)[:33]} is neither the original nor a frame",
                tensor=name,
            )
    return plain
