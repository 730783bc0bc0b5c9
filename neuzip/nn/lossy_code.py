"""Weights of fewer bits, for inference: NeuZip's lossy mode (Hao et al. 2024, arXiv:2410.20650).

A block of consecutive weights is divided by its largest magnitude, its *scale*, and each quotient is
rounded to ``k`` mantissa bits and stored as a *code*: an 8-bit float of 1 sign, 7−k exponent and k mantissa
bits, without subnormals. Codes and scales are compressed losslessly, as two frames (spec §5), so that an
exponent costs its entropy, about 2.6 bits, however wide its field is.

Header, frame of the scales (one a block, of the weight's dtype), frame of the codes (U8, of the weight's
shape):

| bytes | type | name | meaning |
|---|---|---|---|
| 0–3 | u8 × 4 | `magic` | "NZLS" |
| 4 | u8 | `mantissa_bits` | k, 0 … 3 |
| 5–7 | | | padding |
| 8–11 | u32 | `block_size` | weights a block, at least 1 |
| 12–15 | | | padding |
| 16–23 | u64 | `scales_size` | bytes of the scales' frame |

This is a form in memory, not on disk: files hold the value that the codes stand for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from neuzip import frame
from neuzip.codec import Options
from neuzip.errors import CorruptFrame, InvalidArgument, TruncatedInput
from neuzip.nn.rows import decode_rows
from neuzip.torch import dtype_of, memory

_MAGIC = b"NZLS"
_HEADER = struct.Struct("<4sB3xI4xQ")
HEADER_SIZE = _HEADER.size

_PIECE = 1 << 18
"""Codes expanded at a time: the temporaries, 9 bytes a code, stay in the cache."""

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)

_MAX_BLOCK = 1 << 20


@dataclass(frozen=True)
class Precision:
    """What is kept of a weight. mantissa_bits: 0 … 3. block_size: weights that share a scale, at most 2^20.

    Raises InvalidArgument.
    """

    mantissa_bits: int = 3
    block_size: int = 512

    def __post_init__(self) -> None:
        if self.mantissa_bits not in range(4):
            raise InvalidArgument(f"mantissa_bits is 0, 1, 2 or 3, not {self.mantissa_bits}")
        if not 1 <= self.block_size <= _MAX_BLOCK:
            raise InvalidArgument(f"block_size is 1 … {_MAX_BLOCK}, not {self.block_size}")

    @property
    def top(self) -> int:
        """The exponent field of a block's largest magnitude; field ``e > 0`` means 2^(e − top)."""
        return (1 << (7 - self.mantissa_bits)) - 1


def is_lossy(data: np.ndarray[Any, Any]) -> bool:
    """Whether bytes begin as these do and not as a frame."""
    return data[:4].tobytes() == _MAGIC


def precision_of(data: np.ndarray[Any, Any]) -> Precision:
    """The precision that lossy bytes were made with. Raises CorruptFrame, TruncatedInput."""
    return parse(data).precision


def encode_lossy(dense: torch.Tensor, precision: Precision, options: Options | None = None) -> torch.Tensor:
    """The lossy bytes of a contiguous CPU tensor, uint8 (size,).

    Raises InvalidArgument for other dtypes than 16-, 32- and 64-bit floats, and for NaN and infinity.
    """
    if dense.dtype not in DTYPES:
        raise InvalidArgument(f"{dense.dtype} has no lossy form")
    flat = dense.detach().reshape(-1)
    codes = torch.empty(flat.numel(), dtype=torch.uint8)
    scales = torch.empty(-(-flat.numel() // precision.block_size), dtype=dense.dtype)
    blocks = max(1, _PIECE // precision.block_size)
    for block in range(0, len(scales), blocks):
        start, stop = block * precision.block_size, (block + blocks) * precision.block_size
        codes[start:stop], scales[block : block + blocks] = _quantise(flat[start:stop], precision)
    one = frame.encode(memory(scales), dtype_of(scales.dtype), scales.shape, options)
    two = frame.encode(memory(codes), dtype_of(torch.uint8), dense.shape, options)
    header = _HEADER.pack(_MAGIC, precision.mantissa_bits, precision.block_size, len(one))
    return torch.from_numpy(np.frombuffer(b"".join((header, one, two)), np.uint8).copy())


def _quantise(flat: torch.Tensor, precision: Precision) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, uint8 (n,), and scales (blocks,) of weights (n,)."""
    count, k = flat.numel(), precision.mantissa_bits
    wide = flat.to(torch.promote_types(flat.dtype, torch.float32))
    rows = torch.nn.functional.pad(wide, (0, -count % precision.block_size)).view(-1, precision.block_size)
    scales = rows.abs().amax(1, keepdim=True)
    if not scales.isfinite().all():
        raise InvalidArgument("NaN and infinity have no lossy form")
    quotients = rows / scales.where(scales > 0, 1)
    fraction, exponent = torch.frexp(quotients.abs())  # fraction in [1/2, 1)
    # Nearest even, in units of the k-th mantissa bit; 2^(k+1) of them carry into the exponent field.
    units = torch.round(torch.ldexp(fraction, torch.tensor(k + 1))).int()
    codes = ((exponent - 1 + precision.top) << k) + units - (1 << k)
    # Below the smallest exponent field, 1, is only zero: the nearer of the two.
    codes = codes.clamp(min=1 << k) * (quotients.abs() > 2.0**-precision.top)
    codes = codes.where(quotients >= 0, codes + 128)
    return codes.to(torch.uint8).view(-1)[:count], scales.view(-1).to(flat.dtype)


def check_lossy(data: np.ndarray[Any, Any], dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raises InvalidArgument unless lossy bytes hold this dtype and shape; CorruptFrame, TruncatedInput."""
    parts = parse(data)
    blocks = -(-int(np.prod(shape, dtype=np.int64)) // parts.precision.block_size)
    expected = (
        (parts.scales, dtype_of(dtype), (blocks,)),
        (parts.codes, dtype_of(torch.uint8), tuple(shape)),
    )
    for part, row, extents in expected:
        header = frame.read_header(part, whole=True)
        if header.dtype is not row or tuple(header.shape) != extents:
            raise InvalidArgument(
                f"the frame holds {header.dtype.name} {list(header.shape)}, not {row.name} {list(extents)}"
            )


def decode_lossy_rows(
    data: np.ndarray[Any, Any], out: torch.Tensor, options: Options | None = None, first_row: int = 0
) -> None:
    """Rows ``first_row`` … of lossy bytes into ``out``, as :func:`neuzip.nn.weight.decode` does for a frame."""

    def read(part: np.ndarray[Any, Any], rows: torch.Tensor, first: int) -> None:
        decode_rows(part, rows, options, first)

    expand_rows(parse(data), out, first_row, read)


def expand_rows(
    parts: Parts, out: torch.Tensor, first_row: int, read: Callable[[Any, torch.Tensor, int], None]
) -> None:
    """Rows ``first_row`` … of a lossy weight into ``out``, a contiguous tensor of any device.

    read: decodes elements from a given one on of a part, a frame, into a tensor of ``out``'s device.
    """
    precision = parts.precision
    count = out.numel()
    if not count:
        return
    start, block = first_row * out[0].numel(), precision.block_size
    first = start // block
    scales = torch.empty((start + count - 1) // block + 1 - first, dtype=out.dtype, device=out.device)
    read(parts.scales, scales, first)
    wide = scales.to(torch.promote_types(out.dtype, torch.float32))
    flat = out.view(-1)
    # The codes go to the end of out's own memory, where expanding them from the start never overtakes them.
    codes = flat.view(torch.uint8)[-count:]
    read(parts.codes, codes, start)
    for at in range(0, count, _PIECE):
        end = min(at + _PIECE, count)
        lead = (start + at) // block
        mine = wide[lead - first : (start + end - 1) // block + 1 - first]
        skip = start + at - lead * block
        factors = mine[:, None].expand(-1, block).reshape(-1)[skip : skip + end - at]
        flat[at:end] = _expand(codes[at:end], precision, wide.dtype).mul_(factors)


def _expand(codes: torch.Tensor, precision: Precision, dtype: torch.dtype) -> torch.Tensor:
    """The quotients, in [−1, 1], of codes: their bits are moved to where bfloat16 has them."""
    wide = codes.to(torch.int16)
    magnitude = (wide & 0x7F) << (7 - precision.mantissa_bits)
    values = magnitude.bitwise_or_((wide & 0x80) << 8).view(torch.bfloat16)
    # Field e means 2^(e − 127) there; no field but 0 is subnormal, so flushing those changes nothing.
    return values.to(dtype).mul_(2.0 ** (127 - precision.top))


@dataclass(frozen=True)
class Parts:
    """A lossy weight's bytes taken apart. scales, codes: the two frames, slices of an array or a tensor."""

    precision: Precision
    scales: Any
    codes: Any

    @property
    def frames(self) -> tuple[Any, Any]:
        return self.scales, self.codes

    def of(self, data: Any) -> Parts:
        """The parts of a copy of the bytes that lies elsewhere."""
        middle = HEADER_SIZE + len(self.scales)
        return Parts(self.precision, data[HEADER_SIZE:middle], data[middle:])


def parse(data: np.ndarray[Any, Any]) -> Parts:
    """The parts of a lossy weight's bytes. Raises CorruptFrame, TruncatedInput."""
    return parse_header(data[:HEADER_SIZE], data)


def parse_header(header: np.ndarray[Any, Any], data: Any) -> Parts:
    """The parts of ``data``, an array or a tensor, whose first HEADER_SIZE bytes are ``header``."""
    if len(header) < _HEADER.size:
        raise TruncatedInput(f"{len(header)} bytes are no lossy weight")
    magic, mantissa_bits, block_size, size = _HEADER.unpack(header.tobytes())
    if magic != _MAGIC or mantissa_bits > 3 or not 1 <= block_size <= _MAX_BLOCK:
        raise CorruptFrame("not the header of a lossy weight")
    if size > len(data) - _HEADER.size:
        raise TruncatedInput(f"the scales have {size} bytes, of {len(data) - _HEADER.size}")
    middle = HEADER_SIZE + size
    return Parts(Precision(mantissa_bits, block_size), data[HEADER_SIZE:middle], data[middle:])
