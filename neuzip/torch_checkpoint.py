"""What torch.save wrote, built without unpickling: nothing that a file names is imported or called."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from neuzip._system import prefer_huge_pages
from neuzip.archive_source import open_source
from neuzip.codec import Options
from neuzip.errors import CorruptFrame, NeuzipError, UnsupportedFormat
from neuzip.files import FileBytes
from neuzip.kinds.magic import PICKLE, ZIP
from neuzip.kinds.part import Source
from neuzip.kinds.pickles import Call, Global, Mapping
from neuzip.kinds.torch_file import Storage, Tensor, TorchFile, as_tensor, read_torch, walk
from neuzip.manifest import is_archive

# Of dicts, lists and tuples in each other; a checkpoint has about five.
_DEPTH_LIMIT = 64
# Read at a time, and then let go of what the file was mapped to for it.
_BATCH_BYTES = 64 << 20
_PLAIN = (str, bytes, int, float, bool, type(None))


def is_torch_file(filename: str | os.PathLike[str]) -> bool:
    """Whether a file begins as one of torch.save, or as an archive, which may hold one."""
    try:
        with FileBytes(Path(filename)) as file:
            head = bytes(file.view[:9])
            # The first byte of a safetensors file, of its header's length, can be a pickle's.
            is_pickle = head.startswith(PICKLE) and head[8:] != b"{"
            return is_archive(file) or head.startswith(ZIP) or is_pickle
    except NeuzipError:
        return False  # the reader of safetensors files says what is wrong


def load_file(filename: str | os.PathLike[str], device: torch.device, options: Options) -> Any:
    """The object of a file. See neuzip.torch.load_file."""
    with open_source(Path(filename), options) as source:
        file = read_torch(source)
        if file is None:
            raise UnsupportedFormat("not a file of torch.save")
        return _Builder(_read_storages(source, file, device)).build(file.root, "", 0)


def _read_storages(source: Source, file: TorchFile, device: torch.device) -> dict[str, torch.Tensor]:
    """The bytes, uint8, of every storage that a tensor has, by key."""
    sizes: dict[str, int] = {}
    for name, value in walk(file.root):
        tensor = as_tensor(value) if isinstance(value, Call) else None
        if tensor is not None:
            sizes[tensor.storage.key] = _checked_size(file, tensor.storage, name)
    found = {key: torch.empty(size, dtype=torch.uint8) for key, size in sizes.items()}
    for data in found.values():
        prefer_huge_pages(data.data_ptr(), data.nbytes)
    batch: list[tuple[int, Any]] = []
    size = 0
    for key, data in found.items():
        for at in range(0, len(data), _BATCH_BYTES):
            part = data.numpy()[at : at + _BATCH_BYTES]
            batch.append((file.data[key][0] + at, part))
            size += len(part)
            if size >= _BATCH_BYTES:
                source.fill(batch)
                source.forget()
                batch, size = [], 0
    source.fill(batch)
    for key in found:  # one by one, so that host memory is let go as the device's is taken
        found[key] = found[key].to(device)
    return found


def _checked_size(file: TorchFile, storage: Storage, name: str) -> int:
    if storage.viewed:
        raise UnsupportedFormat("the storage is a view of another one", tensor=name)
    if storage.key not in file.data:
        raise CorruptFrame(f"its storage {storage.key!a} is not in the file", tensor=name)
    size = file.data[storage.key][1]
    if size != storage.size:
        raise CorruptFrame(f"its storage has {size} bytes, not {storage.size}", tensor=name)
    return size


class _Builder:
    """Turns inert objects of a pickle into those that a checkpoint of plain tensors has."""

    def __init__(self, storages: dict[str, torch.Tensor]) -> None:
        self._storages = storages
        self._built: dict[int, Any] = {}

    def build(self, value: Any, name: str, depth: int) -> Any:
        """name: the keys that lead to the value. What is met twice is built once."""
        if isinstance(value, _PLAIN):
            return value
        if id(value) not in self._built:
            if depth > _DEPTH_LIMIT:
                raise UnsupportedFormat(f"objects are nested more than {_DEPTH_LIMIT} deep", tensor=name)
            self._built[id(value)] = self._new(value, name, depth + 1)
        return self._built[id(value)]

    def _new(self, value: Any, name: str, depth: int) -> Any:
        if isinstance(value, Mapping):
            return self._fill({}, value, name, depth)
        if isinstance(value, list):
            return [self.build(item, f"{name}.{i}".lstrip("."), depth) for i, item in enumerate(value)]
        if isinstance(value, tuple):
            return tuple(self.build(item, name, depth) for item in value)
        if isinstance(value, Call):
            return self._call(value, name, depth)
        what = str(value)[:100] if isinstance(value, Global) else type(value).__name__
        raise UnsupportedFormat(f"{what} is no plain value", tensor=name)

    def _fill(self, target: dict[Any, Any], items: Mapping, name: str, depth: int) -> dict[Any, Any]:
        for key, item in items:
            if not isinstance(key, _PLAIN):
                raise UnsupportedFormat("a key is no plain value", tensor=name)
            target[key] = self.build(item, f"{name}.{key!s:.1024}".lstrip("."), depth)
        return target

    def _call(self, call: Call, name: str, depth: int) -> Any:
        if (tensor := as_tensor(call)) is not None:
            return self._tensor(tensor, name)
        function, arguments = call.name, call.arguments
        if function == "collections.OrderedDict" and arguments == ():
            return self._ordered(call, name, depth)
        if (
            function == "torch._utils._rebuild_parameter"
            and isinstance(arguments, tuple)
            and len(arguments) == 3
        ):
            data = self.build(arguments[0], name, depth)
            if isinstance(data, torch.Tensor) and isinstance(arguments[1], bool) and _is_empty(arguments[2]):
                return _described(name, torch.nn.Parameter, data, arguments[1])
        raise UnsupportedFormat(
            f"{function[:100] or 'a call'} makes no plain tensor or collection", tensor=name
        )

    def _ordered(self, call: Call, name: str, depth: int) -> Any:
        found = self._fill(OrderedDict(), call.items or Mapping(), name, depth)
        if call.state is not None:
            state = self.build(call.state, name, depth)
            # Module.state_dict puts the versions of modules there; load_state_dict reads them.
            if not isinstance(state, dict) or state.keys() != {"_metadata"}:
                raise UnsupportedFormat("a dict has attributes", tensor=name)
            found._metadata = state["_metadata"]  # type: ignore[attr-defined]
        return found

    def _tensor(self, tensor: Tensor, name: str) -> torch.Tensor:
        storage, steps = self._storages[tensor.storage.key], zip(tensor.shape, tensor.strides, strict=True)
        if not all(map(_is_empty, tensor.extras)):
            raise UnsupportedFormat("the tensor has hooks or is a lazy view", tensor=name)
        dtype = getattr(torch, tensor.dtype.torch or "", None)
        if dtype is None:
            raise UnsupportedFormat(
                f"torch {torch.__version__} has no dtype for {tensor.dtype.name}", tensor=name
            )
        count = storage.numel() // dtype.itemsize
        last = tensor.offset + sum((extent - 1) * stride for extent, stride in steps)
        if math.prod(tensor.shape) and not last < count:
            raise CorruptFrame(f"the tensor reaches beyond its storage of {count} elements", tensor=name)
        typed = _described(name, storage.view, dtype)
        made: torch.Tensor = _described(name, typed.as_strided, tensor.shape, tensor.strides, tensor.offset)
        return _described(name, made.requires_grad_, True) if tensor.requires_grad else made


def _is_empty(value: Any) -> bool:
    """Whether this is no metadata, or a dict without items: what a plain tensor has for hooks."""
    if isinstance(value, Call):
        return value.name == "collections.OrderedDict" and not value.items and value.arguments == ()
    return value is None or (isinstance(value, Mapping) and not value)


def _described(name: str, work: Any, *arguments: Any) -> Any:
    """work(*arguments), with what torch refuses as a CorruptFrame."""
    try:
        return work(*arguments)
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise CorruptFrame(f"torch refuses the tensor: {error}", tensor=name) from error
