"""Several processes, each with a device of its own: what they train is what they train dense, to the bit.

torch's gloo takes tensors of the host only, so collectives go through copies (standin/group.py). NCCL, and how
transfers and kernels overlap on a GPU, is not shown here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from standin.driver import StandIn

RANKS = 2
SECONDS = 240
"""After which the processes count as hung. They take about 10 on two idle cores."""

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


@pytest.fixture(scope="module")
def results(standin_driver: StandIn, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of each rank."""
    folder = tmp_path_factory.mktemp("group")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo" if Path("/sys/class/net/lo").exists() else "lo0",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    worker = Path(__file__).with_name("group_worker.py")
    logs = [folder / f"log-{rank}" for rank in range(RANKS)]
    processes = []
    for rank, log in enumerate(logs):
        arguments = [str(rank), str(RANKS), str(folder), str(standin_driver.kernels)]
        with log.open("wb") as out:
            command = [sys.executable, str(worker), *arguments]
            processes.append(subprocess.Popen(command, stdout=out, stderr=out, env=environment))
    deadline = time.monotonic() + SECONDS
    try:
        codes = [process.wait(max(0.1, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0] * RANKS, "\n".join(log.read_text(errors="replace")[-3000:] for log in logs)
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("case", ["ddp", "ddp fused", "fsdp", "fsdp fused"])
def test_training_equals_dense(results: list[dict[str, Any]], case: str) -> None:
    for rank, result in enumerate(results):
        found = result[case]
        assert found["ours"] == found["theirs"]
        assert found["compressed"] >= 2, "the matrices"
        assert found["devices"] == [f"standin:{rank}"]
        assert found["launched_on"] == [rank]
        assert {"nz_decode_w2", "nz_encode_w2"} <= set(found["kernels"])
    first, second = (result[case]["ours"] for result in results)
    assert first[0] != second[0], "the ranks saw different data"
    assert (first[-1] == second[-1]) == case.startswith("ddp"), "and hold the same weights, or shards of them"
