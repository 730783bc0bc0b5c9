"""torch.distributed.checkpoint: compressed parameters are saved as their frames, and all else can be.

``dcp.save`` and ``dcp.load`` take the state dict of a compressed model, sharded or not, as it is: its tensors
are written as frames without decoding, and read into a compressed model without encoding; a dense model takes
them too. Of this module's planners one compresses dense tensors on their way to the file as well, and the
other writes everything dense; ``dcp.async_save`` needs its stager.

A process that loads compressed tensors must have imported ``neuzip.nn`` or this module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.staging import AsyncStager
from torch.utils._pytree import tree_map_only

from neuzip.nn.model import MIN_SIZE
from neuzip.nn.tensor import CompressedTensor

__all__ = ["CompressedSavePlanner", "CompressedStager", "DenseSavePlanner"]


class CompressedSavePlanner(DefaultSavePlanner):
    """Saves float tensors compressed, optimizer states and the weights of ordinary models among them.

    ``dcp.save(state_dict, checkpoint_id=path, planner=CompressedSavePlanner())``; ``dcp.load`` needs none.

    level: ``"default"`` or ``"max"``. min_size: elements below which a tensor or a shard is saved as it is.
    options: of ``DefaultSavePlanner``.
    """

    def __init__(self, *, level: str = "default", min_size: int = MIN_SIZE, **options: Any) -> None:
        super().__init__(**options)
        self.level = level
        self.min_size = min_size

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:
        value = super().transform_object(write_item, object)
        if not isinstance(value, torch.Tensor) or isinstance(value, CompressedTensor):
            return value
        if not value.is_floating_point() or value.numel() < self.min_size:
            return value
        return CompressedTensor.compress(value, self.level)


class DenseSavePlanner(DefaultSavePlanner):
    """Saves compressed tensors as ordinary ones, one dense at a time: for readers without neuzip, and for
    storage that takes no others (``HuggingFaceStorageWriter``).
    """

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:
        value = super().transform_object(write_item, object)
        return value.dense() if isinstance(value, CompressedTensor) else value


class CompressedStager(AsyncStager):
    """Copies a state dict to the CPU: ``dcp.async_save(…, async_stager=CompressedStager())``.

    Frames are copied as they are. PyTorch's own stager copies a tensor's storage, which a compressed one does
    not have, and raises RuntimeError.
    """

    @property
    def should_synchronize_after_execute(self) -> bool:
        return False  # the copy is complete when stage returns

    @torch.no_grad()
    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        copied: dict[str, Any] = tree_map_only(
            torch.Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), state_dict
        )
        return copied
