"""What neuzip bench uses of dfloat11 0.5 and of CuPy, for the stand-in device.

The kernel decodes what the coder made, and arguments are held to those of dfloat11's own call, in ``compress_model``.
Exponents are not coded by Huffman's method but kept; everything else has the shapes and dtypes of the real thing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch

BYTES_PER_THREAD, THREADS = 8, 512
_TABLE = {0: (1, 0)}
_LUTS = bytes(256) + b"\1" + bytes(255)


class Kernel:
    """dfloat11.dfloat11._decode. calls: device and stream of each. wrong: gives a wrong bit back."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []
        self.place: list[tuple[str, int]] = []
        self.wrong = False

    def __call__(self, *, grid: Any, block: Any, shared_mem: int, args: list[int]) -> None:
        assert [kind for kind, _ in self.place] == ["device", "stream"]
        luts, encoded, rest, positions, gaps, out, n_luts, n_bytes, n_elements = args
        assert all(type(each) is int for each in (*grid, *block, shared_mem, *args))
        assert block == (THREADS,) and grid == (-(-n_bytes // (THREADS * BYTES_PER_THREAD)),)
        steps = _array(positions, ctypes.c_uint32, grid[0] + 1)
        assert steps[0] == 0 and steps[-1] == n_elements
        assert shared_mem == THREADS * 4 + 4 + int(np.diff(steps).max()) * 2
        assert n_luts == 2 and bytes(_array(luts, ctypes.c_uint8, 256 * n_luts)) == bytes(_LUTS)
        assert not _array(gaps, ctypes.c_uint8, THREADS * grid[0] * 5 // 8).any() and n_bytes == n_elements
        exponents = _array(encoded, ctypes.c_uint8, n_bytes).astype(np.uint16)
        other = _array(rest, ctypes.c_uint8, n_elements).astype(np.uint16)
        _array(out, ctypes.c_uint16, n_elements)[:] = (
            (other & 0x80) << 8 | exponents << 7 | other & 0x7F
        ) ^ self.wrong
        self.calls.append((self.place[0][1], self.place[1][1]))

    @contextmanager
    def inside(self, kind: str, number: int) -> Iterator[None]:
        self.place.append((kind, number))
        yield
        self.place.pop()


def _array(address: int, kind: Any, count: int) -> Any:
    return np.ctypeslib.as_array((kind * count).from_address(address))


def modules() -> tuple[dict[str, ModuleType], Kernel]:
    """By name, for sys.modules; and the kernel."""
    names = ("dfloat11", "dfloat11.dfloat11", "dfloat11.dfloat11_utils", "cupy")
    made = {name: ModuleType(name) for name in names}
    kernel = Kernel()
    made["dfloat11.dfloat11"]._decode = kernel  # type: ignore[attr-defined]
    for function in (get_codec, get_32bit_codec, get_luts, encode_weights):
        setattr(made["dfloat11.dfloat11_utils"], function.__name__, function)
    cuda = ModuleType("cupy.cuda")
    cuda.Device = lambda index: kernel.inside("device", index)  # type: ignore[attr-defined]
    cuda.ExternalStream = lambda handle, index: kernel.inside("stream", handle)  # type: ignore[attr-defined]
    made["cupy"].cuda = cuda  # type: ignore[attr-defined]
    return made, kernel


def get_codec(weight: torch.Tensor) -> Any:
    assert weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and weight.dim() == 1
    values, counts = torch.unique(weight.view(torch.int16) >> 7 & 0xFF, return_counts=True)
    return "codec", dict(zip(values.tolist(), counts.tolist(), strict=True))


def get_32bit_codec(counter: dict[int, int]) -> Any:
    assert counter and all(0 <= value <= 255 and count > 0 for value, count in counter.items())
    print("a code table")
    return "codec of 32 bits", counter, _TABLE


def get_luts(table: Any) -> torch.Tensor:
    assert table is _TABLE
    return torch.frombuffer(bytearray(_LUTS), dtype=torch.uint8).view(2, 256)


def encode_weights(weights: list[torch.Tensor], codec: Any, bytes_per_thread: int, threads: int) -> Any:
    assert (codec, bytes_per_thread, threads) == ("codec of 32 bits", BYTES_PER_THREAD, THREADS)
    [weight] = weights
    assert weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and weight.dim() == 1
    words = weight.view(torch.int16)
    exponents = (words >> 7 & 0xFF).to(torch.uint8)
    other = (words >> 8 & 0x80 | words & 0x7F).to(torch.uint8)
    step = bytes_per_thread * threads
    blocks = -(-len(exponents) // step)
    positions = np.array([*range(0, len(exponents), step), len(exponents)], np.uint32)
    gaps = torch.zeros(threads * blocks * 5 // 8, dtype=torch.uint8)
    print("Compression factor")
    return exponents, other, torch.from_numpy(positions), gaps, torch.empty(0, dtype=torch.int64)
