"""nz_split and nz_merge, emulated: units to planes as spec §3 has them, and back to the same bytes."""

from __future__ import annotations

import numpy as np
from emulator import load

from neuzip.cuda.jobs import PLANES

SIZES = (0, 1, 31, 255, 256, 257, 1000)
MARGIN = 7


def planes_of(data: np.ndarray) -> np.ndarray:
    """Planes (width, count) of little-endian units (count, width), uint8."""
    width = data.shape[1]
    planes = data[:, ::-1].T.astype(np.uint16)
    if width > 1:
        top = planes[0] << 8 | planes[1]
        top = top << 1 | top >> 15
        planes[0], planes[1] = top >> 8, top & 255
    return planes.astype(np.uint8)


def test_there_and_back() -> None:
    """Many tensors of any width in one launch, planes at any alignment."""
    generator = np.random.default_rng(3)
    tensors = [
        np.frombuffer(generator.bytes(size * width), np.uint8).reshape(size, width).copy()
        for width in (1, 2, 4, 8)
        for size in SIZES
    ]
    originals = [tensor.copy() for tensor in tensors]
    items = np.zeros(len(tensors), PLANES)
    split = []
    for number, (item, tensor) in enumerate(zip(items, tensors, strict=True)):
        count, width = tensor.shape
        stride = count + number % 3
        planes = np.full(width * stride + 2 * MARGIN, 0xA7, np.uint8)
        item["units"], item["planes"] = tensor.ctypes.data, planes.ctypes.data + MARGIN
        item["count"], item["stride"], item["width"] = count, stride, width
        split.append(planes)
    arguments = (items, np.uint32(len(items)))
    load().launch("nz_split", 3, 256, arguments, seed=1)
    for tensor, item, planes in zip(tensors, items, split, strict=True):
        expected = np.full_like(planes, 0xA7)
        for plane, values in enumerate(planes_of(tensor)):
            at = MARGIN + plane * int(item["stride"])
            expected[at : at + len(values)] = values
        assert planes.tobytes() == expected.tobytes()
        tensor[:] = 0
    load().launch("nz_merge", 3, 256, arguments, seed=2)
    assert [tensor.tobytes() for tensor in tensors] == [original.tobytes() for original in originals]
