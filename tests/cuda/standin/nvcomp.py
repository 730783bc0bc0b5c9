"""What neuzip uses of nvidia.nvcomp, with deflate in the place of ANS. Arguments are held to nvCOMP's documentation."""

from __future__ import annotations

import zlib
from types import ModuleType
from typing import Any

import numpy as np
import torch

streams: list[int] = []
"""The stream of each codec made."""


class BatchArray:
    def __init__(self, buffer: torch.Tensor, offsets: list[int], sizes: list[int], stream: int) -> None:
        assert buffer.dtype == torch.uint8 and buffer.is_contiguous() and buffer.device.type == "standin"
        assert len(offsets) == len(sizes) and all(type(each) is int for each in (*offsets, *sizes))
        assert all(start + size <= buffer.numel() for start, size in zip(offsets, sizes, strict=True))
        assert all((buffer.data_ptr() + start) % 16 == 0 for start in offsets)
        self.buffer, self.offsets, self.sizes, self.stream = buffer, offsets, list(sizes), stream

    @property
    def buffer_sizes(self) -> list[int]:
        return self.sizes

    def views(self) -> list[torch.Tensor]:
        return [self.buffer[at : at + size] for at, size in zip(self.offsets, self.sizes, strict=True)]


class Codec:
    def __init__(self, *, algorithm: str, data_type: str, device_id: int, cuda_stream: int) -> None:
        assert (algorithm, data_type) == ("ANS", "|u1") and device_id in (0, 1)
        self.device, self.stream = device_id, cuda_stream
        streams.append(cuda_stream)

    def _check(self, *batches: BatchArray) -> None:
        for batch in batches:
            assert batch.stream == self.stream == torch.accelerator.current_stream(self.device).stream_id
            assert batch.buffer.device.index == self.device

    def get_max_comp_buffer_size(self, array: torch.Tensor) -> int:
        return array.numel() + array.numel() // 8 + 512

    def compression_config(self, sizes: list[int]) -> Any:
        assert sizes and all(size > 0 for size in sizes)
        return ("compress", tuple(sizes))

    def decompression_config(self, config: Any) -> Any:
        assert config[0] == "compress", "the other ways wait for the device"
        return ("decompress", config[1])

    def encode(self, source: BatchArray, *, out: BatchArray, compression_config: Any) -> None:
        self._check(source, out)
        assert compression_config == ("compress", tuple(source.sizes))
        for number, (view, room) in enumerate(zip(source.views(), out.views(), strict=True)):
            coded = zlib.compress(view.cpu().numpy().tobytes(), 1)
            room[: len(coded)] = torch.frombuffer(bytearray(coded), dtype=torch.uint8).to(room.device)
            out.sizes[number] = len(coded)

    def decode(self, source: BatchArray, *, out: BatchArray, decompression_config: Any) -> None:
        self._check(source, out)
        assert decompression_config == ("decompress", tuple(out.sizes))
        for view, room in zip(source.views(), out.views(), strict=True):
            plain = np.frombuffer(zlib.decompress(view.cpu().numpy().tobytes()), np.uint8)
            room.copy_(torch.from_numpy(plain.copy()))


def module() -> ModuleType:
    made = ModuleType("nvidia.nvcomp")
    made.Codec = Codec  # type: ignore[attr-defined]
    made.as_array = lambda source, cuda_stream: source  # type: ignore[attr-defined]
    made.as_arrays = lambda buffer, offsets, sizes, cuda_stream: BatchArray(  # type: ignore[attr-defined]
        buffer, offsets, sizes, cuda_stream
    )
    made.set_device_allocator = lambda allocator: setattr(made, "allocator", allocator)  # type: ignore[attr-defined]
    return made
