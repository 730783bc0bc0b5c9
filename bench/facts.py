"""What a measurement that needs no peers was made of and on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any


def facts() -> dict[str, Any]:
    """Commit, machine and versions. load: processes that wanted a processor in the minute before."""
    where = Path(__file__).parent
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=where, capture_output=True, text=True, check=False
    )
    names = Path("/proc/cpuinfo")
    models = (
        [line for line in names.read_text().splitlines() if line.startswith("model name")]
        if names.exists()
        else []
    )
    return {
        "commit": commit.stdout.strip() or None,
        "processor": models[0].partition(":")[2].strip() if models else platform.machine(),
        "processors": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("neuzip-codec", "numpy", "safetensors")},
    }
