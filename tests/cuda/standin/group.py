"""Collectives between processes for the stand-in device: gloo's, which takes tensors of the host only, on copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from standin import device

NAME = "standin-gloo"


class Group(dist.ProcessGroup):
    """A process group whose tensors lie on the stand-in device, or on the host."""

    def __init__(self, gloo: Any, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self._gloo = gloo

    def getBackendName(self) -> str:
        return NAME

    # Python's process groups keep their names themselves.
    def _set_group_name(self, name: str) -> None:
        self._name = name

    def getGroupName(self) -> str:
        return self._name

    @property
    def group_name(self) -> str:
        return self._name

    def _on_host(self, name: str, outputs: Any, inputs: Any, *options: Any) -> Any:
        """Calls gloo with copies and brings the outputs back. Tensors, or lists of them, nested at will."""
        there = _each(lambda tensor: tensor.cpu(), outputs)
        same = outputs is inputs
        given = (there,) if same else (there, _each(lambda tensor: tensor.cpu(), inputs))
        getattr(self._gloo, name)(*given, *options).wait()
        for tensor, host in zip(_flat(outputs), _flat(there), strict=True):
            tensor.copy_(host)
        return _done(_flat(outputs))

    def broadcast(self, tensors: Any, options: Any = None) -> Any:
        return self._on_host("broadcast", tensors, tensors, options)

    def allreduce(self, tensors: Any, options: Any = None) -> Any:
        return self._on_host("allreduce", tensors, tensors, options)

    def allgather(self, outputs: Any, inputs: Any, options: Any = None) -> Any:
        return self._on_host("allgather", outputs, inputs, options)

    def all_gather_single(self, output: Any, source: Any, options: Any = None) -> Any:
        return self._on_host("_allgather_base", output, source, options)

    def reduce_scatter_single(self, output: Any, source: Any, options: Any = None) -> Any:
        return self._on_host("_reduce_scatter_base", output, source, options)

    def barrier(self, opts: Any = None) -> Any:
        self._gloo.barrier().wait()
        return _done([])


def register() -> None:
    """Makes it known to torch, by NAME, and what fully_shard asks of a device's module."""

    def make(options: Any, _: Any) -> Group:
        gloo = dist.ProcessGroupGloo(
            options.store, options.group_rank, options.group_size, timeout=options.timeout
        )
        return Group(gloo, options.group_rank, options.group_size)

    module = getattr(torch, device.TYPE)
    module.is_initialized = lambda: True
    module.manual_seed_all = lambda seed: None
    module._is_in_bad_fork = lambda: False
    module.set_device = torch.accelerator.set_device_index
    module.synchronize = torch.accelerator.synchronize
    module.Stream = lambda priority=0: torch.Stream(device.TYPE)
    module.Event = lambda: torch.Event(device.TYPE)
    module.current_stream = torch.accelerator.current_stream
    module.stream = lambda stream: stream
    dist.Backend.register_backend(NAME, make, extended_api=True, devices=["cpu", device.TYPE])


def _done(tensors: list[torch.Tensor]) -> Any:
    future: torch.futures.Future[Any] = torch.futures.Future()
    future.set_result(tensors)
    return torch._C._distributed_c10d._create_work_from_future(future)


def _each(change: Callable[[torch.Tensor], torch.Tensor], tensors: Any) -> Any:
    if isinstance(tensors, torch.Tensor):
        return change(tensors)
    return [_each(change, each) for each in tensors]


def _flat(tensors: Any) -> list[torch.Tensor]:
    if isinstance(tensors, torch.Tensor):
        return [tensors]
    return [tensor for each in tensors for tensor in _flat(each)]
