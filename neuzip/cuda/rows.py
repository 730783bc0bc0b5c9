"""Rows of a frame that lies on a device: only the chunks that they lie in are decoded, on the device."""

from __future__ import annotations

import numpy as np
import torch

from neuzip import frame as frames
from neuzip.cuda.decoding import Pending, Run, decode, job_records, start
from neuzip.cuda.jobs import CHUNK, JOB
from neuzip.cuda.kernels import upload
from neuzip.cuda.placed import Placed, placed


def decode_rows(
    frame: torch.Tensor, out: torch.Tensor, first_row: int = 0, name: str | None = None
) -> Pending:
    """Starts decoding rows ``first_row`` … of a frame, uint8 (frame_size,), into ``out``.

    out: contiguous, on the frame's device, of the frame's dtype and, but for the first, its dimensions. A chunk is
    compared with its checksum the first time it is decoded there, and with the rules of its streams every time. name:
    of the tensor, for errors.

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
    pending = decode([Run(frame, held, first, last - first, target, name)], verify=not seen.all())
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


GATHER_BYTES = 64 << 20
"""Dense bytes of chunks decoded to gather rows from them; for more, the whole frame is."""


def gather_rows(
    frame: torch.Tensor, indices: torch.Tensor, out: torch.Tensor, name: str | None = None
) -> Pending | None:
    """Starts decoding the rows that a device tensor of indices, int64 (n,), names, into ``out``, (n, columns).

    The host does not learn which they are, so an index out of range is the device's assertion. None, and nothing is
    done, if so many chunks would be decoded that the whole frame is better.
    """
    held = placed(frame)
    header, row = held.header, out[:1].nbytes
    if not held.is_coded or not out.numel():
        return None
    # A row of r bytes lies in at most that many chunks.
    span = (row - 2) // header.chunk_size + 2
    tasks = len(indices) * span
    if tasks >= header.chunk_count or tasks * header.chunk_size > GATHER_BYTES:
        return None
    rows = header.size // row
    torch._assert_async(((indices >= 0) & (indices < rows)).all())
    starts = indices.clamp(0, rows - 1) * row
    first = (starts // header.chunk_size).clamp(max=header.chunk_count - span)
    room = torch.empty((len(indices), span * header.chunk_size), dtype=torch.uint8, device=frame.device)
    jobs = _span_jobs(Run(frame, held, 0, span, room[:1], name), first, span)
    width = header.plan.layout.width
    launched = start(width, jobs, tasks, [(name, None, tasks)], verify=not held.verified.all())
    within = (starts - first * header.chunk_size) // out.itemsize
    units = room.view(_INTEGERS[out.itemsize])
    columns = torch.arange(out.shape[1], device=frame.device)
    out.view(units.dtype).copy_(units.gather(1, within[:, None] + columns))
    return Pending([launched])


def _span_jobs(run: Run, first: torch.Tensor, span: int) -> torch.Tensor:
    """JOB records, made on the device: like that of ``run``, but each of ``span`` chunks from its own ``first`` on."""
    header, count = run.placed.header, len(first)
    fields = _JOB_WORDS.index
    record = job_records([run]).view(np.int64)
    jobs = upload(record, first.device).view(torch.int64).view(1, -1).expand(count, -1).clone()
    numbers = torch.arange(count, device=first.device)
    jobs[:, fields("first")] = numbers * span
    jobs[:, fields("original")] += numbers * (span * header.chunk_size)
    jobs[:, fields("chunks")] += first * CHUNK.itemsize
    left = header.size // run.width - (first << header.chunk_log2)
    jobs[:, fields("units")] = left.clamp(max=span << header.chunk_log2)
    return jobs.view(-1).view(torch.uint8)


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_JOB_WORDS = [name for name in JOB.names or () if JOB[name].itemsize == 8]
"""The 64-bit fields, in the order of the record; the others follow."""
