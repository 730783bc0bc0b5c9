"""Weights whose exponents nvCOMP codes (neuzip.cuda.nvcomp): in a GPU's memory, and nowhere else."""

from __future__ import annotations

from typing import Any

import torch

from neuzip.errors import InvalidArgument
from neuzip.nn.tensor import CompressedTensor
from neuzip.nn.weight import CHUNK_LOG2, PIECE_BYTES, Weight
from neuzip.torch import dtype_of, works_on


class NvcompWeight(Weight):
    """A weight that holds nvCOMP's bytes in ``frame``. Off its GPU it is an ordinary one."""

    __slots__ = ()
    takes_frames = False

    @classmethod
    def of(
        cls,
        dense: torch.Tensor,
        level: str = "default",
        piece_bytes: int = PIECE_BYTES,
        chunk_log2: int = CHUNK_LOG2,
    ) -> NvcompWeight:
        """Compresses a dense tensor that lies on a GPU. Raises InvalidArgument elsewhere, and without nvCOMP."""
        if not works_on(dense.device):
            raise InvalidArgument(
                f"nvCOMP codes what lies on a GPU that passed its self-test, not on {dense.device}"
            )
        from neuzip.cuda.nvcomp import encode
        from neuzip.nn.device import remember_held

        layout = dtype_of(dense.dtype).layout
        data, held = encode(dense.detach().contiguous(), layout.width)
        remember_held(data, held)
        return cls(data, tuple(dense.shape), dense.dtype, level, piece_bytes, chunk_log2)

    def shares_form(self, other: Weight) -> bool:
        return isinstance(other, NvcompWeight) and self.dtype == other.dtype and self.device == other.device

    def check(self) -> None:
        raise InvalidArgument("nvCOMP's bytes are not read from anywhere")

    def copy(self, device: Any = None) -> Weight:
        """On a GPU, a weight of the same bytes; elsewhere an ordinary one of the same value."""
        if device is None or works_on(torch.device(device)):
            return super().copy(device)
        return Weight.of(self.dense().to(device), self.level, self.piece_bytes, self.chunk_log2)

    def offloaded(self, target: torch.device) -> Weight:
        raise InvalidArgument("nvCOMP's bytes do not leave the GPU; compress with coder='neuzip' to offload")


class NvcompTensor(CompressedTensor):
    """A compressed tensor whose exponents are coded by nvCOMP. Files and pickles hold neuzip's frames."""

    weight_class = NvcompWeight

    @classmethod
    def compress(
        cls, dense: torch.Tensor, level: str = "default", piece_bytes: int = PIECE_BYTES
    ) -> CompressedTensor:
        """A compressed copy of a dense float tensor on a GPU. Raises InvalidArgument for others."""
        if isinstance(dense, CompressedTensor):
            dense = dense.dense()
        if not dense.is_floating_point():
            raise InvalidArgument(f"only float tensors are compressed in memory, not {dense.dtype}")
        return cls(NvcompWeight.of(dense, level, piece_bytes))

    def whole_frame(self) -> torch.Tensor | None:
        """None: its bytes are no frame, so that files get the value, coded anew."""
        return None

    def __reduce_ex__(self, protocol: Any) -> Any:
        saved: Any = CompressedTensor.compress(self.dense(), self.weight.level, self.weight.piece_bytes)
        if isinstance(self, torch.nn.Parameter):
            saved = torch.nn.Parameter(saved, requires_grad=self.requires_grad)
        return saved.__reduce_ex__(protocol)
