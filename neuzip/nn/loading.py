"""Checkpoints straight into compressed models: a compressed tensor's frame is taken as it lies in the file."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neuzip.codec import Options
from neuzip.container import Container
from neuzip.errors import InvalidArgument, StorageError
from neuzip.framework import import_framework
from neuzip.nn.model import Model, Place, Selection, parameter_at, parameter_places, put
from neuzip.nn.tensor import CompressedTensor
from neuzip.nn.weight import Weight, own
from neuzip.reader import read_tensors
from neuzip.torch import native_shape


def load_model(
    model: Model, path: str | os.PathLike[str], *, strict: bool = True, device: Any = "cpu", **selection: Any
) -> Model:
    """Loads a safetensors checkpoint into a model, compressed, and returns the model.

    The model may be on the meta device (``with torch.device("meta"): …``); one tensor is dense at a time,
    and those that are compressed in the file never. Parameters take the dtype they have in the file.

    model: an ``nn.Module``, or a transformers configuration, whose causal language model is then made.
    path: a file, plain or compressed, or a directory of one or several of them with an index. strict: every
    parameter and persistent buffer must be in the file, and the other way round; tied ones once. selection:
    options of :func:`compress_model` for tensors that are plain in the file.

    Raises InvalidArgument for names or shapes that do not fit, and for buffers that stay without a value;
    StorageError, CorruptFrame and the like for the files.
    """
    if not isinstance(model, nn.Module):
        return _from_config(model, path, selection)
    chosen = Selection(**selection)
    files = checkpoint_files(Path(path))
    places = {place.name: group for group in parameter_places(model) for place in group}
    buffers = dict(model.named_buffers())
    seen: set[str] = set()
    for file in files:
        with Container.open(file) as container:
            for name in container.original.entries:
                if name in places:
                    _put_parameter(places[name], _parameter(container, name, chosen, device))
                    seen.update(place.name for place in places[name])
                elif name in buffers:
                    _put_buffer(model, name, _dense(container, name).to(device))
                    seen.add(name)
                elif strict:
                    raise InvalidArgument("the model has no such parameter", file=file, tensor=name)
                container.forget(name)  # else the file would lie in memory beside the model
    _check_complete(model, seen, strict)
    return model


def checkpoint_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint: the file itself, or those a directory's index names, or its
    only one.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise StorageError("no such file or directory", file=path)
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InvalidArgument(f"not an index of shards: {error}", file=index) from None
        if any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise InvalidArgument("a shard's name is no plain file name", file=index)
        return [path / name for name in names]
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise InvalidArgument(f"{len(files)} safetensors files and no index", file=path)
    return files


def compressed_weight(container: Container, name: str, **options: Any) -> Weight | None:
    """A tensor's frame out of a file, not decoded, as a weight; None if it is not compressed there."""
    if not container.is_frame(name):
        return None
    header = container.frame_header(name)
    dtype = getattr(torch, header.dtype.torch or "", None)
    if dtype is None or not dtype.is_floating_point:
        return None
    level = "max" if header.level else "default"
    return Weight(
        own(container.data(name)), native_shape(header.dtype, header.shape), dtype, level, **options
    )


def _parameter(container: Container, name: str, selection: Selection, device: Any) -> nn.Parameter:
    weight = compressed_weight(container, name, piece_bytes=selection.piece_bytes)
    if weight is not None and selection.takes(name, CompressedTensor(weight)):
        return nn.Parameter(CompressedTensor(weight if device == "cpu" else weight.copy(device)))
    dense = _dense(container, name).to(device)
    if selection.takes(name, dense):
        return selection.compress(dense.requires_grad_())
    return nn.Parameter(dense, requires_grad=dense.is_floating_point())


def _dense(container: Container, name: str) -> torch.Tensor:
    tensor: torch.Tensor = read_tensors(container, [name], import_framework("pt"), Options())[name]
    return tensor


def _put_parameter(places: list[Place], new: nn.Parameter) -> None:
    old = parameter_at(places)
    if new.shape != old.shape:
        raise InvalidArgument(
            f"the file has shape {tuple(new.shape)}, the model {tuple(old.shape)}", tensor=places[0].name
        )
    new.requires_grad_(old.requires_grad)
    put(places, new)


def _put_buffer(model: nn.Module, name: str, value: torch.Tensor) -> None:
    prefix, _, local = name.rpartition(".")
    model.get_submodule(prefix)._buffers[local] = value


def _check_complete(model: nn.Module, seen: set[str], strict: bool) -> None:
    if strict:
        for name in model.state_dict():
            if name not in seen:
                raise InvalidArgument("the checkpoint has no such tensor", tensor=name)
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_meta:
            raise InvalidArgument(
                "it has no value after loading; make the model with its buffers on the CPU", tensor=name
            )


def _from_config(config: Any, path: str | os.PathLike[str], selection: dict[str, Any]) -> Any:
    # By name: integrations stand above this package.
    return import_module("neuzip.integrations.transformers").load_pretrained(config, path, selection)
