"""Tensors of a device to frames on that device, the bytes that the CPU makes (spec §5).

The device is waited for twice: for the sample that tables are chosen from, and for the chunks' sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from neuzip import frame as frames
from neuzip._native import Words
from neuzip.codec import Coding, EncodeRun, Options, Plan, encode_runs, is_coded
from neuzip.container import BATCH_BYTES
from neuzip.container_writer import PLAN_BYTES
from neuzip.cuda.kernels import upload
from neuzip.cuda.packing import Packed, pack
from neuzip.cuda.placed import place
from neuzip.cuda.planning import Original, make_plans
from neuzip.errors import InvalidArgument
from neuzip.layouts import DType
from neuzip.piecewise import PiecewiseEncoder
from neuzip.tables import plan_pieces

Item = tuple[torch.Tensor, DType, Sequence[int]]
"""A contiguous tensor, its dtype, and its shape in elements of that."""


def encode(tensor: torch.Tensor, dtype: DType, shape: Sequence[int], options: Options) -> torch.Tensor:
    """The frame of one tensor: see :func:`encode_many`."""
    return encode_many([(tensor, dtype, shape)], options)[0]


def encode_many(items: Sequence[Item], options: Options) -> list[torch.Tensor]:
    """Frames, uint8 (frame_size,), of tensors of one device; they lie there too. All are encoded in one go.

    Raises InvalidArgument for a tensor that is not contiguous.
    """
    originals = [Original(_bytes(tensor), dtype.layout) for tensor, dtype, _ in items]
    plans = make_plans(originals, options)
    encoded = _encode(originals, plans, options)
    return [
        _frame(frames.header_bytes(dtype, shape, plan, options.level, packed.index), [packed.chunks])
        for (_, dtype, shape), plan, packed in zip(items, plans, encoded, strict=True)
    ]


def encode_for_file(
    tensor: torch.Tensor, dtype: DType, shape: Sequence[int], options: Options
) -> torch.Tensor | None:
    """The frame that :func:`neuzip.container_writer.write_container` makes of a tensor, planned as it plans. None for a
    tensor without planes, which only the host encodes."""
    layout, data = dtype.layout, _bytes(tensor)
    if not is_coded(len(data), layout):
        return None
    step = PLAN_BYTES if len(data) > BATCH_BYTES else len(data)
    pieces = (data[at : at + step] for at in range(0, len(data), step))
    plans = (make_plans([Original(piece, layout)], options)[0] for piece in pieces)
    plan = plan_pieces(plans, layout, len(data), options)
    [packed] = _encode([Original(data, layout)], [plan], options)
    return _frame(frames.header_bytes(dtype, shape, plan, options.level, packed.index), [packed.chunks])


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_contiguous():
        raise InvalidArgument("only contiguous tensors are encoded")
    return tensor.detach().reshape(-1).view(torch.uint8)


def _encode(originals: Sequence[Original], plans: Sequence[Plan], options: Options) -> list[Packed]:
    numbers = [number for number, plan in enumerate(plans) if plan.coding is Coding.PLANES]
    packed = pack([originals[number] for number in numbers], [plans[number] for number in numbers])
    there = dict(zip(numbers, packed, strict=True))
    return [
        there[number] if number in there else _on_host(original, plan, options)
        for number, (original, plan) in enumerate(zip(originals, plans, strict=True))
    ]


def _on_host(original: Original, plan: Plan, options: Options) -> Packed:
    """Tiny tensors and those without planes."""
    buffer = np.empty(plan.capacity, np.uint8)
    run = EncodeRun(
        plan, original.data.cpu().numpy(), buffer.ctypes.data, np.empty(2 * plan.chunk_count, np.uint32)
    )
    encode_runs([run], options)
    return Packed(upload(buffer[: run.written], original.data.device), run.index)


def _frame(header: bytearray, chunks: Sequence[torch.Tensor]) -> torch.Tensor:
    """A frame out of its parts, its header remembered, so that decoding need not fetch it."""
    start = upload(np.frombuffer(header, np.uint8), chunks[0].device)
    padding = start.new_zeros(-(len(header) + sum(map(len, chunks))) % 8)
    frame = torch.cat([start, *chunks, padding])
    place(frame, frames.read_header(header))
    return frame


class DeviceEncoder(PiecewiseEncoder):
    """:class:`PiecewiseEncoder` for pieces that lie on a device, tensors of any dtype. So does the frame."""

    def __init__(
        self, dtype: DType, shape: Sequence[int], options: Options | None, device: torch.device
    ) -> None:
        super().__init__(dtype, shape, options)
        self._device = device

    def _bytes(self, piece: torch.Tensor) -> Any:
        return _bytes(piece)

    def _make_plan(self, data: torch.Tensor) -> Plan:
        return make_plans([Original(data, self._dtype.layout)], self._options)[0]

    def _encode(self, data: torch.Tensor, plan: Plan) -> tuple[torch.Tensor, Words]:
        [packed] = _encode([Original(data, self._dtype.layout)], [plan], self._options)
        return packed.chunks, packed.index

    def _join(self, header: bytearray) -> torch.Tensor:
        chunks = self._chunks or [torch.empty(0, dtype=torch.uint8, device=self._device)]
        return _frame(header, chunks)
