"""What `neuzip bench --gpu` measures, one row after another, on torch's current device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from neuzip.cli.gpu_peers import DFloat11, Peer, Unavailable
from neuzip.codec import Options
from neuzip.cuda import matvec, nvcomp
from neuzip.cuda.decoding import Run, decode, whole
from neuzip.cuda.driver import current
from neuzip.cuda.encoding import encode_many
from neuzip.cuda.jobs import MATVEC_BATCH, MATVEC_CHUNK_LOG2
from neuzip.cuda.placed import placed
from neuzip.errors import CorruptFrame, InvalidArgument
from neuzip.reader import safe_open
from neuzip.torch import dtype_of

MOST_BYTES = 1 << 30
"""Of a file's tensors that are measured: enough chunks for any GPU, and twice that fits on any."""

SECONDS = 0.3
"""That a row is repeated for, three times, of which the best counts."""


@dataclass(frozen=True)
class Row:
    """One measurement. size: original bytes that are dealt with. baseline: the row it is to be compared with."""

    what: str
    how: str
    size: int
    seconds: float
    baseline: float | None = None
    note: str = ""


class Trials:
    """Tensors of a file, on the host and on the device, as they are and compressed."""

    def __init__(self, path: Path) -> None:
        driver = current()
        self.index = driver.current_index()
        self.device = torch.device(driver.device_type, self.index)
        self.tensors = read(path)
        self.size = sum(tensor.nbytes for tensor in self.tensors)
        self.there = [tensor.to(self.device) for tensor in self.tensors]
        self.items = [(tensor, dtype_of(tensor.dtype), tensor.shape) for tensor in self.there]

    def rows(self) -> Iterator[Row | str]:
        """Measurements, and lines about what could not be measured."""
        yield from self._coding("default")
        yield from self._coding("max")
        yield from self._transfer()
        yield from self._products()
        yield from self._nvcomp()
        yield from self._peer(DFloat11())

    def _measure(self, work: Callable[[], Any]) -> float:
        """Seconds that some work takes on the device, the host's share included where the device waits for it."""
        self._timed(work, 1)  # compiles, allocates, compares checksums
        repeats = max(1, int(SECONDS / max(self._timed(work, 1), 1e-6)))
        return min(self._timed(work, repeats) for _ in range(3)) / repeats

    def _timed(self, work: Callable[[], Any], repeats: int) -> float:
        driver = current()
        driver.synchronize(driver.record(self.index))
        start = perf_counter()
        for _ in range(repeats):
            work()
        driver.synchronize(driver.record(self.index))
        return perf_counter() - start

    def _coding(self, level: str) -> Iterator[Row]:
        options = Options(level=level)
        coded = encode_many(self.items, options)
        outs = [torch.empty_like(tensor) for tensor in self.there]
        runs = [whole(frame, placed(frame), out) for frame, out in zip(coded, outs, strict=True)]
        runs = [run for run in runs if run.placed.is_coded]
        decode(runs).check()
        for run, tensor in zip(runs, self._coded(coded), strict=True):
            if not torch.equal(_bytes(run.out), _bytes(tensor)):
                raise CorruptFrame(f"level {level} gave other bytes back")
        note = f"to {100 * sum(map(len, coded)) / self.size:.1f} %"
        seconds = self._measure(lambda: decode(runs, verify=False))
        yield Row("decode", f"neuzip {level}", self.size, seconds, note=note)
        if level == "default":
            yield Row("decode", "and compare checksums", self.size, self._measure(lambda: decode(runs)))
        yield Row(
            "encode", f"neuzip {level}", self.size, self._measure(lambda: encode_many(self.items, options))
        )

    def _coded(self, coded: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [tensor for tensor, frame in zip(self.there, coded, strict=True) if placed(frame).is_coded]

    def _transfer(self) -> Iterator[Row]:
        coded = encode_many(self.items, Options())
        chosen = [
            (frame, tensor) for frame, tensor in zip(coded, self.there, strict=True) if placed(frame).is_coded
        ]
        plain = [_pinned(tensor) for _, tensor in chosen]
        packed = [_pinned(frame) for frame, _ in chosen]
        size = sum(tensor.nbytes for _, tensor in chosen)
        outs = [torch.empty_like(tensor) for _, tensor in chosen]
        seconds = self._measure(
            lambda: [out.copy_(host, non_blocking=True) for out, host in zip(outs, plain, strict=True)]
        )
        yield Row("host to GPU", "plain copy", size, seconds)

        def send() -> None:
            for (frame, _), host in zip(chosen, packed, strict=True):
                frame.copy_(host, non_blocking=True)
            decode(runs, verify=False)

        runs = [
            Run(frame, placed(frame), 0, placed(frame).header.chunk_count, out)
            for (frame, _), out in zip(chosen, outs, strict=True)
        ]
        yield Row("host to GPU", "compressed, decoded there", size, self._measure(send), seconds)

    def _products(self) -> Iterator[Row | str]:
        matrices = [
            tensor
            for tensor in self.there
            if tensor.dim() == 2
            and tensor.dtype in (torch.bfloat16, torch.float16)
            and tensor.shape[1] % 4 == 0
        ]
        if not matrices:
            yield "products: no matrix of bf16 or fp16 with columns in fours"
            return
        matrix = max(matrices, key=torch.Tensor.numel)
        for batch in (1, MATVEC_BATCH):
            yield from self._product(matrix, batch)

    def _product(self, matrix: torch.Tensor, batch: int) -> Iterator[Row]:
        rows, columns = matrix.shape
        options = Options(chunk_log2=MATVEC_CHUNK_LOG2)
        [frame] = encode_many([(matrix, dtype_of(matrix.dtype), matrix.shape)], options)
        out = torch.empty_like(matrix)
        run = whole(frame, placed(frame), out)
        x = torch.ones(batch, columns, dtype=matrix.dtype, device=self.device)
        what = f"{rows} × {columns} by {batch}"

        def decode_then_multiply() -> None:
            decode([run], verify=False)
            F.linear(x, out)

        plain = self._measure(lambda: F.linear(x, matrix))
        yield Row(what, "cuBLAS on plain weights", matrix.nbytes, plain)
        yield Row(what, "decode, then cuBLAS", matrix.nbytes, self._measure(decode_then_multiply), plain)
        seconds = self._measure(lambda: matvec.multiply(frame, x, rows))
        yield Row(what, "multiply while decoding", matrix.nbytes, seconds, plain)

    def _nvcomp(self) -> Iterator[Row | str]:
        tensors = [
            (tensor, dtype.layout.width)
            for tensor, dtype, _ in self.items
            if dtype.layout.planes and len(tensor)
        ]
        size = sum(tensor.nbytes for tensor, _ in tensors)
        try:
            coded = [nvcomp.encode(tensor, width) for tensor, width in tensors]
        except InvalidArgument as error:
            yield f"nvCOMP: {error}"
            return
        outs = [torch.empty_like(tensor) for tensor, _ in tensors]

        def work() -> None:
            for (data, held), out in zip(coded, outs, strict=True):
                nvcomp.decode(data, held, 0, out)

        note = f"to {100 * sum(data.numel() for data, _ in coded) / max(1, size):.1f} %"
        yield Row("decode", "nvCOMP ANS", size, self._measure(work), note=note)
        seconds = self._measure(lambda: [nvcomp.encode(tensor, width) for tensor, width in tensors])
        yield Row("encode", "nvCOMP ANS", size, seconds)

    def _peer(self, peer: Peer) -> Iterator[Row | str]:
        chosen = [tensor for tensor in self.there if tensor.dtype == torch.bfloat16]
        try:
            if not chosen:
                raise Unavailable("no bf16 tensor")
            tensor = max(chosen, key=torch.Tensor.numel).reshape(-1)[: peer.most]
            work, note = peer.prepare(tensor)
        except Unavailable as error:
            yield f"{peer.name}: {error}"
            return
        yield Row("decode", peer.name, tensor.nbytes, self._measure(work), note=note)


def read(path: Path) -> list[torch.Tensor]:
    """Float tensors of a file, in its order, of at most MOST_BYTES together but at least one."""
    chosen: list[torch.Tensor] = []
    size = 0
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - safetensors' interface, no mapping
            if size and size + _size(file, name) > MOST_BYTES:
                continue
            tensor = file.get_tensor(name)
            if tensor.is_floating_point() and tensor.numel():
                chosen.append(tensor)
                size += tensor.nbytes
    if not chosen:
        raise InvalidArgument("the file has no float tensors to measure with", file=path)
    return chosen


def _size(file: Any, name: str) -> int:
    shape = file.get_slice(name).get_shape()
    return int(np.prod(shape, dtype=np.int64)) * 4


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    host = current().pinned(tensor.nbytes)
    host.copy_(_bytes(tensor))
    return host.view(tensor.dtype).view(tensor.shape)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)
