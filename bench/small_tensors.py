"""How long do files of very many small tensors take? Beside stock safetensors, in turn, in processor time.

    .venv-test/bin/python bench/small_tensors.py [--count 100000] [--rounds 3]

All tensors of a file have as many bytes and the same dtype, and are random weights. Compared are compress_file and
save_file with safetensors' save_file, and load_file with its own, as the smallest of the rounds; the files lie in
memory (/dev/shm) where there is such a place, so that no disk is measured. Exits with 1 if one of them takes more than
three times as long.
Writes bench/results/size/small_tensors.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy
from facts import facts

import neuzip.numpy
from neuzip.checkpoint import compress_file

RESULTS = Path(__file__).parent / "results" / "size"
MOST = 3
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}
# dtype and bytes of a tensor. Those below 2 KiB are kept as they are, whatever their dtype.
CASES = (
    ("F32", 64),
    ("F32", 256),
    ("F32", 1024),
    ("BF16", 2048),
    ("BF16", 4096),
    ("BF16", 8192),
    ("BF16", 16384),
    ("F32", 4096),
)
AGAINST = {"compress_file": "stock save", "save_file": "stock save", "load_file": "stock load"}


def spend(work: Callable[[], object]) -> tuple[float, float]:
    """Processor and wall seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(folder: Path, count: int, dtype: str, size: int, rounds: int) -> dict:
    width = DTYPES[dtype].itemsize
    values = np.random.default_rng(0).standard_normal((count, size // width // 4, 4), np.float32)
    values = values.astype(DTYPES[dtype], copy=False)
    tensors = {f"model.layers.{i // 100}.experts.{i % 100}.weight": values[i] for i in range(count)}
    plain, packed, saved = folder / "a.safetensors", folder / "b.safetensors", folder / "c.safetensors"
    work = {
        "stock save": lambda: safetensors.numpy.save_file(tensors, plain),
        "compress_file": lambda: compress_file(plain, packed, force=True),
        "save_file": lambda: neuzip.numpy.save_file(tensors, saved),
        "stock load": lambda: safetensors.numpy.load_file(plain),
        "load_file": lambda: neuzip.numpy.load_file(packed),
    }
    best: dict[str, tuple[float, float]] = {}
    for _ in range(rounds):
        for name, call in work.items():
            best[name] = min(best.get(name, (np.inf, np.inf)), spend(call))
    loaded = neuzip.numpy.load_file(packed)
    assert all(loaded[name].tobytes() == tensor.tobytes() for name, tensor in tensors.items())
    return {
        "dtype": dtype,
        "tensor_bytes": size,
        "file_bytes": plain.stat().st_size,
        "compressed_bytes": packed.stat().st_size,
        "seconds": {
            name: {"cpu": round(cpu, 3), "wall": round(wall, 3)} for name, (cpu, wall) in best.items()
        },
        "times": {name: round(best[name][0] / best[other][0], 2) for name, other in AGAINST.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        rows = [measure(Path(folder), arguments.count, *case, arguments.rounds) for case in CASES]
    document = {**facts(), "count": arguments.count, "files": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "small_tensors.json").write_text(json.dumps(document, indent=1) + "\n")
    for row in rows:
        print(row["dtype"], row["tensor_bytes"], row["times"], row["seconds"])
    return 0 if all(times <= MOST for row in rows for times in row["times"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
