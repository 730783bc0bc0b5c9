"""Arrays of numpy to and from frames and files, with safetensors.numpy's functions.

ml_dtypes has the floats that numpy lacks. Its 4-bit floats have a byte each; two share one in a frame.
"""

from __future__ import annotations

import os
from typing import Any

import ml_dtypes
import numpy as np

from neuzip import frame as frames
from neuzip import reader, writer
from neuzip.codec import Options
from neuzip.errors import InvalidArgument
from neuzip.layouts import DTYPES, DType

__all__ = ["compress", "decompress", "load", "load_file", "save", "save_file"]

Array = np.ndarray[Any, Any]


def _numpy_dtype(name: str) -> np.dtype[Any]:
    found: np.dtype[Any] = np.dtype(getattr(np, name, None) or getattr(ml_dtypes, name))
    return found


_NATIVE = {row.name: _numpy_dtype(row.numpy) for row in DTYPES.values() if row.numpy}
_DTYPES = {native: DTYPES[name] for name, native in _NATIVE.items()}


def load_file(
    filename: str | os.PathLike[str],
    device: str = "cpu",
    *,
    backend: str | None = None,
    threads: int | None = None,
) -> dict[str, Array]:
    """Read all arrays of a safetensors file, compressed or plain, in the order of their data.

    Arguments, memory and errors are those of safe_open; device can only be "cpu".
    """
    with reader.safe_open(filename, "np", device, backend=backend, threads=threads) as file:
        return file.get_tensors()


def save_file(
    tensor_dict: dict[str, Array],
    filename: str | os.PathLike[str],
    metadata: dict[str, str] | None = None,
    *,
    level: str = "default",
    threads: int | None = None,
) -> None:
    """Write arrays as a compressed safetensors file (spec §7), replacing filename when it is complete.

    Decompressed, it is the file that safetensors.numpy.save_file writes for the same arrays, put in C order.

    Raises InvalidArgument for what is no dict of arrays with dtypes of safetensors, TypeError for names or
    metadata that are no str, StorageError if the file cannot be written.
    """
    writer.save_file(_sources(tensor_dict), filename, metadata, Options(level=level, threads=threads))


def load(data: bytes, *, threads: int | None = None) -> dict[str, Array]:
    """Read all arrays of a safetensors file, compressed or plain, held in memory. Errors as for load_file."""
    return reader.read_buffer(data, "np", Options(threads=threads))


def save(
    tensor_dict: dict[str, Array],
    metadata: dict[str, str] | None = None,
    *,
    level: str = "default",
    threads: int | None = None,
) -> bytes:
    """The bytes that save_file would write. Errors likewise."""
    return writer.save(_sources(tensor_dict), metadata, Options(level=level, threads=threads))


def compress(tensor: Array, level: str = "default", threads: int | None = None) -> bytes:
    """One array, of any strides and byte order, as a frame (§5). InvalidArgument for an unknown dtype."""
    source = _source("", tensor)
    return frames.encode(source.read(), source.dtype, source.shape, Options(level=level, threads=threads))


def decompress(frame: Any, out: Array | None = None, threads: int | None = None) -> Array:
    """The array of a frame.

    frame: anything with the buffer protocol, such as the uint8 array that stock safetensors reads out of a
    compressed file. out: a C-contiguous, writable array of the frame's dtype and shape to decode into; it is
    returned.

    Raises CorruptFrame, TruncatedInput, UnsupportedFormat; InvalidArgument if out does not fit.
    """
    dtype, shape = frames.read_type(frame)
    array = blank(dtype, shape)
    if out is not None:
        _check_out(out, dtype, shape)
        array = out if dtype.bits >= 8 else array
    frames.decode(frame, memory(array), Options(threads=threads))
    result = finish(array, dtype, shape)
    if out is None or result is out:
        return result
    np.copyto(out, result)
    return out


def _check_out(out: Any, dtype: DType, shape: tuple[int, ...]) -> None:
    if not isinstance(out, np.ndarray) or out.dtype != _NATIVE[dtype.name] or out.shape != shape:
        found = f"{out.dtype} {list(out.shape)}" if isinstance(out, np.ndarray) else f"{type(out)}"
        raise InvalidArgument(f"out is {found}, but the frame holds {_NATIVE[dtype.name]} {list(shape)}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise InvalidArgument("out must be a C-contiguous, writable array")


def _sources(tensors: dict[str, Array]) -> list[writer.Source]:
    if not isinstance(tensors, dict):
        raise InvalidArgument(f"expected a dict of [str, np.ndarray] but received {type(tensors)}")
    return [_source(name, array) for name, array in tensors.items()]


def _source(name: str, array: Any) -> writer.Source:
    if not isinstance(array, (np.ndarray, np.generic)):
        raise InvalidArgument(f"expected a np.ndarray but received {type(array)}", tensor=name)
    dtype = _DTYPES.get(array.dtype) or _DTYPES.get(array.dtype.newbyteorder("<"))
    if dtype is None:
        raise InvalidArgument(f"dtype {array.dtype} cannot be stored", tensor=name)
    if dtype.bits < 8 and array.size * dtype.bits % 8:
        raise InvalidArgument(f"{array.size} elements of {dtype.bits} bits do not fill bytes", tensor=name)
    return writer.Source(name, dtype, array.shape, lambda: _dense(array, dtype))


def _dense(array: Array | np.generic, dtype: DType) -> Array:
    """The array's bytes, u8, as a file has them: its own memory if that is C-contiguous and little endian."""
    native = array.dtype if array.dtype in _DTYPES else array.dtype.newbyteorder("<")
    dense = np.asarray(array, dtype=native, order="C")
    memory = dense.reshape(-1).view(np.uint8)
    if dtype.bits >= 8:
        return memory
    return memory[0::2] & 15 | memory[1::2] << 4  # an even element is the low half of a byte


# What the reader needs of a framework (framework.Framework).


def check_device(device: Any) -> str:
    """Raises InvalidArgument for all but "cpu": numpy has no other."""
    if str(device) != "cpu":
        raise InvalidArgument(f"device {device!r} is not supported for framework numpy")
    return "cpu"


def native_shape(dtype: DType, shape: tuple[int, ...]) -> tuple[int, ...]:
    """numpy's shape is that of the file."""
    return shape


def blank(dtype: DType, shape: tuple[int, ...], *, room: memoryview | None = None) -> Array:
    """Uninitialised memory of a shape, `room` if that is given; of packed bytes where elements are smaller."""
    if dtype.name not in _NATIVE:
        raise InvalidArgument(f"numpy has no dtype for {dtype.name}")
    if dtype.bits < 8:
        return np.ndarray(dtype.nbytes(shape) or 0, np.uint8, room)
    return np.ndarray(shape, _NATIVE[dtype.name], room)


def memory(array: Array) -> Array:
    """A C-contiguous array's bytes, u8, not copied."""
    return array.reshape(-1).view(np.uint8)


def finish(array: Array, dtype: DType, shape: tuple[int, ...]) -> Array:
    """The blank itself, or its unpacked elements."""
    if dtype.bits >= 8:
        return array
    unpacked = np.empty((array.size, 2), np.uint8)
    unpacked[:, 0] = array & 15
    unpacked[:, 1] = array >> 4
    return unpacked.reshape(-1).view(_NATIVE[dtype.name]).reshape(shape)


def probe(shape: tuple[int, ...], index: Any) -> None:
    """Raise what numpy raises for an index."""
    np.broadcast_to(np.empty((), np.uint8), shape)[index]


def select(array: Array, index: Any) -> Array:
    """array[index], contiguous, in memory of its own size. Never a scalar, as in safetensors."""
    selected: Any = array[index]
    if not isinstance(selected, np.ndarray):
        selected = array[(*index, ...) if isinstance(index, tuple) else (index, ...)]
    if selected.size != array.size or not selected.flags.c_contiguous:
        selected = selected.copy(order="C")
    result: Array = selected
    return result


def place(array: Array, device: str) -> Array:
    """The array itself."""
    return array


def read_on(container: Any, names: Any, device: str, options: Any) -> None:
    """None: arrays are the CPU's."""
    return None
