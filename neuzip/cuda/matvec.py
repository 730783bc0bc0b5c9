"""Products with matrices that stay compressed: decoded where they are multiplied, a chunk at a time, and forgotten."""

from __future__ import annotations

import numpy as np
import torch

from neuzip.cuda.decoding import Pending, Run, job_records, launched
from neuzip.cuda.jobs import MATVEC, MATVEC_CHUNK_LOG2, WARPS
from neuzip.cuda.kernels import launch, upload
from neuzip.cuda.placed import Placed, placed

FUSED_ROWS = ((0, 0),)
"""Elements of a matrix, and from there on the most rows of x that it is multiplied with while it is decoded; with more,
it is decoded and multiplied by cuBLAS. None: on an H200 decoding and cuBLAS took less time at every size and number of
rows that were measured (docs/kernels.md)."""

_KERNELS = {torch.bfloat16: "bf16", torch.float16: "f16"}
_COLUMNS = 4
"""What the number of columns must be a multiple of, and the alignment of x in its elements (launch.h)."""


def is_fused(frame: torch.Tensor, x: torch.Tensor, rows: int, columns: int) -> bool:
    """Whether ``x`` (…, columns) is multiplied with a frame's matrix (rows, columns) while that is decoded."""
    batch = x.numel() // max(1, columns)
    most = max(rows_of_x for elements, rows_of_x in FUSED_ROWS if rows * columns >= elements)
    if not 1 <= batch <= most or x.dtype not in _KERNELS or columns % _COLUMNS:
        return False
    held = placed(frame)
    return _fits(held, x.dtype) and bool(held.verified.all())


def _fits(held: Placed, dtype: torch.dtype) -> bool:
    header = held.header
    return held.is_coded and header.chunk_log2 <= MATVEC_CHUNK_LOG2 and header.dtype.torch == str(dtype)[6:]


def multiply(
    frame: torch.Tensor, x: torch.Tensor, rows: int, name: str | None = None
) -> tuple[torch.Tensor, Pending]:
    """``x · Wᵀ``, (…, rows), for x (…, columns), summed in fp32; see :func:`is_fused` for when it may be called.

    A damaged chunk makes NaN of what it adds to, and the second result tells of it. Source: launch.h.
    """
    held, columns = placed(frame), x.shape[-1]
    flat = _aligned(x.reshape(-1, columns))
    batch, tasks = flat.shape[0], held.header.chunk_count
    y = torch.empty((batch, rows), dtype=x.dtype, device=x.device)
    partial = torch.empty(batch * (tasks + rows), dtype=torch.float32, device=x.device)
    record = np.zeros(1, MATVEC)
    # The job writes nothing to `original`; y stands for it.
    record["job"] = job_records([Run(frame, held, 0, tasks, y, name)])
    record["job"]["units"] = rows * columns
    record["rows"], record["columns"], record["batch"] = rows, columns, batch
    record["x"], record["y"], record["partial"] = flat.data_ptr(), y.data_ptr(), partial.data_ptr()
    sent = upload(record, x.device)
    kind = _KERNELS[x.dtype]
    status = torch.empty(tasks, dtype=torch.int32, device=x.device)
    first_bad = torch.full((1,), -1, dtype=torch.int64, device=x.device)
    shared = WARPS << (held.header.chunk_log2 + 1)
    arguments = (sent, np.uint64(tasks), status, first_bad)
    launch("matvec.cu", f"nz_matvec_{kind}", x.device, tasks, arguments, shared=shared)
    launch("matvec.cu", f"nz_matvec_sum_{kind}", x.device, batch * rows, (sent,), warps=8, block_tasks=256)
    pending = Pending([launched(status, first_bad, [(name, 0, tasks)])])
    return y.view(*x.shape[:-1], rows), pending


def _aligned(x: torch.Tensor) -> torch.Tensor:
    x = x.contiguous()
    return x.clone() if x.data_ptr() % (_COLUMNS * x.itemsize) else x
