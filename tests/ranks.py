"""Process groups of the tests: a worker program for each rank, on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RANKS = 2


def run_ranks(
    worker: Path, folder: Path, *arguments: str, seconds: float, ranks: int = RANKS
) -> list[dict[str, Any]]:
    """The results of all ranks, each a process of its own: ``worker RANK RANKS FOLDER ARGUMENTS`` writes
    ``FOLDER/result-RANK.json``. seconds: after which the processes count as hung.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo" if Path("/sys/class/net/lo").exists() else "lo0",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    logs = [folder / f"log-{rank}" for rank in range(ranks)]
    processes = []
    for rank, log in enumerate(logs):
        command = [sys.executable, str(worker), str(rank), str(ranks), str(folder), *arguments]
        with log.open("wb") as out:
            processes.append(subprocess.Popen(command, stdout=out, stderr=out, env=environment))
    deadline = time.monotonic() + seconds
    try:
        codes = [process.wait(max(0.1, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0] * ranks, "\n".join(log.read_text(errors="replace")[-3000:] for log in logs)
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(ranks)]
