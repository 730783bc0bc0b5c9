"""Uses the installed wheel as someone would who has nothing else. An environment's Python runs it.

Checks that neuzip works without PyTorch, and that the command gives a small checkpoint back, byte for byte.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

import neuzip

NEUZIP = str(Path(sys.executable).with_name("neuzip"))


def write_checkpoint(path: Path) -> None:
    """A checkpoint of normally distributed weights, indices and a step counter."""
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.02, (512, 640)).astype(np.float32)
    tensors = {
        "embedding": weights.astype(ml_dtypes.bfloat16),
        "projection": weights.astype(np.float16),
        "norm": weights,
        "position_ids": np.arange(512, dtype=np.int64),
        "step": np.array(7, dtype=np.int64),
    }
    save_file(tensors, path, metadata={"format": "pt"})


def main() -> None:
    package = Path(neuzip.__file__).parent
    if not package.is_relative_to(sys.prefix):
        raise SystemExit(f"neuzip was imported from {package}, not from the environment")
    for part in ("csrc/cuda/decode.cu", "csrc/cuda/device.h", "formats/vectors/good/bf16_rank.nzf"):
        if not (package / part).is_file():
            raise SystemExit(f"{part} is not in the wheel")
    if (package / "csrc/cuda/emulator").exists():
        raise SystemExit("the emulator is in the wheel")
    if importlib.util.find_spec("torch") is not None:
        raise SystemExit("this environment was to have no PyTorch")

    original, compressed, restored = map(
        Path, ("small.safetensors", "small.nz.safetensors", "restored.safetensors")
    )
    write_checkpoint(original)
    for arguments in (
        ["compress", original],
        ["verify", compressed],
        ["inspect", compressed, "--html", "report.html"],
        ["diff", original, compressed],
        ["decompress", compressed, "-o", restored],
        ["doctor"],
    ):
        subprocess.run([NEUZIP, *map(str, arguments)], check=True)
    if restored.read_bytes() != original.read_bytes():
        raise SystemExit("the restored file differs from the original")
    ratio = compressed.stat().st_size / original.stat().st_size
    if ratio > 0.9:
        raise SystemExit(f"the compressed file has {ratio:.3f} of the original's size")
    print(f"wheel: {original} compressed to {ratio:.3f} and restored byte for byte")


if __name__ == "__main__":
    main()
