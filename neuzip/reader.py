"""safe_open: single tensors, and rows of tensors, out of plain and compressed safetensors files (spec §7)."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from neuzip import _system, frame, kept
from neuzip.codec import Options
from neuzip.collector import paused_collector
from neuzip.container import BATCH_BYTES, Container, Entry
from neuzip.errors import InvalidArgument, NeuzipError, StorageError
from neuzip.framework import Framework, import_framework
from neuzip.window import Window, is_basic

# As safetensors spells them, and None for what suits the file system.
_BACKENDS = {"mmap": "mmap", "pread": "read", None: None}

# Original bytes decoded at a time: enough for any number of threads, and all that is held beside the tensors.
_BATCH_BYTES = 64 << 20
# Tensors below this, one behind the other, share memory: a little of it for each would be many small pages, and the
# system takes longer to clear these than decoding into them does. From here on, a tensor's own has large pages.
_SHARING = _system.HUGE
# Bytes that are shared. So much is kept by the last tensor that is alive.
_SHARED_BYTES = 16 << 20

Bytes = npt.NDArray[np.uint8]


class MissingFile(StorageError, FileNotFoundError):
    """There is no such file. safetensors raises FileNotFoundError."""


def read_bytes(container: Container, entry: Entry, start: int, out: Bytes, options: Options) -> None:
    """Read a tensor's original bytes start … start + out.size, decoding only the chunks they lie in.

    Raises CorruptFrame, TruncatedInput, UnsupportedFormat.
    """
    if not container.is_frame(entry.name):
        for at in range(0, out.size, BATCH_BYTES):
            part = out[at : at + BATCH_BYTES]
            part[:] = container.kept_bytes(entry.name, start + at, start + at + part.size)
        return
    header, data = container.frame_header(entry.name), container.lazy_data(entry.name)
    try:
        _read_chunks(header, data, start, out, options)
    except NeuzipError as error:
        error.at(file=container.path, tensor=entry.name)
        raise


def _read_chunks(header: frame.Header, data: Any, start: int, out: Bytes, options: Options) -> None:
    size, stop = header.chunk_size, start + out.size
    if start == stop:
        return
    first, last = start // size, (stop - 1) // size
    # Chunks wanted whole decode straight into out; the partial ones at either end through a scratch chunk.
    for chunk in {first, last}:
        chunk_start, chunk_stop = chunk * size, min((chunk + 1) * size, header.size)
        if start <= chunk_start and chunk_stop <= stop:
            continue
        scratch = np.empty(chunk_stop - chunk_start, np.uint8)
        _decode_run(header, data, chunk, 1, scratch, options)
        low, high = max(start, chunk_start), min(stop, chunk_stop)
        out[low - start : high - start] = scratch[low - chunk_start : high - chunk_start]
    first += start > first * size
    last -= stop < min((last + 1) * size, header.size)
    if first <= last:
        whole = out[first * size - start : min((last + 1) * size, header.size) - start]
        _decode_run(header, data, first, last - first + 1, whole, options)


def _decode_run(
    header: frame.Header, data: Any, first: int, count: int, out: Bytes, options: Options
) -> None:
    chunks = data[header.offsets[first] : header.offsets[first + count]]
    frame.decode_chunks(header, chunks, first, count, out, options)


def read_tensors(
    container: Container, names: Sequence[str], framework: Framework, options: Options
) -> dict[str, Any]:
    """Decode tensors, many frames in one call over the threads. On the CPU; in the order of names.

    Raises CorruptFrame, TruncatedInput, UnsupportedFormat; InvalidArgument for a dtype the framework lacks.
    """
    tensors: dict[str, Any] = dict.fromkeys(names)
    with paused_collector():
        entries = [container.entries[name] for name in names]
        for run in kept.runs((entry for entry in entries if entry.size < _SHARING), _SHARED_BYTES):
            _read_shared(container, run, framework, options, tensors)
        large = [entry for entry in entries if entry.size >= _SHARING]
        shapes = [_native_shape(container, entry, framework) for entry in large]
        frames: list[tuple[str, Bytes]] = []
        for entry, shape in zip(large, shapes, strict=True):
            tensors[entry.name] = blank = _blank(container, entry, framework, shape)
            if container.is_frame(entry.name):
                frames.append((entry.name, framework.memory(blank)))
            else:
                read_bytes(container, entry, 0, framework.memory(blank), options)
                container.forget()
        _decode_frames(container, frames, options)
        for (name, dtype, _, _, _), shape in zip(large, shapes, strict=True):
            tensors[name] = framework.finish(tensors[name], dtype, shape)
    return tensors


def _read_shared(
    container: Container,
    run: Sequence[Entry],
    framework: Framework,
    options: Options,
    tensors: dict[str, Any],
) -> None:
    """Reads tensors that lie one behind the other to memory that they share."""
    starts = _system.places([entry.size for entry in run])
    room = _system.room(starts[-1])
    blanks = []
    try:
        for entry, start in zip(run, starts, strict=False):
            shape = framework.native_shape(entry.dtype, entry.shape)
            blank = framework.blank(entry.dtype, shape, room=room[start : start + entry.size])
            blanks.append((blank, shape))
    except NeuzipError as error:
        raise error.at(file=container.path, tensor=entry.name) from None
    container.decode_run(run, room, options, starts)
    for (name, dtype, _, _, _), (blank, shape) in zip(run, blanks, strict=True):
        tensors[name] = framework.finish(blank, dtype, shape)
    container.forget()


def _decode_frames(container: Container, frames: Sequence[tuple[str, Bytes]], options: Options) -> None:
    """Decodes frames into their tensors' memory, _BATCH_BYTES of that at a time, and lets go of each batch."""
    batch: list[tuple[str, Bytes]] = []
    size = 0
    for name, memory in frames:
        if memory.size > _BATCH_BYTES:
            _decode_large(container, name, memory, options)
            continue
        batch.append((name, memory))
        size += memory.size
        if size > _BATCH_BYTES:
            _decode_batch(container, batch, options)
            batch, size = [], 0
    _decode_batch(container, batch, options)


def _decode_batch(container: Container, batch: Sequence[tuple[str, Bytes]], options: Options) -> None:
    items = [(container.data(name), memory) for name, memory in batch]
    try:
        frame.decode_many(items, options, [name for name, _ in batch])
    except NeuzipError as error:
        error.at(file=container.path)
        raise
    container.forget()


def _decode_large(container: Container, name: str, memory: Bytes, options: Options) -> None:
    header, data = container.frame_header(name), container.lazy_data(name)
    step = max(1, _BATCH_BYTES // header.chunk_size)
    try:
        for first in range(0, header.chunk_count, step):
            count = min(step, header.chunk_count - first)
            part = memory[first * header.chunk_size : (first + count) * header.chunk_size]
            _decode_run(header, data, first, count, part, options)
            container.forget()
    except NeuzipError as error:
        error.at(file=container.path, tensor=name)
        raise


def read_buffer(data: Any, framework: str, options: Options) -> dict[str, Any]:
    """Every tensor of a safetensors file, compressed or plain, that is held in memory as bytes."""
    container = Container.parse(memoryview(data).cast("B"))
    return read_tensors(container, list(container.entries), import_framework(framework), options)


def _native_shape(container: Container, entry: Entry, framework: Framework) -> tuple[int, ...]:
    try:
        return framework.native_shape(entry.dtype, entry.shape)
    except NeuzipError as error:
        raise error.at(file=container.path, tensor=entry.name) from None


def _blank(container: Container, entry: Entry, framework: Framework, shape: tuple[int, ...]) -> Any:
    """Memory for a tensor, or a part of it, of a native shape."""
    if container.is_frame(entry.name):
        container.frame_header(entry.name)  # before memory is taken: it bounds the size (§6)
    try:
        return framework.blank(entry.dtype, shape)
    except NeuzipError as error:
        raise error.at(file=container.path, tensor=entry.name) from None


def _open(filename: str | os.PathLike[str], backend: str | None) -> Container:
    try:
        return Container.open(Path(filename), backend=backend)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise MissingFile(error.message, file=filename) from error
        raise


class TensorSlice:
    """A tensor in a file that has not been read. Indexing it reads the rows that the index touches."""

    def __init__(self, reader: safe_open, entry: Entry) -> None:
        self._reader = reader
        self._entry = entry

    def get_shape(self) -> list[int]:
        """The shape in the file, which counts elements: 4-bit floats have twice torch's last dimension."""
        return list(self._entry.shape)

    def get_dtype(self) -> str:
        """The dtype's safetensors name, as "BF16"."""
        return self._entry.dtype.name

    def __getitem__(self, index: Any) -> Any:
        """tensor[index], with the framework's own meaning of an index, and its errors.

        Ints and slices of the leading dimensions decode only the chunks they touch. Raises CorruptFrame,
        TruncatedInput, UnsupportedFormat; InvalidArgument if the file is closed.
        """
        return self._reader._read_slice(self._entry, index)


class safe_open:
    """Opens a safetensors file, compressed or plain, and reads tensors as they are asked for.

    filename: the file. framework: "pt" for torch tensors, "np" for numpy arrays (ml_dtypes has the floats
    numpy lacks). device: where tensors go, as torch spells it; a CUDA device decodes them itself where
    neuzip.cuda works (``neuzip doctor``), slices excepted. backend: "mmap",
    "pread" for plain reads, or None for plain reads on network file systems and else "mmap". threads: for
    decoding; None is one a processor.

    Tensors are writable and outlive the file. Those below 4 MiB that are read together share allocations of up to
    16 MiB, each of which is freed with its last tensor; torch cannot resize the storage of such a tensor.

    Raises MissingFile (a FileNotFoundError), StorageError; CorruptFrame, TruncatedInput or UnsupportedFormat
    if the file is no safetensors file; InvalidArgument for a framework, device or backend that there is not.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        framework: str = "pt",
        device: Any = "cpu",
        *,
        backend: str | None = None,
        threads: int | None = None,
    ) -> None:
        if backend not in _BACKENDS:
            raise InvalidArgument(f"backend {backend!r} is invalid: it must be 'mmap' or 'pread'")
        self._options = Options(threads=threads)
        self._framework = import_framework(framework)
        self._device = self._framework.check_device(device)
        self._container: Container | None = _open(filename, _BACKENDS[backend])

    def __enter__(self) -> safe_open:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    def keys(self) -> list[str]:
        """Names of the tensors, sorted."""
        return sorted(self._opened().entries)

    def offset_keys(self) -> list[str]:
        """Names of the tensors in the order of their data in the original file."""
        return list(self._opened().entries)

    def metadata(self) -> dict[str, str] | None:
        """The original file's free text, None if it has none. What neuzip adds is not in it."""
        return self._opened().metadata or None

    def get_tensor(self, name: str) -> Any:
        """Read one tensor. InvalidArgument if there is no such name; else errors as for a slice."""
        return self._read([self._entry(name).name])[name]

    def get_tensors(self) -> dict[str, Any]:
        """Read every tensor, by name, in the order of offset_keys()."""
        return self._read(self.offset_keys())

    def _read(self, names: Sequence[str]) -> dict[str, Any]:
        container = self._opened()
        there = self._framework.read_on(container, names, self._device, self._options)
        if there is not None:
            return there
        tensors = read_tensors(container, names, self._framework, self._options)
        for name in tensors:  # one by one, so that host memory is let go as the device's is taken
            tensors[name] = self._framework.place(tensors[name], self._device)
        return tensors

    def get_slice(self, name: str) -> TensorSlice:
        """A tensor to be indexed before it is read. InvalidArgument if there is no such name."""
        return TensorSlice(self, self._entry(name))

    def _opened(self) -> Container:
        if self._container is None:
            raise InvalidArgument("the file is closed")
        return self._container

    def _entry(self, name: str) -> Entry:
        container = self._opened()
        if name not in container.entries:
            raise InvalidArgument(f"the file does not contain tensor {name!r}", file=container.path)
        return container.entries[name]

    def _read_slice(self, entry: Entry, index: Any) -> Any:
        container, framework = self._opened(), self._framework
        shape = _native_shape(container, entry, framework)
        if is_basic(index):  # a mask or an array of rows is checked by the selection itself
            framework.probe(shape, index)
        count, size = math.prod(shape), entry.size
        # Elements that are not whole bytes (4 bits in numpy) cannot be cut anywhere: all are read.
        whole = count == 0 or size % count != 0
        window = Window(0, shape, index) if whole else Window.of(shape, index)
        blank = _blank(container, entry, framework, window.shape)
        memory = framework.memory(blank)
        if memory.size:
            start = 0 if whole else window.start * (size // count)
            read_bytes(container, entry, start, memory, self._options)
        tensor = framework.finish(blank, entry.dtype, window.shape)
        return framework.place(framework.select(tensor, window.index), self._device)
