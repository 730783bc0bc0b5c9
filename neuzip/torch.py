"""Tensors of PyTorch to and from frames and files, with safetensors.torch's functions.

Tensors cross as bytes, through views of their own memory: no dtype is converted, no NaN is touched, and the
caller's tensors are never changed.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from neuzip import _system, reader, torch_checkpoint, writer
from neuzip import frame as frames
from neuzip.codec import Options
from neuzip.container import Container
from neuzip.errors import InvalidArgument, NeuzipError
from neuzip.layouts import DTYPES, DType

__all__ = ["SharedMemory", "compress", "decompress", "load", "load_file", "save", "save_file"]

_NAMED = {row.torch: row for row in DTYPES.values() if row.torch is not None}
_DTYPES: dict[torch.dtype, DType] = {
    getattr(torch, name): row for name, row in _NAMED.items() if hasattr(torch, name)
}
# Integers stand in for floats where elements move: every operation takes them, and they have no NaN to lose.
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Framed:
    """A tensor that lies compressed in memory (neuzip.nn.CompressedTensor), as far as saving needs to know."""

    def whole_frame(self) -> torch.Tensor | None:
        """Its frame, uint8 (frame_size,), if it is no partial view of a tensor."""
        raise NotImplementedError

    def dense(self) -> torch.Tensor:
        """Its value as an ordinary tensor."""
        raise NotImplementedError


class SharedMemory(InvalidArgument, RuntimeError):
    """Tensors of one state dict overlap in memory, which a safetensors file cannot express."""


def load_file(
    filename: str | os.PathLike[str],
    device: str | int | torch.device = "cpu",
    *,
    backend: str | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Read all tensors of a safetensors file, or the object of a file of torch.save, each compressed or plain.

    The tensors of a safetensors file come by name, in the order of their data. What torch.save wrote is read
    without unpickling: dicts, lists and tuples, nested at will, of tensors, parameters, numbers and text; views
    share their storage. UnsupportedFormat for anything else in it. Other arguments, memory and errors are those
    of safe_open.
    """
    if torch_checkpoint.is_torch_file(filename):
        options = Options(threads=threads)
        loaded: dict[str, Any] = torch_checkpoint.load_file(filename, check_device(device), options)
        return loaded
    with reader.safe_open(filename, "pt", device, backend=backend, threads=threads) as file:
        return file.get_tensors()


def save_file(
    tensors: dict[str, torch.Tensor],
    filename: str | os.PathLike[str],
    metadata: dict[str, str] | None = None,
    *,
    level: str = "default",
    threads: int | None = None,
) -> None:
    """Write tensors as a compressed safetensors file (spec §7), replacing filename when it is complete.

    Decompressed, it is the file that safetensors.torch.save_file writes for the same tensors and metadata. A CUDA
    device compresses its tensors itself (``neuzip doctor`` says whether); the file is the same, and its sha256 (§7)
    is of the original bytes, which are copied to the host for it.

    Raises InvalidArgument (a ValueError) for what is no dict of dense, contiguous tensors with dtypes of
    safetensors, SharedMemory (a RuntimeError) for tensors that overlap, TypeError for names or metadata that
    are no str, StorageError if the file cannot be written.
    """
    options = Options(level=level, threads=threads)
    writer.save_file(_sources(tensors, options), filename, metadata, options)


def load(data: bytes, *, threads: int | None = None) -> dict[str, torch.Tensor]:
    """Read all tensors of a safetensors file, compressed or plain, held in memory. Errors as of load_file."""
    return reader.read_buffer(data, "pt", Options(threads=threads))


def save(
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, str] | None = None,
    *,
    level: str = "default",
    threads: int | None = None,
) -> bytes:
    """The bytes that save_file would write. Errors likewise."""
    options = Options(level=level, threads=threads)
    return writer.save(_sources(tensors, options), metadata, options)


def compress(tensor: torch.Tensor, level: str = "default", threads: int | None = None) -> bytes:
    """One tensor, of any strides and on any device, as a frame (spec §5).

    A CUDA device compresses its tensors itself (``neuzip doctor`` says whether); the bytes are the same.

    Raises InvalidArgument for a sparse or quantised tensor, or one without memory.
    """
    options = Options(level=level, threads=threads)
    source = _source("", tensor, options)
    if works_on(tensor.device):
        from neuzip.cuda.encoding import encode

        there = _dense_there(tensor)
        return memory(encode(there, source.dtype, source.shape, options).cpu()).tobytes()
    return frames.encode(source.read(), source.dtype, source.shape, options)


def decompress(
    frame: Any, out: torch.Tensor | None = None, threads: int | None = None, device: Any = None
) -> torch.Tensor:
    """The tensor of a frame.

    frame: anything with the buffer protocol, or a uint8 tensor, such as stock safetensors reads out of a
    compressed file. out: a contiguous tensor of the frame's dtype and shape to decode into; it is returned.
    device: where the tensor goes if there is no ``out``, by default where the frame lies. Compressed bytes
    cross the bus to a CUDA device and are decoded there (``neuzip doctor`` says whether).

    Raises CorruptFrame, TruncatedInput, UnsupportedFormat; InvalidArgument if out does not fit.
    """
    target = _target(frame, out, device)
    if isinstance(frame, torch.Tensor) and frame.device == target and works_on(target):
        return _decompress_there(frame, out)
    if isinstance(frame, torch.Tensor):
        frame = memory(_dense(frame))
    dtype, file_shape = frames.read_type(frame)
    shape = native_shape(dtype, file_shape)
    if out is None:
        tensor = blank(dtype, shape, target if works_on(target) else "cpu")
    else:
        _check_out(out, dtype, shape)
        tensor = out.detach()
    options = Options(threads=threads)
    if tensor.device.type == "cpu":
        frames.decode(frame, memory(tensor), options)
        return out if out is not None else tensor.to(target)
    if works_on(tensor.device):
        from neuzip.cuda import loading

        item = loading.Item("", np.frombuffer(frame, np.uint8), frames.read_header(frame), tensor)
        loading.load([item], options)
    else:
        host = blank(dtype, shape)
        frames.decode(frame, memory(host), options)
        tensor.copy_(host)
    return tensor if out is None else out


def _decompress_there(frame: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    """The tensor of a frame that lies on the device which decodes it."""
    from neuzip.cuda.placed import placed
    from neuzip.cuda.rows import decode_rows

    header = placed(frame).header
    shape = native_shape(header.dtype, header.shape)
    tensor = blank(header.dtype, shape, frame.device) if out is None else out.detach()
    _check_out(tensor, header.dtype, shape)
    decode_rows(frame, tensor.view(-1)).check()
    return tensor if out is None else out


def _target(frame: Any, out: torch.Tensor | None, device: Any) -> torch.device:
    if device is not None:
        return check_device(device)
    source = out if out is not None else frame
    return source.device if isinstance(source, torch.Tensor) else torch.device("cpu")


def works_on(device: torch.device) -> bool:
    """Whether a device codes the tensors that lie on it: a GPU that neuzip.cuda trusts. The CPU does it otherwise."""
    if device.type == "cpu":
        return False
    from neuzip.cuda.trust import is_trusted

    return is_trusted(device)


def _check_out(out: torch.Tensor, dtype: DType, shape: tuple[int, ...]) -> None:
    if _DTYPES.get(out.dtype) is not dtype or tuple(out.shape) != shape:
        raise InvalidArgument(
            f"out is {out.dtype} {list(out.shape)}, but the frame holds torch.{dtype.torch} {list(shape)}"
        )
    if out.layout != torch.strided or not out.is_contiguous() or out.is_meta:
        raise InvalidArgument("out must be a contiguous tensor that has memory")
    if out.is_conj() or out.is_neg():
        raise InvalidArgument("out must not be a lazily conjugated or negated view")


def _sources(tensors: dict[str, torch.Tensor], options: Options) -> list[writer.Source]:
    if not isinstance(tensors, dict):
        raise InvalidArgument(f"expected a dict of [str, torch.Tensor] but received {type(tensors)}")
    sources = [_source(name, tensor, options) for name, tensor in tensors.items()]
    _check_shared(tensors)
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise InvalidArgument(
                "the tensor is not contiguous; save `.contiguous()` of it, "
                "or the tensor that it is a part of",
                tensor=name,
            )
    return sources


def _source(name: str, tensor: Any, options: Options) -> writer.Source:
    if not isinstance(tensor, torch.Tensor):
        raise InvalidArgument(f"expected a torch.Tensor but received {type(tensor)}", tensor=name)
    if tensor.layout != torch.strided:
        raise InvalidArgument(f"a tensor of layout {tensor.layout} must be made dense first", tensor=name)
    if tensor.is_meta:
        raise InvalidArgument("the tensor is on the meta device and has no data", tensor=name)
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise InvalidArgument(f"dtype {tensor.dtype} cannot be stored", tensor=name)
    shape = tuple(tensor.shape)
    if dtype.bits < 8:  # two elements a byte: torch's shape counts bytes, the file's counts elements
        if not shape:
            raise InvalidArgument(f"a {tensor.dtype} tensor needs a dimension", tensor=name)
        shape = (*shape[:-1], shape[-1] * 8 // dtype.bits)
    frame = tensor.whole_frame() if isinstance(tensor, Framed) else None
    held = None if frame is None else memoryview(memory(_dense(frame)))
    return writer.Source(
        name,
        dtype,
        shape,
        lambda: memory(_dense(tensor)),
        held,
        lambda: _encode_there(tensor, dtype, shape, options),
    )


def _encode_there(
    tensor: torch.Tensor, dtype: DType, shape: tuple[int, ...], options: Options
) -> memoryview | None:
    """The frame of a tensor that its device encodes."""
    if not works_on(tensor.device):
        return None
    from neuzip.cuda.encoding import encode_for_file

    frame = encode_for_file(_dense_there(tensor), dtype, shape, options)
    return None if frame is None else memoryview(memory(frame.cpu()))


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where its memory is its value, else a copy of which that is true."""
    return _dense_there(tensor).cpu()


def _dense_there(tensor: torch.Tensor) -> torch.Tensor:
    """:func:`_dense`, on the tensor's device."""
    if isinstance(tensor, Framed):
        tensor = tensor.dense()
    return tensor.detach().resolve_conj().resolve_neg().contiguous()


def _check_shared(tensors: dict[str, torch.Tensor]) -> None:
    storages: dict[tuple[torch.device, int], list[tuple[int, int, str]]] = {}
    for name, given in tensors.items():
        # Two names for one compressed tensor share its frame; partial views of it are written dense.
        tensor = given.whole_frame() if isinstance(given, Framed) else given
        if tensor is not None and tensor.numel():
            storage = (tensor.device, tensor.untyped_storage().data_ptr())
            steps = zip(tensor.shape, tensor.stride(), strict=True)
            last = sum((extent - 1) * stride for extent, stride in steps)
            start = tensor.data_ptr()
            storages.setdefault(storage, []).append((start, start + (last + 1) * tensor.itemsize, name))
    for areas in storages.values():
        areas.sort()
        for (_, stop, name), (start, _, other) in itertools.pairwise(areas):
            if start < stop:
                raise SharedMemory(
                    f"it shares memory with {name!r}; save one of them, or a `.clone()`", tensor=other
                )


# What the reader needs of a framework (framework.Framework).


def dtype_of(dtype: torch.dtype) -> DType:
    """The row of floats.toml of a torch dtype. Raises InvalidArgument if there is none."""
    row = _DTYPES.get(dtype)
    if row is None:
        raise InvalidArgument(f"dtype {dtype} cannot be stored")
    return row


def check_device(device: Any) -> torch.device:
    """The device as torch's. Raises InvalidArgument if torch does not know it."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidArgument(f"device {device!r} is invalid: {error}") from error


def native_shape(dtype: DType, shape: tuple[int, ...]) -> tuple[int, ...]:
    """torch's shape: that of the file, but two 4-bit elements count as one."""
    if dtype.bits >= 8:
        return shape
    per_byte = 8 // dtype.bits
    if not shape or shape[-1] % per_byte:
        raise InvalidArgument(
            f"{dtype.name} of shape {list(shape)} cannot be packed along its last dimension"
        )
    return (*shape[:-1], shape[-1] // per_byte)


def blank(
    dtype: DType, shape: tuple[int, ...], device: Any = "cpu", *, room: memoryview | None = None
) -> torch.Tensor:
    """Uninitialised memory of a native shape: `room`, on the CPU, if that is given."""
    if dtype.torch is None or not hasattr(torch, dtype.torch):
        raise InvalidArgument(f"torch {torch.__version__} has no dtype for {dtype.name}")
    native = getattr(torch, dtype.torch)
    if room:  # frombuffer takes no empty one
        return torch.frombuffer(room, dtype=native).view(shape)
    tensor = torch.empty(shape, dtype=native, device=device)
    if tensor.device.type == "cpu":
        _system.prefer_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


def memory(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A contiguous CPU tensor's bytes, u8, not copied."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


def finish(tensor: torch.Tensor, dtype: DType, shape: tuple[int, ...]) -> torch.Tensor:
    """The blank itself: it was filled in place."""
    return tensor


def probe(shape: tuple[int, ...], index: Any) -> None:
    """Raise what torch raises for an index."""
    torch.empty((), dtype=torch.uint8).expand(shape)[index]


def select(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    """tensor[index], contiguous, in memory of its own size."""
    integers = tensor.view(_INTEGERS[tensor.itemsize])[index]
    if integers.numel() != tensor.numel() or not integers.is_contiguous():
        integers = integers.clone(memory_format=torch.contiguous_format)
    return integers.view(tensor.dtype)


def place(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device."""
    return tensor.to(device=device)


def read_on(
    container: Container, names: Sequence[str], device: torch.device, options: Options
) -> dict[str, torch.Tensor] | None:
    """Tensors of a file decoded on a device itself; None where that is the CPU's work."""
    if not works_on(device):
        return None
    from neuzip.cuda import loading

    tensors = {}
    for name in names:
        entry = container.entries[name]
        try:
            if container.is_frame(name):
                container.frame_header(name)  # before memory is taken: it bounds the size (§6)
            tensors[name] = blank(entry.dtype, native_shape(entry.dtype, entry.shape), device)
        except NeuzipError as error:
            raise error.at(file=container.path, tensor=name) from None
    loading.load_container(container, tensors, options)
    return tensors
