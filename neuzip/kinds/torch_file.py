"""What torch.save writes, since PyTorch 1.6 a zip file and before that a row of pickles: objects and storages.

The layouts are those of torch/serialization.py. Nothing of a file is executed.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from neuzip.errors import CorruptFrame, TruncatedInput, UnsupportedFormat
from neuzip.kinds.magic import PICKLE, ZIP
from neuzip.kinds.part import Part, Source, plain_part
from neuzip.kinds.pickles import Call, Global, Machine, Mapping, Persistent
from neuzip.kinds.zip_directory import STORED, Member, read_members
from neuzip.layouts import DTYPES, DType

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_PICKLE_LIMIT = 1 << 28
_WINDOWS = (1 << 20, 1 << 24, _PICKLE_LIMIT)  # bytes to read a pickle of unknown length from
_COUNT = struct.Struct("<q")
_DEPTH_LIMIT = 1024  # of objects in each other
_NAME_LIMIT = 1024  # characters; what is nested deeper has the name of what it is in

_REBUILD = {
    f"torch._utils.{name}" for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
}
_STORAGES = {
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "ByteStorage": "U8",
    "CharStorage": "I8",
    "ShortStorage": "I16",
    "IntStorage": "I32",
    "LongStorage": "I64",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
    "ComplexDoubleStorage": "C128",
    "UntypedStorage": "U8",
}
_TORCH_DTYPES = {dtype.torch: dtype for dtype in DTYPES.values() if dtype.torch}


@dataclass(frozen=True)
class Storage:
    """A storage as a pickle names it. dtype: of its elements; U8 where it is untyped."""

    key: str
    dtype: DType
    count: int
    viewed: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * self.dtype.bits // 8


@dataclass(frozen=True)
class Tensor:
    """A tensor as a pickle describes it. offset, shape and strides count elements of dtype."""

    storage: Storage
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool
    extras: tuple[Any, ...]  # hooks and metadata


@dataclass(frozen=True)
class TorchFile:
    """A file of torch.save. root: the object, as kinds.pickles has it. data: (start, bytes) of storages by key."""

    root: Any
    data: dict[str, tuple[int, int]]

    def parts(self) -> list[Part]:
        """The storages, each with the dtype, and if it fills the storage the shape, of a tensor in it."""
        found: dict[str, Part] = {}
        for name, value in walk(self.root):
            tensor = as_tensor(value) if isinstance(value, Call) else None
            storage = tensor.storage if tensor else as_storage(value)
            if storage is None or storage.key not in self.data:
                continue
            start, size = self.data[storage.key]
            if tensor is not None:
                dtype, shape = tensor.dtype, tensor.shape
                if math.prod(shape) * dtype.bits != size * 8:
                    shape = (size * 8 // dtype.bits,)
            elif storage.key not in found:
                dtype, shape = storage.dtype, (storage.count,)
            else:
                continue
            part = plain_part(name, dtype, shape, start, size)
            # A tensor is met before the storage in it; of several tensors the first counts.
            if storage.key not in found and size % part.record_size == 0:
                found[storage.key] = part
        return list(found.values())


def read_torch(source: Source) -> TorchFile | None:
    """Reads a file of torch.save, or None if it is a file of another kind.

    Raises CorruptFrame, TruncatedInput, UnsupportedFormat.
    """
    head = bytes(source.read(0, min(len(ZIP), source.size)))
    if head.startswith(PICKLE):
        return _read_legacy(source)
    if head != ZIP:
        return None
    members = read_members(source)
    root = next((name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")), None)
    return None if root is None else _read_zip(source, members, root)


def read_parts(source: Source) -> list[Part] | None:
    """The tensors that read_torch finds. Errors likewise."""
    found = read_torch(source)
    return None if found is None else found.parts()


def _read_zip(source: Source, members: dict[str, Member], root: str) -> TorchFile:
    prefix = root.removesuffix("data.pkl")
    order = members.get(prefix + "byteorder")
    if order is not None and bytes(source.read(order.start, min(order.size, 16))) != b"little":
        raise UnsupportedFormat("the tensors are not little endian")
    pickle = members[root]
    if pickle.method != STORED or pickle.size > _PICKLE_LIMIT:
        raise UnsupportedFormat(f"{root} is compressed or has {pickle.size} bytes")
    data = {
        name.removeprefix(prefix + "data/"): (member.start, member.size)
        for name, member in members.items()
        if name.startswith(prefix + "data/") and member.method == STORED
    }
    return TorchFile(Machine(source.read(pickle.start, pickle.size)).run(), data)


def _read_legacy(source: Source) -> TorchFile | None:
    magic, position = _read_pickle(source, 0)
    if magic != _LEGACY_MAGIC:
        return None
    version, position = _read_pickle(source, position)
    if version != _LEGACY_VERSION:
        raise UnsupportedFormat(f"a PyTorch file of version {str(version)[:20]}")
    system, position = _read_pickle(source, position)
    if not isinstance(system, Mapping) or ("little_endian", True) not in system:
        raise UnsupportedFormat("the tensors are not little endian")
    root, position = _read_pickle(source, position)
    keys, position = _read_pickle(source, position)
    if not isinstance(keys, list):
        raise CorruptFrame("the file has no list of storages", offset=position)
    storages = {storage.key: storage for _, value in walk(root) if (storage := as_storage(value))}
    data: dict[str, tuple[int, int]] = {}
    for key in keys:
        if not isinstance(key, str) or key not in storages or key in data:
            raise CorruptFrame("the file lists a storage that no tensor has", offset=position)
        (count,) = _COUNT.unpack(source.read(position, _COUNT.size))
        size = count * storages[key].dtype.bits // 8
        position += _COUNT.size
        if not 0 <= size <= source.size - position:
            raise TruncatedInput(f"a storage of {count} elements is not in the file", offset=position)
        data[key] = position, size
        position += size
    return TorchFile(root, data)


def _read_pickle(source: Source, start: int) -> tuple[Any, int]:
    """A pickle's object, and the position after it."""
    left = source.size - start
    for window in _WINDOWS:
        machine = Machine(source.read(start, min(window, left)))
        try:
            return machine.run(), start + machine.position
        except TruncatedInput:
            if window >= left:
                raise
    raise UnsupportedFormat(f"a pickle of more than {_PICKLE_LIMIT} bytes", offset=start)


def walk(root: Any) -> Iterator[tuple[str, Any]]:
    """Every object within an object once, with a name made of the keys that lead to it, in order.

    What lies deeper than _DEPTH_LIMIT is left out. Names are made one at a time: hostile keys are long.
    """
    seen: set[int] = set()
    stack: list[Iterator[tuple[str, Any]]] = [iter([("", root)])]
    while stack:
        for name, value in stack[-1]:
            if _holds(value) and id(value) not in seen:
                seen.add(id(value))
                yield name, value
                if len(stack) < _DEPTH_LIMIT:
                    stack.append(_inner(name, value))
                    break
        else:
            stack.pop()


def _inner(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((_extend(name, key), item) for key, item in value if _holds(item))
    elif isinstance(value, list):
        yield from ((_extend(name, number), item) for number, item in enumerate(value) if _holds(item))
    elif isinstance(value, tuple):
        yield from ((name, item) for item in value)
    elif isinstance(value, Call):
        yield name, value.arguments
        yield name, value.items
        yield name, value.elements
        yield name, value.state


def _holds(value: Any) -> bool:
    """Whether a value may be or have a tensor."""
    return isinstance(value, (list, tuple, Call, Persistent))


def _extend(name: str, key: Any) -> str:
    if not isinstance(key, (str, int)) or len(name) + len(str(key)) > _NAME_LIMIT:
        return name
    return f"{name}.{key}" if name else str(key)


def as_storage(value: Any) -> Storage | None:
    """The storage that a persistent object stands for; None if it is another thing."""
    key = value.key if isinstance(value, Persistent) else None
    if not isinstance(key, tuple) or not 5 <= len(key) <= 6 or key[0] != "storage":
        return None
    _, kind, name, _, count = key[:5]
    dtype = _STORAGES.get(kind.name) if isinstance(kind, Global) and kind.module.startswith("torch") else None
    if dtype is None or not isinstance(name, str) or not _is_count(count):
        return None
    return Storage(name, DTYPES[dtype], count, len(key) == 6 and key[5] is not None)


def as_tensor(call: Call) -> Tensor | None:
    """The tensor that a call rebuilds; None if it makes another thing."""
    arguments = call.arguments
    if call.name not in _REBUILD or not isinstance(arguments, tuple) or len(arguments) < 4:
        return None
    storage = as_storage(arguments[0])
    offset, shape, strides = arguments[1:4]
    if storage is None or not _is_count(offset) or not _are_counts(shape) or not _are_counts(strides):
        return None
    dtype, extras = storage.dtype, arguments[5:]
    if call.name.endswith("_v3"):
        named = arguments[6] if len(arguments) > 6 else None
        if not isinstance(named, Global) or named.module != "torch" or named.name not in _TORCH_DTYPES:
            return None
        dtype = _TORCH_DTYPES[named.name]
        extras = (*arguments[5:6], *arguments[7:])
    if len(shape) != len(strides):
        return None
    requires_grad = len(arguments) > 4 and arguments[4] is True
    return Tensor(storage, dtype, offset, shape, strides, requires_grad, extras)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _are_counts(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_is_count, value))
