"""Steps of transformers' weight loading: what is read of a checkpoint, plain or compressed, to parameters.

transformers reads a checkpoint one parameter at a time and sends it through ConversionOps. A compressed file
is a valid safetensors file (spec §7): what arrives of a compressed tensor is its frame, uint8 (frame_size,).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.quantizers_utils import should_convert_module

from neuzip import frame as frames
from neuzip.errors import NeuzipError
from neuzip.nn.model import Selection
from neuzip.nn.tensor import CompressedTensor
from neuzip.nn.weight import PIECE_BYTES, Weight, copied
from neuzip.torch import decompress, memory, native_shape


@dataclass(frozen=True)
class ModuleSelection(Selection):
    """A selection that also skips modules, named as in transformers' ``modules_to_not_convert``."""

    skipped_modules: Sequence[str] = ()

    def takes(self, name: str, parameter: torch.Tensor) -> bool:
        """Whether a parameter is to be compressed."""
        kept = should_convert_module(name, list(self.skipped_modules))
        return bool(kept) and super().takes(name, parameter)


def is_frame(tensor: Any) -> bool:
    """Whether a tensor that safetensors read is a frame (§5): no float tensor arrives as bytes otherwise."""
    if not isinstance(tensor, torch.Tensor) or tensor.dtype is not torch.uint8 or tensor.dim() != 1:
        return False
    return bytes(tensor[: len(frames.MAGIC)].tolist()) == frames.MAGIC


def framed_weight(frame: torch.Tensor, piece_bytes: int = PIECE_BYTES) -> Weight | None:
    """The weight of a frame, uint8 (frame_size,), which is copied and not decoded; None if it has no floats.

    Raises CorruptFrame, TruncatedInput, UnsupportedFormat.
    """
    header = frames.read_header(memory(frame.cpu()), whole=True)
    dtype = getattr(torch, header.dtype.torch or "", None)
    if dtype is None or not dtype.is_floating_point:
        return None
    level = "max" if header.level else "default"
    return Weight(copied(frame), native_shape(header.dtype, header.shape), dtype, level, piece_bytes)


def decoded(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor of a file, dense, on its device, in ``dtype`` if given."""
    if is_frame(tensor):
        tensor = decompress(tensor).to(tensor.device)
    return tensor if dtype is None else tensor.to(dtype)


class Step(ConversionOps):
    """A step of loading. dtype: what the model wants of a tensor that is a frame; others have it already."""

    dtype: torch.dtype | None = None

    @property
    def reverse_op(self) -> ConversionOps:
        return _Nothing()


class _Nothing(ConversionOps):
    """Saving undoes no compression: that is save_pretrained's own work."""

    def convert(self, input_dict: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        return input_dict


class Decode(Step):
    """Frames to dense tensors, ahead of a model's own conversions (experts that are stacked, say)."""

    def convert(self, input_dict: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        return {
            key: [decoded(t, self._wanted(t)) for t in _listed(value)] for key, value in input_dict.items()
        }

    def _wanted(self, tensor: torch.Tensor) -> torch.dtype | None:
        return self.dtype if is_frame(tensor) else None


class Pack(Step):
    """The last step of every tensor: to a compressed parameter, of a frame without decoding it, or dense."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection

    def convert(
        self,
        input_dict: dict[str, Any],
        *_: Any,
        full_layer_name: str = "",
        model: nn.Module | None = None,
        **__: Any,
    ) -> dict[str, Any]:
        assert model is not None
        packed: dict[str, Any] = {}
        for key, name in _full_names(list(input_dict), full_layer_name).items():
            # Taken out of the caller's dictionary: what is compressed need not stay.
            (tensor,) = _listed(input_dict.pop(key))
            try:
                packed[key] = [self._packed(tensor, name, model)]
            except NeuzipError as error:
                raise error.at(tensor=name) from None
        return packed

    def _packed(self, tensor: torch.Tensor, name: str, model: nn.Module) -> torch.Tensor:
        prefix, _, local = name.rpartition(".")
        target = model.get_submodule(prefix)._parameters.get(local)
        if target is None or not self.selection.takes(name, target):
            return decoded(tensor, self.dtype) if is_frame(tensor) else tensor
        weight = framed_weight(tensor, self.selection.piece_bytes) if is_frame(tensor) else None
        if weight is not None and self.dtype in (None, weight.dtype):
            return nn.Parameter(CompressedTensor(weight))
        dense = decoded(tensor, self.dtype) if is_frame(tensor) else tensor
        return self.selection.compress(dense.requires_grad_())


def conversions(
    transforms: Sequence[Any], model: nn.Module, selection: Selection
) -> Iterator[tuple[Any, Any]]:
    """A model's transforms of its checkpoint, each with the one to load by in its stead.

    After them, with None, come converters for the tensors that they leave alone.
    """
    for transform in transforms:
        if isinstance(transform, WeightConverter):
            steps = [Decode(), *transform.operations, Pack(selection)]
            sources, targets = transform._original_source_patterns, transform._original_target_patterns
            yield transform, transform.copy(list(sources), list(targets), operations=steps)
        else:
            yield transform, transform
    # A converter matches the end of a name; renaming it to itself leaves the name as it is.
    for local in sorted({name.rpartition(".")[2] for name in model.state_dict()}):
        yield None, WeightConverter(local, local, [Pack(selection)])


def unpack_frames(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A load_state_dict pre-hook: takes frames that stock safetensors read out of a compressed file."""
    for name in module.state_dict():
        value: Any = state_dict.get(prefix + name)
        if is_frame(value):
            weight = framed_weight(value)
            state_dict[prefix + name] = decoded(value) if weight is None else CompressedTensor(weight)


def _listed(value: Any) -> list[torch.Tensor]:
    return value if isinstance(value, list) else [value]


def _full_names(targets: list[str], full_layer_name: str) -> dict[str, str]:
    """Parameters' names: a step is told the ends of all of them, but the whole name of one only."""
    whole = full_layer_name.replace("*.", "0.")
    known = next((target for target in targets if target in whole), None)
    if known is None:
        return {target: target for target in targets}
    prefix, _, suffix = whole.partition(known)
    return {target: prefix + target + suffix for target in targets}
