"""accelerate: weights that stay on disk, compressed, until their module runs.

Offloading to the CPU needs nothing from here: accelerate's hooks keep and move compressed parameters as
they are. Its own offloading to disk writes tensors dense; this map takes its place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from neuzip.container import Container
from neuzip.nn.loading import checkpoint_files, compressed_weight
from neuzip.nn.tensor import CompressedTensor
from neuzip.reader import safe_open


class OffloadedWeights(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint by name, read when asked for; those that are compressed there as frames.

    ``accelerate.cpu_offload(model, torch.device(0), state_dict=OffloadedWeights(path))`` runs a model whose
    parameters are on the meta device, one module's at a time in memory.

    path: a safetensors file or a directory of several with an index, as ``save_pretrained`` and
    ``neuzip compress`` write them. ties: other names of tensors, as in transformers'
    ``model.all_tied_weights_keys``.

    Raises StorageError, CorruptFrame and the like; KeyError for names that the checkpoint does not have.
    """

    def __init__(self, path: str | os.PathLike[str], ties: Mapping[str, str] | None = None) -> None:
        self._ties = dict(ties or {})
        self._containers: dict[str, Container] = {}
        for file in checkpoint_files(Path(path)):
            container = Container.open(file)
            self._containers |= dict.fromkeys(container.original.entries, container)

    def __getitem__(self, name: str) -> torch.Tensor:
        name = self._ties.get(name, name)
        container = self._containers[name]
        weight = compressed_weight(container, name)
        if weight is not None:
            return CompressedTensor(weight)
        assert container.path is not None  # Container.open sets it
        with safe_open(container.path, "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        yield from (*self._containers, *(name for name in self._ties if name not in self._containers))

    def __len__(self) -> int:
        return len(self._containers.keys() | self._ties.keys())

    def close(self) -> None:
        """Closes the files. Tensors that were read stay valid."""
        for container in self._containers.values():
            container.close()

    def __enter__(self) -> OffloadedWeights:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()
