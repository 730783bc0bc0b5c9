"""How much memory do the commands take for a file that is larger than it? Peak resident bytes of each command.

    .venv-test/bin/python bench/memory.py [--gigabytes 6.5] [--folder DIR]

Makes a safetensors file with one tensor of half its size, and runs each command on it in a process of its own, with
two threads. Counted is what the system counts (getrusage's maximum resident set), pages of memory-mapped files
included, less that of an interpreter that does nothing, measured likewise, and less the tensor that is loaded. Exits
with 1 if a command took more than 512 MiB, or if the file did not come back. Writes
bench/results/size/memory-BACKEND.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from facts import facts

BLOCK = 1 << 25  # elements made at a time
MIB = 1 << 20
LIMIT = 512 * MIB
RESULTS = Path(__file__).parent / "results" / "size"


def make_file(path: Path, size: int) -> str:
    """Writes tensors of about `size` bytes, the first of half of it; returns the file's sha256."""
    half = size // 4 // BLOCK * BLOCK or BLOCK  # elements of two bytes
    shapes = {"large": half, **{f"layer.{number}": half // 8 for number in range(8)}}
    header, at = {}, 0
    for name, count in shapes.items():
        header[name] = {"dtype": "BF16", "shape": [count], "data_offsets": [at, at + 2 * count]}
        at += 2 * count
    text = json.dumps(header).encode()
    digest = hashlib.sha256()
    values = np.random.default_rng(0).standard_normal(BLOCK, np.float32)
    with path.open("wb") as file:

        def write(data: bytes | np.ndarray) -> None:
            digest.update(data)
            file.write(data)

        write(struct.pack("<Q", len(text)) + text)
        written = 0
        while written < at:
            scale = np.float32(0.02 * (1 + written % 7))
            block = ((values * scale).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
            block = block[: at - written]
            write(block)
            written += len(block)
    return digest.hexdigest()


def shapes_of(path: Path) -> dict[str, int]:
    """Bytes of each tensor."""
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return {name: row["data_offsets"][1] - row["data_offsets"][0] for name, row in header.items()}


# A process counts as its peak what its parent had when it was started: so that is a small one.
LAUNCHER = """
import os, sys
process = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(process, 0)
with open(sys.argv[1], "w") as file:
    print(usage.ru_maxrss, file=file)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def peak(*command: str) -> tuple[int, float, int]:
    """Peak resident bytes, seconds and exit status of a Python process."""
    started = time.perf_counter()
    with tempfile.NamedTemporaryFile("r") as answer:
        launch = [sys.executable, "-S", "-c", LAUNCHER, answer.name, sys.executable, *command]
        status = subprocess.run(launch, stdout=subprocess.DEVNULL, check=False).returncode
        kibibytes = int(answer.read())
    return kibibytes * 1024, time.perf_counter() - started, status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=6.5)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the files go, three times their size"
    )
    parser.add_argument("--backend", choices=["mmap", "read"], default="mmap")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows, whole = measure(Path(folder), int(arguments.gigabytes * 1e9), arguments.backend)
    for name, row in rows["commands"].items():
        print(f"{name:12} {row['above_idle_mib']:8.0f} MiB  {row['seconds']:7.1f} s")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"memory-{arguments.backend}.json").write_text(json.dumps(rows, indent=1) + "\n")
    return (
        0 if whole and all(row["above_idle_mib"] * MIB <= LIMIT for row in rows["commands"].values()) else 1
    )


def measure(folder: Path, size: int, backend: str) -> tuple[dict, bool]:
    source, packed, back = folder / "m.safetensors", folder / "m.nz.safetensors", folder / "back.safetensors"
    sha256 = make_file(source, size)
    idle = peak("-c", "")[0]
    neuzip = ("-m", "neuzip.cli.main")
    two = ("-q", "--threads", "2")
    load = "import sys, neuzip\nwith neuzip.safe_open(sys.argv[1], 'np', threads=2) as f: f.get_tensor('layer.0')"
    commands = {
        "compress": (*neuzip, "compress", str(source), *two, "--backend", backend),
        "verify": (*neuzip, "verify", str(packed), *two, "--backend", backend),
        "decompress": (*neuzip, "decompress", str(packed), "-o", str(back), *two, "--backend", backend),
        "inspect": (*neuzip, "inspect", str(packed), *two, "--backend", backend),
        "diff": (*neuzip, "diff", str(packed), str(back), *two, "--backend", backend),
        "load": ("-c", load, str(packed)),
    }
    rows = {}
    whole = True
    for name, command in commands.items():
        resident, seconds, status = peak(*command)
        whole = whole and status == 0
        # A loaded tensor is the caller's.
        held = shapes_of(source)["layer.0"] if name == "load" else 0
        rows[name] = {
            "above_idle_mib": round((resident - idle - held) / MIB, 1),
            "seconds": round(seconds, 1),
        }
    with back.open("rb") as file:
        whole = whole and hashlib.file_digest(file, "sha256").hexdigest() == sha256
    document = {
        **facts(),
        "file_bytes": source.stat().st_size,
        "largest_tensor_bytes": size // 4 // BLOCK * BLOCK * 2 or 2 * BLOCK,
        "compressed_bytes": packed.stat().st_size,
        "backend": backend,
        "idle_mib": round(idle / MIB, 1),
        "restored": whole,
        "commands": rows,
    }
    return document, whole


if __name__ == "__main__":
    sys.exit(main())
