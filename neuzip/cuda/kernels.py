"""Compiled kernels by device, and their launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from neuzip.cuda import sources
from neuzip.cuda.driver import Driver, current, index_of
from neuzip.cuda.jobs import WARPS

_BLOCKS_A_PROCESSOR = 8
"""Blocks of a grid for each multiprocessor: as many as fit at once (launch.h); a few more wait, which is no harm."""

_WARP = 32

_modules: dict[tuple[Driver, int, str], Any] = {}
_kernels: dict[tuple[Driver, int, str], Any] = {}


def upload(records: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """An array's bytes on a device, uint8 (nbytes,), there before what is launched next. The host does not wait."""
    data = np.ascontiguousarray(records).reshape(-1).view(np.uint8)
    host = current().pinned(data.size)
    host.numpy()[:] = data
    return host.to(device, non_blocking=True)


def download(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A contiguous device tensor's bytes, u8 (nbytes,), for which the host waits; by way of memory that copies fast."""
    data = tensor.view(-1).view(torch.uint8)
    host = current().pinned(data.numel())
    host.copy_(data, non_blocking=True)
    current().synchronize(current().record(index_of(tensor.device)))
    return host.numpy()


def launch(
    source: str,
    name: str,
    device: torch.device,
    tasks: int,
    arguments: Sequence[Any],
    *,
    warps: int = WARPS,
    block_tasks: int | None = None,
    shared: int = 0,
) -> None:
    """Starts kernel ``name`` of ``source`` for ``tasks`` tasks on torch's current stream of a device.

    arguments: tensors of the device, and NumPy scalars. warps: of a block. block_tasks: tasks that a block does at
    a time, one a warp if not given.
    """
    driver, index = current(), index_of(device)
    fits = driver.gpu(index).processors * _BLOCKS_A_PROCESSOR
    grid = max(1, min(fits, -(-tasks // (block_tasks or warps))))
    driver.launch(_kernel(source, name, index), index, grid, _WARP * warps, arguments, shared)


def _kernel(source: str, name: str, index: int) -> Any:
    driver = current()
    key = (driver, index, name)
    if key not in _kernels:
        home = (driver, index, source)
        if home not in _modules:
            _modules[home] = driver.compile(sources.read(source), str(sources.directory()), index)
        _kernels[key] = driver.kernel(_modules[home], name)
    return _kernels[key]
