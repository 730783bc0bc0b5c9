"""Whole models: their weights to compressed parameters and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import nn

from neuzip._system import trim_heap
from neuzip.errors import InvalidArgument, NeuzipError
from neuzip.nn.linear import CompressedLinear
from neuzip.nn.nvcomp import NvcompTensor
from neuzip.nn.tensor import CompressedTensor
from neuzip.nn.weight import PIECE_BYTES

Model = TypeVar("Model", bound=nn.Module)

MIN_SIZE = 4096
"""Elements below which a parameter stays dense: its frame's header would outweigh the gain."""


@dataclass(frozen=True)
class Selection:
    """Which parameters are compressed, and how.

    include, exclude: shell patterns (``*.mlp.*``) of parameter names; ``include=None`` means all. min_size:
    elements.
    level: of compression. piece_bytes: dense bytes above which a weight is used in pieces. coder: "neuzip" or
    "nvcomp". Raises InvalidArgument.
    """

    include: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    min_size: int = MIN_SIZE
    level: str = "default"
    piece_bytes: int = PIECE_BYTES
    coder: str = "neuzip"

    def __post_init__(self) -> None:
        if self.coder not in ("neuzip", "nvcomp"):
            raise InvalidArgument(f"coder is 'neuzip' or 'nvcomp', not {self.coder!r}")

    def takes(self, name: str, parameter: torch.Tensor) -> bool:
        """Whether a parameter is to be compressed."""
        if not parameter.is_floating_point() or parameter.numel() < self.min_size or parameter.dim() < 1:
            return False
        included = self.include is None or any(fnmatchcase(name, pattern) for pattern in self.include)
        return included and not any(fnmatchcase(name, pattern) for pattern in self.exclude)

    def compress(self, dense: torch.Tensor) -> nn.Parameter:
        """A compressed parameter with a dense one's value, ``requires_grad`` and attributes."""
        kind = NvcompTensor if self.coder == "nvcomp" else CompressedTensor
        held = kind.compress(dense, self.level, self.piece_bytes)
        packed = nn.Parameter(held, requires_grad=dense.requires_grad)
        _carry_attributes(dense, packed)
        packed.grad = dense.grad
        return packed


def _carry_attributes(old: torch.Tensor, new: torch.Tensor) -> None:
    for name, value in vars(old).items():
        if name != "weight":
            setattr(new, name, value)


@dataclass(frozen=True)
class Place:
    """Where a parameter hangs: ``module._parameters[local]``, ``name`` from the model's root."""

    module: nn.Module
    local: str
    name: str


def parameter_places(model: nn.Module) -> list[list[Place]]:
    """The places of every parameter of a model; a tied one has several. Holds no parameter alive."""
    places: dict[int, list[Place]] = {}
    for prefix, module in model.named_modules():
        for local, parameter in module._parameters.items():
            if parameter is not None:
                name = f"{prefix}.{local}" if prefix else local
                places.setdefault(id(parameter), []).append(Place(module, local, name))
    return list(places.values())


def parameter_at(places: Sequence[Place]) -> nn.Parameter:
    """The parameter that hangs at the places."""
    parameter = places[0].module._parameters[places[0].local]
    assert parameter is not None
    return parameter


def put(places: Sequence[Place], parameter: nn.Parameter) -> None:
    """Hangs a parameter at all its places; linear layers take the class that fits it."""
    compressed = isinstance(parameter, CompressedTensor)
    if isinstance(parameter, CompressedTensor):
        parameter.weight.name = places[0].name
    for place in places:
        place.module._parameters[place.local] = parameter
        if place.local == "weight" and type(place.module) is (nn.Linear if compressed else CompressedLinear):
            place.module.__class__ = CompressedLinear if compressed else nn.Linear


def compress_model(
    model: Model,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    min_size: int = MIN_SIZE,
    level: str = "default",
    piece_bytes: int = PIECE_BYTES,
    coder: str = "neuzip",
) -> Model:
    """Compresses a model's float parameters in place, and returns the model.

    It computes, trains and saves as before, to the bit, with one weight at a time dense. Tied parameters
    stay tied; ``nn.Linear`` modules become :class:`~neuzip.nn.CompressedLinear`.

    include, exclude: shell patterns of parameter names, such as ``"*.lm_head.*"``. min_size: elements below
    which a parameter is left alone. level: ``"default"`` or ``"max"``. piece_bytes: dense bytes above which
    a weight is decompressed in pieces. coder: ``"nvcomp"`` codes the exponents of a model that lies on a GPU with
    nvCOMP's ANS instead; files have neuzip's frames all the same.

    Raises InvalidArgument for a parameter on the meta device (see ``load_model``).
    """
    return compress_selected(model, Selection(include, tuple(exclude), min_size, level, piece_bytes, coder))


def compress_selected(model: Model, selection: Selection) -> Model:
    """:func:`compress_model` with its options in one object."""

    def compressed(parameter: nn.Parameter) -> nn.Parameter | None:
        return None if isinstance(parameter, CompressedTensor) else selection.compress(parameter)

    return convert_selected(model, selection, compressed)


def convert_selected(
    model: Model, selection: Selection, convert: Callable[[nn.Parameter], nn.Parameter | None]
) -> Model:
    """Replaces the parameters that a selection takes, in place, and returns the model.

    convert: the parameter to come, or None to leave the old one. Raises InvalidArgument, before it changes anything,
    for a parameter on the meta device; errors of ``convert`` name the parameter.
    """
    groups = [
        places for places in parameter_places(model) if selection.takes(places[0].name, parameter_at(places))
    ]
    for places in groups:
        if parameter_at(places).is_meta:
            raise InvalidArgument("the parameter has no value yet (meta device)", tensor=places[0].name)
    for places in groups:
        try:
            converted = convert(parameter_at(places))
        except NeuzipError as error:
            raise error.at(tensor=places[0].name) from None
        if converted is not None:
            put(places, converted)
    trim_heap()
    return model


def offload_model(model: Model, device: str | torch.device = "cuda") -> Model:
    """Moves a model to a device, but for the bytes of its compressed parameters, in place; returns the model.

    Those stay in pinned host memory. Each is copied to the device when its layer runs, the next layer's ahead of time
    on a stream of its own, and decoded there: the bus carries two thirds of what it would, and the device holds two
    layers. Computing and training go on as before; ``model.to(device)`` ends it.

    Raises InvalidArgument for the CPU, and for a compressed parameter on the meta device.
    """
    target = torch.device(device)
    if target.type in ("cpu", "meta"):
        raise InvalidArgument(f"weights are offloaded from an accelerator, not from {target}")
    target = torch.empty(0, device=target).device  # with its index
    for places in parameter_places(model):
        parameter = parameter_at(places)
        if isinstance(parameter, CompressedTensor):
            held = parameter.weight.offloaded(target)
            kind: Any = (
                type(parameter) if isinstance(held, type(parameter).weight_class) else CompressedTensor
            )
            new = nn.Parameter(kind(held), requires_grad=parameter.requires_grad)
            _carry_attributes(parameter, new)
            new.grad = None if parameter.grad is None else parameter.grad.to(target)
            put(places, new)
    return model.to(target)


def rechunk_model(model: Model, *, chunk_log2: int = 12) -> Model:
    """Cuts every compressed parameter's frame into chunks of ``2^chunk_log2`` elements, in place; returns the model.

    A GPU decodes a layer with a warp for each chunk, so small chunks are what keeps it busy. Frames grow by about 1 %,
    values stay what they are, and files of the model have the smaller chunks too.

    chunk_log2: 10 … 16. Raises InvalidArgument.
    """
    for places in parameter_places(model):
        parameter = parameter_at(places)
        if isinstance(parameter, CompressedTensor) and parameter.weight.takes_frames:
            parameter.weight.rechunk(chunk_log2)
    return model


def decompress_model(model: Model) -> Model:
    """Makes every compressed parameter of a model an ordinary one again, in place, and returns the model."""
    for places in parameter_places(model):
        packed = parameter_at(places)
        if isinstance(packed, CompressedTensor):
            dense = nn.Parameter(packed.dense(), requires_grad=packed.requires_grad)
            _carry_attributes(packed, dense)
            dense.grad = packed.grad
            put(places, dense)
    return model
