"""transformers: models that are compressed while they load, and generate, train and are saved compressed.

Importing this module, or touching ``neuzip.NeuzipConfig``, registers the quantization method ``neuzip``
through transformers' own ``register_quantization_config`` and ``register_quantizer``. Nothing is patched.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations.accelerate import load_offloaded_parameter
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from neuzip._system import trim_heap
from neuzip.container import Container
from neuzip.errors import InvalidArgument
from neuzip.integrations.conversion import ModuleSelection, Step, conversions, unpack_frames
from neuzip.nn.loading import checkpoint_files
from neuzip.nn.model import MIN_SIZE, decompress_model, parameter_at, parameter_places, put
from neuzip.nn.tensor import CompressedTensor
from neuzip.nn.weight import PIECE_BYTES
from neuzip.torch import save_file

METHOD = "neuzip"

_EXPECTED_RATIO = {2: 0.7, 4: 0.85}
"""Compressed size of trained weights by bytes an element, rounded up: what device maps are planned with."""

_INDEX_NAME = "model.safetensors.index.json"


@register_quantization_config(METHOD)
class NeuzipConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of ``from_pretrained`` that keeps a model's weights compressed, losslessly.

    include, exclude: shell patterns (``"*.mlp.*"``) of parameter names; ``include=None`` means all.
    modules_to_not_convert: modules to leave dense, as transformers' quantizers name them (``["lm_head"]``).
    min_size: elements below which a parameter stays dense. level: ``"default"`` or ``"max"``. piece_bytes:
    dense bytes above which a weight is decompressed in pieces.

    A checkpoint that is compressed names the method itself and needs none; transformers then takes the options of its
    config.json, not those given. ``load_model`` takes options for both.

    Raises InvalidArgument for another ``quant_method``.
    """

    def __init__(
        self,
        modules_to_not_convert: Sequence[str] | None = None,
        *,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        min_size: int = MIN_SIZE,
        level: str = "default",
        piece_bytes: int = PIECE_BYTES,
        quant_method: str = METHOD,
    ) -> None:
        if quant_method != METHOD:
            raise InvalidArgument(f"quant_method is {quant_method!r}, not {METHOD!r}")
        self.quant_method = METHOD  # type: ignore[assignment]
        self.modules_to_not_convert = None if modules_to_not_convert is None else list(modules_to_not_convert)
        self.include = None if include is None else list(include)
        self.exclude = list(exclude)
        self.min_size = min_size
        self.level = level
        self.piece_bytes = piece_bytes

    def selection(self) -> ModuleSelection:
        """Which parameters are compressed, and how."""
        return ModuleSelection(
            None if self.include is None else tuple(self.include),
            tuple(self.exclude),
            self.min_size,
            self.level,
            self.piece_bytes,
            skipped_modules=tuple(self.modules_to_not_convert or ()),
        )


@register_quantizer(METHOD)
class NeuzipQuantizer(HfQuantizer):
    """What transformers asks while it loads, trains and saves a compressed model.

    pre_quantized: whether the checkpoint is compressed itself. It then arrives as frames, which are read
    ahead; an ordinary one is read tensor by tensor, so that one weight at a time is dense.
    """

    requires_calibration = False

    def __init__(self, quantization_config: NeuzipConfig, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        self.selection = quantization_config.selection()
        self._conversions: list[tuple[Any, Any]] = []
        self._weights_apart = False

    @property
    def is_trainable(self) -> bool:
        """Whether adapters may be trained on the model."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Whether the weights themselves may be trained."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Whether torch.compile may be used."""
        return True

    def is_serializable(self) -> bool:
        """Whether the model can be saved."""
        return True

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """Raises InvalidArgument for weights offloaded to disk, which accelerate reads and writes dense."""
        if isinstance(device_map, dict) and "disk" in device_map.values():
            raise InvalidArgument('compressed weights cannot be offloaded to "disk"; offload them to "cpu"')

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype itself. Raises InvalidArgument for one that was guessed from frames."""
        if not dtype.is_floating_point:
            raise InvalidArgument(f"the dtype of a model cannot be {dtype}; pass from_pretrained its dtype")
        return dtype

    def adjust_max_memory(self, max_memory: dict[str, int | str]) -> dict[str, int | str]:
        """Leaves room for the weight that is being used."""
        return {
            device: int(size * 0.9) if isinstance(size, int) else size for device, size in max_memory.items()
        }

    def param_element_size(self, model: Any, param_name: str, param: torch.Tensor) -> float:
        """Bytes an element, for device maps."""
        size = float(param.element_size())
        taken = self.selection.takes(param_name, param)
        return size * _EXPECTED_RATIO.get(param.element_size(), 1.0) if taken else size

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """What a tensor of a compressed checkpoint is cast to when it is read; a frame's steps are told."""
        name = param.get_dtype() if hasattr(param, "get_dtype") else str(param.dtype)
        if name not in ("U8", "torch.uint8"):
            cast: torch.dtype | None = super().get_new_dtype(None, param, dtype)
            return cast
        for step in getattr(converter, "operations", ()):
            if isinstance(step, Step):
                step.dtype = dtype
        return None

    def update_weight_conversions(self, weight_conversions: Sequence[Any], model: Any) -> list[Any]:
        """The model's transforms of its checkpoint, with the steps that decode and compress around them."""
        self._conversions = list(conversions(weight_conversions, model, self.selection))
        return [ours for _, ours in self._conversions]

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> None:
        self.pre_quantized = any(_is_compressed(Path(file)) for file in checkpoint_files or ())

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        for plain, ours in self._conversions:
            if plain is not None and ours.was_used():
                plain._was_used = True
        # Saving and PEFT undo the model's own transforms.
        model._weight_conversions = [
            plain for plain, _ in self._conversions if plain is not None and plain.was_used()
        ]
        self._conversions = []
        for places in parameter_places(model):
            parameter = parameter_at(places)
            if isinstance(parameter, CompressedTensor):
                put(places, parameter)
            elif not parameter.is_meta and self.selection.takes(places[0].name, parameter):
                put(places, self.selection.compress(parameter))
        trim_heap()
        _attach(model)
        return model

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        vars(model).pop("save_pretrained", None)
        return decompress_model(model)

    def get_state_dict_and_metadata(
        self, model: Any
    ) -> tuple[dict[str, torch.Tensor] | None, dict[str, str]]:
        """Nothing while save_pretrained writes the weights itself, else dense ones, which load as well."""
        if self._weights_apart:
            return {}, {}
        return _dense_state(model.state_dict()), {}


def adopt(model: Any, config: NeuzipConfig | None = None) -> Any:
    """Tells transformers of a model of its own that ``neuzip.nn.compress_model`` compressed, and returns it.

    It is then saved compressed, by itself and by Trainer. ``from_pretrained`` with a NeuzipConfig does this.
    Raises InvalidArgument for a model that another quantization method holds.
    """
    held = getattr(model, "hf_quantizer", None)
    if held is not None and not isinstance(held, NeuzipQuantizer):
        raise InvalidArgument(f"the model is quantized with {held.quantization_config.quant_method}")
    if held is None:
        model.config.quantization_config = config or NeuzipConfig()
        model.hf_quantizer = NeuzipQuantizer(model.config.quantization_config, pre_quantized=True)
        model.is_quantized, model.quantization_method = True, METHOD
        _attach(model)
    return model


def save_pretrained(
    model: Any,
    save_directory: str | os.PathLike[str],
    is_main_process: bool = True,
    state_dict: dict[str, torch.Tensor] | None = None,
    push_to_hub: bool = False,
    max_shard_size: int | str = "50GB",
    variant: str | None = None,
    token: Any = None,
    save_peft_format: bool = True,
    save_original_format: bool = False,
    **options: Any,
) -> None:
    """What a compressed model has as ``save_pretrained``: writes containers (spec §7) of the frames it holds.

    Arguments are those of ``PreTrainedModel.save_pretrained``, but save_original_format: whether
    transformers' conversions are undone (experts that it stacked when loading become single tensors again),
    which decodes and encodes the tensors concerned. Without it ``from_pretrained`` takes every frame as it
    is.

    Raises InvalidArgument for push_to_hub (``model.push_to_hub(name)`` does it), StorageError.
    """
    if push_to_hub:
        raise InvalidArgument("save_pretrained cannot push while it saves; call model.push_to_hub(name)")
    if variant is not None:
        options["variant"] = variant
    stock = partial(PreTrainedModel.save_pretrained, model, save_directory, is_main_process, token=token)
    if getattr(model, "_hf_peft_config_loaded", False):
        stock(
            state_dict=state_dict, save_peft_format=save_peft_format, max_shard_size=max_shard_size, **options
        )
        return
    quantizer = adopt(model).hf_quantizer
    quantizer._weights_apart = True
    try:
        stock(**options)
    finally:
        quantizer._weights_apart = False
    if model.should_save_on_this_rank(is_main_process):
        state = _saved_state(model, state_dict or model.state_dict(), save_original_format)
        _write_shards(model, state, Path(save_directory), max_shard_size, variant, quantizer.selection.level)


def load_pretrained(config: Any, path: str | os.PathLike[str], selection: dict[str, Any]) -> Any:
    """The causal language model of a configuration with the weights of a checkpoint, compressed.

    path: a safetensors file, plain or compressed, or a directory. selection: options of NeuzipConfig. The
    model has the configuration's dtype, or that of the file's first float tensor. Raises as
    ``from_pretrained``.
    """
    files = checkpoint_files(Path(path))
    config = copy.deepcopy(config)
    if len(files) == 1:
        config.transformers_weights = files[0].name
    if selection and _method(config) == METHOD:
        # Options that are given are meant; transformers would take those of the configuration.
        del config.quantization_config
    settings = None if getattr(config, "quantization_config", None) else NeuzipConfig(**selection)
    model = AutoModelForCausalLM.from_pretrained(
        files[0].parent,
        config=config,
        dtype=config.dtype or _float_dtype(files),
        quantization_config=settings,
    )
    vars(model.config).pop("transformers_weights", None)
    return model


def _method(config: Any) -> Any:
    """The quantization method that a configuration names, if it does."""
    settings = getattr(config, "quantization_config", None)
    return (
        settings.get("quant_method")
        if isinstance(settings, dict)
        else getattr(settings, "quant_method", None)
    )


def _attach(model: Any) -> None:
    """Gives this one model its ways to save, and to load state dicts that stock safetensors read."""
    model.save_pretrained = partial(save_pretrained, model)
    model.register_load_state_dict_pre_hook(unpack_frames)


def _saved_state(model: Any, state: dict[str, Any], original_format: bool) -> dict[str, torch.Tensor]:
    """The tensors to be written, tied ones once."""
    ignored = set(model._keys_to_ignore_on_save or ())
    state = {
        name: load_offloaded_parameter(model, name) if tensor.is_meta else tensor
        for name, tensor in state.items()
        if name not in ignored
    }
    # transformers compares memory, and a compressed tensor's is its frame.
    kept = remove_tied_weights_from_state_dict({name: _held(tensor) for name, tensor in state.items()}, model)
    state = {name: state[name] for name in kept}
    return revert_weight_conversion(model, state) if original_format else state


def _write_shards(
    model: Any,
    state: dict[str, torch.Tensor],
    folder: Path,
    max_shard_size: int | str,
    variant: str | None,
    level: str,
) -> None:
    part = "" if variant is None else f".{variant}"
    split = split_torch_state_dict_into_shards(
        {name: _held(tensor) for name, tensor in state.items()},
        filename_pattern=f"model{part}{{suffix}}.safetensors",
        max_shard_size=max_shard_size,
    )
    for file, names in split.filename_to_tensors.items():
        shard = {name: state[name].detach().contiguous() for name in names}
        save_file(shard, folder / file, {"format": "pt"}, level=level)
    if split.is_sharded:
        index = {
            "metadata": {"total_parameters": model.num_parameters(), **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        name = _INDEX_NAME.replace(".json", f"{part}.json")
        (folder / name).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _held(tensor: torch.Tensor) -> torch.Tensor:
    """The memory a tensor is held in."""
    return tensor.weight.frame if isinstance(tensor, CompressedTensor) else tensor


def _dense_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    dense: dict[int, torch.Tensor] = {}
    for tensor in state.values():
        if isinstance(tensor, CompressedTensor) and id(tensor.weight) not in dense:
            dense[id(tensor.weight)] = tensor.dense()
    return {n: dense[id(t.weight)] if isinstance(t, CompressedTensor) else t for n, t in state.items()}


def _is_compressed(file: Path) -> bool:
    if file.suffix != ".safetensors":
        return False
    with Container.open(file) as container:
        return container.compressed


def _float_dtype(files: Sequence[Path]) -> torch.dtype:
    for file in files:
        with Container.open(file) as container:
            for entry in container.original.entries.values():
                dtype = getattr(torch, entry.dtype.torch or "", None)
                if dtype is not None and dtype.is_floating_point:
                    return dtype  # type: ignore[no-any-return]
    return torch.get_default_dtype()
