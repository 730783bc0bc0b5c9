"""Other people's decoders on a GPU, for `neuzip bench --gpu`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any, Protocol

import torch

from neuzip.cli.peers import FOREIGN
from neuzip.cuda.driver import current


class Unavailable(Exception):
    """A peer cannot be measured here; the message says why."""


class Peer(Protocol):
    """most: elements of a tensor to try it with."""

    name: str
    most: int

    def prepare(self, tensor: torch.Tensor) -> tuple[Callable[[], Any], str]:
        """What decodes a compressed copy of a flat bf16 tensor, and a remark. Raises Unavailable."""


class DFloat11:
    """DFloat11 (Zhang et al. 2025, arXiv:2504.11651), called as compress_model of dfloat11 0.5 does to check itself."""

    name = "DFloat11"
    most = 1 << 22  # it encodes in a Python loop

    _BYTES_PER_THREAD = 8
    _THREADS = 512

    def prepare(self, tensor: torch.Tensor) -> tuple[Callable[[], Any], str]:
        try:
            with redirect_stdout(sys.stderr):  # it prints its code table
                return self._prepare(tensor)
        except ModuleNotFoundError as error:
            raise Unavailable(f"{error.name} is not installed: pip install dfloat11") from None
        except FOREIGN as error:
            raise Unavailable(f"failed: {type(error).__name__}: {error}") from None

    def _prepare(self, tensor: torch.Tensor) -> tuple[Callable[[], Any], str]:
        kernels, coder = import_module("dfloat11.dfloat11"), import_module("dfloat11.dfloat11_utils")
        cupy = import_module("cupy")
        host = tensor.cpu()
        _, counter = coder.get_codec(host)
        codec, _, table = coder.get_32bit_codec(counter)
        encoded, rest, positions, gaps, _ = coder.encode_weights(
            [host], codec, self._BYTES_PER_THREAD, self._THREADS
        )
        luts = coder.get_luts(table)
        steps = positions.view(torch.uint32).numpy()
        shared = self._THREADS * 4 + 4 + int((steps[1:] - steps[:-1]).max()) * 2
        out = torch.empty_like(tensor)
        device = tensor.device
        parts = [part.to(device) for part in (luts, encoded, rest, positions, gaps)]
        grid = -(-encoded.numel() // (self._THREADS * self._BYTES_PER_THREAD))
        sizes = [luts.shape[0], encoded.numel(), rest.numel()]

        def work() -> None:
            # Addresses are asked of the tensors each time, so that these live as long as the work.
            arguments = [*(part.data_ptr() for part in (*parts, out)), *sizes]
            stream = current().stream_handle(device.index)
            with cupy.cuda.Device(device.index), cupy.cuda.ExternalStream(stream, device.index):
                kernels._decode(grid=(grid,), block=(self._THREADS,), shared_mem=shared, args=arguments)

        work()
        if not torch.equal(out.view(torch.int16), tensor.view(torch.int16)):
            raise Unavailable("gave other bits back")
        size = sum(part.nbytes for part in parts)
        return work, f"to {100 * size / tensor.nbytes:.1f} %, {tensor.numel()} elements"
