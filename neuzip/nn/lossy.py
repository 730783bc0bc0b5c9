"""Lossy inference: models whose weights keep 0 … 3 mantissa bits. Opt-in; nothing else in the library loses a bit.

The form of the weights is that of :mod:`neuzip.nn.lossy_code`. Bits a weight, measured on the matrices of MiniLM in
bf16 with blocks of 512: 3.7 for 0 mantissa bits, 4.7 for 1, 6.6 for 3; 10.6 lossless.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from neuzip.errors import InvalidArgument
from neuzip.nn.frozen import FrozenTensor
from neuzip.nn.lossy_code import DTYPES, Precision, check_lossy, encode_lossy, precision_of
from neuzip.nn.model import MIN_SIZE, Model, Selection, convert_selected
from neuzip.nn.team import torch_options
from neuzip.nn.tensor import CompressedTensor
from neuzip.nn.weight import PIECE_BYTES, Weight
from neuzip.torch import memory


class LossyWeight(Weight):
    """A weight that holds codes and scales, in ``frame``; what is written to it is rounded."""

    __slots__ = ()
    takes_frames = False

    @classmethod
    def of_precision(
        cls,
        dense: torch.Tensor,
        precision: Precision,
        level: str = "default",
        piece_bytes: int = PIECE_BYTES,
    ) -> LossyWeight:
        """Rounds and compresses a dense tensor of any strides, on any device."""
        encoded = encode_lossy(dense.detach().contiguous().cpu(), precision, torch_options(level))
        return cls(encoded.to(dense.device), tuple(dense.shape), dense.dtype, level, piece_bytes)

    @property
    def precision(self) -> Precision:
        return precision_of(memory(self.frame.cpu()))

    def like(self, dense: torch.Tensor) -> Weight:
        return self.of_precision(dense, self.precision, self.level, self.piece_bytes)

    def shares_form(self, other: Weight) -> bool:
        same = isinstance(other, LossyWeight) and self.dtype == other.dtype
        return same and self.precision == other.precision  # type: ignore[attr-defined]

    def check(self) -> None:
        if self.frame.dtype != torch.uint8 or self.frame.dim() != 1:
            raise InvalidArgument(f"lossy bytes are uint8 (size,), not {self.frame.dtype}")
        check_lossy(memory(self.frame.cpu()), self.dtype, self.shape)


class LossyTensor(FrozenTensor):
    """A compressed tensor that stands for rounded values. Make one with :meth:`compress_lossy`.

    It never requires a gradient. Files and ``state_dict`` copies hold the rounded value, losslessly.
    """

    weight: LossyWeight
    weight_class = LossyWeight
    kind = "lossy"

    @classmethod
    def compress(
        cls, dense: torch.Tensor, level: str = "default", piece_bytes: int = PIECE_BYTES
    ) -> CompressedTensor:
        """Refused, with InvalidArgument: nothing becomes lossy without being asked to."""
        raise InvalidArgument("use compress_lossy, which takes what to keep")

    @classmethod
    def compress_lossy(
        cls,
        dense: torch.Tensor,
        mantissa_bits: int,
        block_size: int = 512,
        *,
        level: str = "default",
        piece_bytes: int = PIECE_BYTES,
    ) -> LossyTensor:
        """A rounded, compressed copy of a dense tensor of 16-, 32- or 64-bit floats.

        Of a block's largest magnitude M, an element x comes back within ``2^-(k+1) · |x| + 2^(1−2^(7−k)) ·
        M``, and M itself exactly, before the result is rounded to the tensor's dtype. k is
        ``mantissa_bits``, 0 … 3; blocks are of ``block_size`` consecutive elements.

        Raises InvalidArgument for other dtypes and options, and for NaN and infinity.
        """
        if isinstance(dense, CompressedTensor):
            dense = dense.dense()
        precision = Precision(mantissa_bits, block_size)
        return cls(LossyWeight.of_precision(dense, precision, level, piece_bytes))


def compress_model_lossy(
    model: Model,
    *,
    mantissa_bits: int,
    block_size: int = 512,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    min_size: int = MIN_SIZE,
    level: str = "default",
    piece_bytes: int = PIECE_BYTES,
) -> Model:
    """Rounds and compresses a model's parameters for inference, in place, and returns the model.

    Its results are no longer those of the original. The parameters it takes, plain or compressed, stop
    requiring gradients; adapters beside them train. ``decompress_model`` gives ordinary parameters of the
    rounded values.

    mantissa_bits: 0, 1, 2 or 3 of those a weight has. block_size: consecutive weights that share a scale,
    their largest magnitude. The others are those of :func:`compress_model`.

    Raises InvalidArgument for other options, and for a parameter with NaN or infinity or on the meta device.
    """
    precision = Precision(mantissa_bits, block_size)
    selection = Selection(include, tuple(exclude), min_size, level, piece_bytes)

    def rounded(parameter: nn.Parameter) -> nn.Parameter | None:
        if parameter.dtype not in DTYPES:
            return None
        if isinstance(parameter, LossyTensor):
            raise InvalidArgument("the parameter is lossy already; start from the original")
        packed = LossyTensor.compress_lossy(
            parameter, precision.mantissa_bits, precision.block_size, level=level, piece_bytes=piece_bytes
        )
        return nn.Parameter(packed, requires_grad=False)

    return convert_selected(model, selection, rounded)


# As for CompressedTensor.
torch.serialization.add_safe_globals([LossyTensor])
