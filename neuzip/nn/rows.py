"""Rows of a frame (spec §5): only the chunks that they lie in are decoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from neuzip import frame
from neuzip.codec import Options
from neuzip.torch import memory


def decode_rows(
    data: np.ndarray[Any, Any], out: torch.Tensor, options: Options | None = None, first_row: int = 0
) -> None:
    """Decodes rows ``first_row`` … of a frame's bytes into ``out``, a contiguous CPU tensor of as many rows.

    Raises CorruptFrame, TruncatedInput.
    """
    header = frame.read_header(data)
    start = first_row * out[:1].nbytes
    stop = start + out.nbytes
    first, last = start // header.chunk_size, -(-stop // header.chunk_size)
    base, end = first * header.chunk_size, min(last * header.chunk_size, header.size)
    chunks = data[header.offsets[first] : header.offsets[last]]
    if (start, stop) == (base, end):
        frame.decode_chunks(header, chunks, first, last - first, memory(out), options)
        return
    wider = np.empty(end - base, np.uint8)
    frame.decode_chunks(header, chunks, first, last - first, wider, options)
    memory(out)[:] = wider[start - base : stop - base]
