"""Rows of a frame that lies on a device: only the chunks that they lie in are decoded, on the device."""

from __future__ import annotations

import torch

from neuzip import frame as frames
from neuzip.cuda.decoding import Pending, Run, decode
from neuzip.cuda.placed import Placed, placed


def decode_rows(frame: torch.Tensor, out: torch.Tensor, first_row: int = 0) -> Pending:
    """Starts decoding rows ``first_row`` … of a frame, uint8 (frame_size,), into ``out``.

    out: contiguous, on the frame's device, of the frame's dtype and, but for the first, its dimensions. A chunk is
    compared with its checksum the first time it is decoded there, and with the rules of its streams every time.

    Raises CorruptFrame, TruncatedInput, UnsupportedFormat for the header; the result tells of the chunks.
    """
    held = placed(frame)
    if not out.numel():
        return Pending()
    start = first_row * out[:1].nbytes
    stop = start + out.nbytes
    if not held.is_coded:
        _decode_on_host(frame, held, start, out)
        return Pending()
    header = held.header
    first, last = start // header.chunk_size, -(-stop // header.chunk_size)
    base, end = first * header.chunk_size, min(last * header.chunk_size, header.size)
    exact = (start, stop) == (base, end)
    target = out if exact else torch.empty(end - base, dtype=torch.uint8, device=frame.device)
    seen = held.verified[first:last]
    pending = decode([Run(frame, held, first, last - first, target)], verify=not seen.all())
    seen[:] = True
    if not exact:
        _bytes(out).copy_(target[start - base : stop - base])
    return pending


def _decode_on_host(frame: torch.Tensor, held: Placed, start: int, out: torch.Tensor) -> None:
    """Tiny tensors and those without planes."""
    whole = torch.empty(held.header.size, dtype=torch.uint8)
    frames.decode(frame.cpu().numpy(), whole.numpy())
    _bytes(out).copy_(whole[start : start + out.nbytes])


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)
