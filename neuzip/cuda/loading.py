"""Tensors of a file straight into a device's memory: compressed bytes cross the bus and are decoded behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from neuzip import frame as frames
from neuzip.codec import Coding, Options
from neuzip.container import Container
from neuzip.cuda.decoding import Pending, Run, decode, whole
from neuzip.cuda.driver import current, index_of
from neuzip.cuda.placed import place
from neuzip.errors import NeuzipError

Bytes = npt.NDArray[np.uint8]

STAGING_BYTES = 32 << 20
"""Of each of the two pinned buffers: enough for the bus's full speed, little to pin."""

BATCH_BYTES = 512 << 20
"""Compressed bytes on the device at a time, beside the tensors."""


class Staging:
    """Bytes from anywhere in host memory to a device through two pinned buffers, filled while the other is sent."""

    def __init__(self, device: torch.device, size: int) -> None:
        self._index = index_of(device)
        self._buffers = [current().pinned(size) for _ in range(2)]
        self._sent: list[Any] = [None, None]
        self._turn = 0

    def send(self, source: Bytes, target: torch.Tensor) -> None:
        """Starts copying bytes to a device tensor, uint8 of the same size. The source may change afterwards."""
        step = self._buffers[0].numel()
        for start in range(0, source.size, step):
            part = source[start : start + step]
            buffer, event = self._buffers[self._turn], self._sent[self._turn]
            if event is not None:
                current().synchronize(event)
            buffer.numpy()[: part.size] = part
            target[start : start + part.size].copy_(buffer[: part.size], non_blocking=True)
            self._sent[self._turn] = current().record(self._index)
            self._turn ^= 1


@dataclass(frozen=True)
class Item:
    """A tensor to load: its frame, or its own bytes if ``header`` is None, and where its value goes."""

    name: str
    data: Bytes
    header: frames.Header | None
    out: torch.Tensor

    @property
    def is_coded(self) -> bool:
        header = self.header
        return header is not None and header.coding is Coding.PLANES and header.size > 0


def load(items: Sequence[Item], options: Options) -> None:
    """Fills the items' tensors, all of one device. Returns when they are verified.

    Raises CorruptFrame, TruncatedInput, UnsupportedFormat, with the tensor's name.
    """
    if not items:
        return
    device = items[0].out.device
    most = max(item.data.size for item in items)
    staging = Staging(device, max(1, min(STAGING_BYTES, most)))
    pending: list[Pending] = []
    for batch in _batches([item for item in items if item.is_coded]):
        runs = _place(batch, device, staging)
        pending.append(decode(runs, options.verify))
    for item in items:
        if not item.is_coded:
            staging.send(_host_decoded(item, options), _bytes(item.out))
    for each in pending:
        each.check()


def _batches(items: list[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    size = 0
    for item in items:
        if batch and size + item.data.size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item.data.size
    if batch:
        yield batch


def _place(batch: list[Item], device: torch.device, staging: Staging) -> list[Run]:
    """The frames on the device, one behind the other: a frame's size is a multiple of 8."""
    room = torch.empty(sum(item.data.size for item in batch), dtype=torch.uint8, device=device)
    runs = []
    at = 0
    for item in batch:
        assert item.header is not None
        frame = room[at : at + item.data.size]
        staging.send(item.data, frame)
        runs.append(whole(frame, _placed(frame, item), item.out, item.name))
        at += item.data.size
    return runs


def _placed(frame: torch.Tensor, item: Item) -> Any:
    assert item.header is not None
    try:
        return place(frame, item.header)
    except NeuzipError as error:
        raise error.at(tensor=item.name) from None


def _host_decoded(item: Item, options: Options) -> Bytes:
    """The value of a tensor that is not the kernels' work: integers, tiny tensors, plain ones."""
    if item.header is None:
        return item.data
    out = np.empty(item.header.size, np.uint8)
    try:
        frames.decode(item.data, out, options)
    except NeuzipError as error:
        raise error.at(tensor=item.name) from None
    return out


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def load_container(container: Container, tensors: dict[str, torch.Tensor], options: Options) -> None:
    """Fills tensors of one device with those of a file, by name. Errors name file and tensor."""
    items = []
    try:
        for name, tensor in tensors.items():
            header = None
            if container.is_frame(name):
                held = container.data(name)
                header = frames.read_header(held, whole=True)
            else:
                held = container.kept_bytes(name, 0, tensor.nbytes, verify=options.verify)
            data = np.frombuffer(held, np.uint8) if tensor.nbytes else np.empty(0, np.uint8)
            items.append(Item(name, data, header, tensor))
        load(items, options)
    except NeuzipError as error:
        raise error.at(file=container.path, tensor=name) from None
