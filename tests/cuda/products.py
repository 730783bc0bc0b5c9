"""Launches that multiply with compressed matrices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import chunk_cases as cases
import ml_dtypes
import numpy as np
from chunk_cases import Chunks
from script import Script

from neuzip import _native
from neuzip.cuda.jobs import JOB, MATVEC, WARPS
from neuzip.layouts import LAYOUTS

KERNELS = {"bf16": ("bf16", np.dtype(ml_dtypes.bfloat16)), "fp16": ("f16", np.dtype(np.float16))}
NONE = (1 << 64) - 1


def matrix(values: np.ndarray, log2: int, level: int = 0) -> Chunks:
    """A matrix (rows, columns) of halves, encoded by the CPU."""
    layout = LAYOUTS[next(name for name, (_, dtype) in KERNELS.items() if dtype == values.dtype)]
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    blob = _native.plan(layout.id, level, log2, data, values.size)
    return cases.encode(f"{layout.name} {values.shape}", layout, data.tobytes(), blob, log2)


@dataclass(frozen=True)
class Product:
    """y: (batch, rows). status: of each chunk."""

    y: np.ndarray
    status: np.ndarray
    first_bad: int


def multiply(
    program: Path, weight: Chunks, shape: tuple[int, int], x: np.ndarray, *, grid: int = 2, seed: int = 0
) -> Product:
    """x (batch, columns) times the transpose of a compressed matrix of a shape."""
    (rows, columns), batch, chunks = shape, len(x), len(weight.records)
    name, dtype = KERNELS[weight.layout.name]
    record = np.zeros(1, MATVEC)
    job = record["job"]
    job["units"], job["kind"] = rows * columns, weight.table[0] if weight.table else 0
    job["chunk_log2"], job["width"] = weight.log2, 2
    record["rows"], record["columns"], record["batch"] = rows, columns, batch
    script = Script()
    matvec = script.buffer(record)
    y = script.buffer(b"\x77" * (batch * rows * 2), 2, kept=True)
    status = script.buffer(np.full(chunks, 99, np.uint32), kept=True)
    first_bad = script.buffer(np.array([NONE], np.uint64), kept=True)
    for field, buffer in (
        ("x", script.buffer(np.ascontiguousarray(x).reshape(-1).view(np.uint8), 8)),
        ("y", y),
        ("partial", script.buffer(b"\xff" * (4 * batch * (chunks + rows)), 4)),
        ("packed", script.buffer(weight.packed, 4)),
        ("chunks", script.buffer(weight.records)),
        ("tables", script.buffer(weight.table or b"\0", 4)),
    ):
        within = JOB.fields[field] if field in JOB.names else MATVEC.fields[field]
        script.point(matvec, within[1], buffer)
    shared = WARPS << (weight.log2 + 1)
    arguments = [matvec, np.uint64(chunks), status, first_bad]
    script.launch(f"nz_matvec_{name}", grid, 32 * WARPS, arguments, shared=shared)
    script.launch(f"nz_matvec_sum_{name}", grid, 256, [matvec])
    [[product, faults, lowest]] = script.run(program, [seed])
    return Product(
        np.frombuffer(product, dtype).reshape(batch, rows),
        np.frombuffer(faults, np.uint32),
        int(np.frombuffer(lowest, np.uint64)[0]),
    )


def weights(dtype: np.dtype, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Normally distributed."""
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype(np.float32).astype(dtype)
