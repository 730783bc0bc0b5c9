"""Compressed bytes that stay in host memory: copied to a device for the moment they are decoded, the next ones ahead.

What comes next is learnt from what came after the last two: that tells the way back through a model from the way
forth.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import Any
from weakref import ReferenceType, ref

import torch

from neuzip.cuda.driver import Driver, current, index_of

AHEAD = 1
"""Copies under way that nobody has asked for yet: the next layer's."""


@dataclass(frozen=True)
class _Sent:
    """A copy on its way: what is copied, where it goes, and what is reached when it is there."""

    host: torch.Tensor
    there: torch.Tensor
    event: Any


class Prefetcher:
    """Copies to one device, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._index = device, index_of(device)
        self._stream = current().new_stream(self._index)
        self._lock = Lock()
        self._sent: OrderedDict[int, _Sent] = OrderedDict()
        self._after: dict[tuple[int, int], ReferenceType[Any]] = {}
        self._last = (0, 0)

    def fetch(self, owner: Any, host: torch.Tensor) -> torch.Tensor:
        """A pinned tensor's bytes on the device, for the current stream; neither waits for the host.

        owner: what has the bytes in its attribute ``frame``, by which it is known again; it may be given others.
        """
        driver = current()
        with self._lock:
            sent = self._sent.pop(id(owner), None)
            if sent is None or sent.host is not host:
                sent = self._send(host)
            self._after[self._last] = ref(owner)
            self._last = (self._last[1], id(owner))
            following = self._after.get(self._last, lambda: None)()
            driver.wait(sent.event, self._index)
            driver.keep(sent.there, self._index)
            if following is not None and id(following) not in self._sent:
                while len(self._sent) >= AHEAD:
                    self._sent.popitem(last=False)
                self._sent[id(following)] = self._send(following.frame)
            return sent.there

    def _send(self, host: torch.Tensor) -> _Sent:
        driver = current()
        with driver.on(self._stream):
            there = host.to(self._device, non_blocking=True)
            return _Sent(host, there, driver.record(self._index))


_prefetchers: dict[tuple[Driver, torch.device], Prefetcher] = {}


def prefetcher(device: torch.device) -> Prefetcher:
    """The process's for a device."""
    key = (current(), torch.device(device.type, index_of(device)))
    if key not in _prefetchers:
        _prefetchers[key] = Prefetcher(key[1])
    return _prefetchers[key]
