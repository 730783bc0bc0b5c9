"""Launches of nz_split and nz_merge, and what must come of them: planes as spec §3 has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from script import Script

from neuzip.cuda.jobs import PLANES

_UNTOUCHED = 0xA7
_BEFORE = 7


def planes_of(data: np.ndarray) -> np.ndarray:
    """Planes (width, count) of little-endian units (count, width), uint8."""
    planes = data[:, ::-1].T.astype(np.uint16)
    if len(planes) > 1:
        top = planes[0] << 8 | planes[1]
        top = top << 1 | top >> 15
        planes[0], planes[1] = top >> 8, top & 255
    return planes.astype(np.uint8)


def check_planes(program: Path, sizes: tuple[int, ...], seeds: tuple[int, ...]) -> None:
    """Tensors of all widths and of these sizes in one launch, planes at any alignment: there and back."""
    generator = np.random.default_rng(3)
    items = np.zeros(4 * len(sizes), PLANES)
    tensors, expected, script = [], [], Script()
    for item, (width, size) in zip(items, [(w, s) for w in (1, 2, 4, 8) for s in sizes], strict=True):
        item["count"], item["width"], item["stride"] = size, width, size + len(tensors) % 3
        tensors.append(np.frombuffer(generator.bytes(size * width), np.uint8).reshape(size, width))
        planes = np.full(_BEFORE + width * int(item["stride"]), _UNTOUCHED, np.uint8)
        for plane, values in enumerate(planes_of(tensors[-1])):
            at = _BEFORE + plane * int(item["stride"])
            planes[at : at + size] = values
        expected.append(planes)
    # One set of items leads from units to planes, the other from these to units again.
    there, back = script.buffer(items), script.buffer(items)
    for number, (tensor, planes) in enumerate(zip(tensors, expected, strict=True)):
        at = number * PLANES.itemsize
        cut = script.buffer(np.full_like(planes, _UNTOUCHED), number % 4, kept=True)
        script.point(there, at, script.buffer(tensor.reshape(-1), tensor.shape[1]))
        script.point(back, at, script.buffer(bytes(tensor.size), tensor.shape[1], kept=True))
        for records in (there, back):
            script.point(records, at + 8, cut, _BEFORE)
    for kernel, records in (("nz_split", there), ("nz_merge", back)):
        script.launch(kernel, 3, 256, [records, np.uint32(len(items))])
    for results in script.run(program, seeds):
        assert results[::2] == [planes.tobytes() for planes in expected]
        assert results[1::2] == [tensor.tobytes() for tensor in tensors]
