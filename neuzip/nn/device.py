"""Compressed weights whose bytes a device decodes itself (neuzip.cuda): nothing here waits for it, but for the header
of a frame that it has not seen before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from neuzip import frame as frames
from neuzip.cuda import nvcomp
from neuzip.cuda.decoding import watch
from neuzip.cuda.matvec import is_fused, multiply
from neuzip.cuda.placed import Placed, place
from neuzip.cuda.prefetch import prefetcher
from neuzip.cuda.rows import decode_rows, gather_rows
from neuzip.errors import NeuzipError
from neuzip.nn.lossy_code import HEADER_SIZE, Parts, expand_rows, is_lossy, parse, parse_header
from neuzip.nn.weight import name_of, owner_of
from neuzip.torch import memory

_PARTS = "_neuzip_parts"
_KNOWN = "_neuzip_known"


def decode_there(data: torch.Tensor, out: torch.Tensor, first_row: int = 0) -> None:
    """:func:`neuzip.nn.weight.decode` where ``out`` lies on a device that decodes. ``data`` may lie on the host."""
    name = name_of(data)
    try:
        data = fetched(data, out.device)
        parts = _parts(data)
        if parts is None:
            _read(data, out, first_row, name)
        elif isinstance(parts, nvcomp.Held):
            nvcomp.decode(data, parts, first_row * (out[0].nbytes // parts.width if len(out) else 0), out)
        else:
            expand_rows(parts, out, first_row, lambda part, rows, first: _read(part, rows, first, name))
    except NeuzipError as error:
        raise error.at(tensor=name) from None


def _read(frame: torch.Tensor, out: torch.Tensor, first_row: int, name: str | None) -> None:
    watch.add(decode_rows(frame, out, first_row, name))


def fetched(data: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A weight's bytes on a device. Those of the host are copied ahead of time if their owner is known."""
    if data.device == device:
        return data
    owner = owner_of(data) if data.is_pinned() else None
    there = data.to(device) if owner is None else prefetcher(device).fetch(owner, data)
    if data.device.type == "cpu":
        _remember(data, there)
    return there


def _remember(host: torch.Tensor, there: torch.Tensor) -> None:
    """Keeps with bytes on a device what the host knows of them, so that nothing of them need be fetched back."""
    known = host.__dict__.setdefault(_KNOWN, {})
    if (there.device, host._version) not in known:
        known.clear()
        known[there.device, host._version] = _placed_parts(memory(host), there)
    parts, held = known[there.device, host._version]
    if parts is None:
        held[0].attach(there)
        return
    mine = parts.of(there)
    for part, each in zip(mine.frames, held, strict=True):
        each.attach(part)
    setattr(there, _PARTS, mine)


def _placed_parts(data: np.ndarray[Any, Any], there: torch.Tensor) -> tuple[Parts | None, list[Placed]]:
    """The parts of a lossy weight's bytes, None for a frame; and what is known of the frames on the device."""
    if not is_lossy(data):
        return None, [place(there, frames.read_header(data, whole=True))]
    parts = parse(data)
    return parts, [
        place(part, frames.read_header(host, whole=True))
        for part, host in zip(parts.of(there).frames, parts.frames, strict=True)
    ]


def remember_held(data: torch.Tensor, held: nvcomp.Held) -> None:
    """Keeps with a weight's bytes what is known of them."""
    setattr(data, _PARTS, held)


def _parts(data: torch.Tensor) -> Parts | nvcomp.Held | None:
    """What is known of a lossy weight's bytes, or of nvCOMP's; None if they are a frame."""
    parts: Parts | nvcomp.Held | None = data.__dict__.get(_PARTS)
    if parts is None and not Placed.is_known(data):
        header = data[:HEADER_SIZE].cpu().numpy()
        if is_lossy(header):
            parts = parse_header(header, data)
        elif header[:4].tobytes() == nvcomp.MAGIC:
            parts = nvcomp.read_held(data)
        if parts is not None:
            setattr(data, _PARTS, parts)
    return parts


def fused_linear(
    x: torch.Tensor, data: torch.Tensor, bias: torch.Tensor | None, shape: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weight's bytes on x's device, and the linear layer's result if the two are multiplied without decoding."""
    name, data = name_of(data), fetched(data, x.device)
    if _parts(data) is not None or not is_fused(data, x, *shape):
        return data, None
    y, pending = multiply(data, x, shape[0], name)
    watch.add(pending)
    return data, y if bias is None else y.add_(bias)


def embedding_there(
    indices: torch.Tensor, data: torch.Tensor, shape: Sequence[int], dtype: torch.dtype
) -> torch.Tensor:
    """Rows of a weight, (…, columns), on the indices' device."""
    data, name = fetched(data, indices.device), name_of(data)
    if _parts(data) is None:
        flat = indices.reshape(-1).long()
        out = torch.empty((flat.numel(), shape[1]), dtype=dtype, device=indices.device)
        pending = gather_rows(data, flat, out, name)
        if pending is not None:
            watch.add(pending)
            return out.view(*indices.shape, shape[1])
    whole = torch.empty(tuple(shape), dtype=dtype, device=indices.device)
    decode_there(data, whole)
    return F.embedding(indices, whole)
