"""Several processes, each with a device of its own: what they train is what they train dense, to the bit.

torch's gloo takes tensors of the host only, so collectives of stand-in devices go through copies (standin/group.py).
GPUs have NCCL, with a rank for each of at most two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hardware import Gpus, Recorded
from ranks import RANKS, run_ranks

SECONDS = 240
"""After which the processes count as hung. They take about 10 on two idle cores."""

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


@pytest.fixture(scope="module")
def results(gpu_driver: Gpus, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of each rank."""
    worker = Path(__file__).with_name("group_worker.py")
    folder = tmp_path_factory.mktemp("group")
    ranks = min(RANKS, gpu_driver.count())
    library = [] if isinstance(gpu_driver, Recorded) else [str(gpu_driver.kernels)]
    return run_ranks(worker, folder, *library, seconds=SECONDS, ranks=ranks)


@pytest.mark.parametrize("case", ["ddp", "ddp fused", "fsdp", "fsdp fused"])
def test_training_equals_dense(results: list[dict[str, Any]], case: str, gpu_driver: Gpus) -> None:
    for rank, result in enumerate(results):
        found = result[case]
        assert found["ours"] == found["theirs"]
        assert found["compressed"] >= 2, "the matrices"
        assert found["devices"] == [str(gpu_driver.at(rank))]
        assert found["launched_on"] == [rank]
        assert {"nz_decode_w2", "nz_encode_w2"} <= set(found["kernels"])
    if len(results) > 1:
        first, second = (result[case]["ours"] for result in results)
        assert first[0] != second[0], "the ranks saw different data"
        assert (first[-1] == second[-1]) == case.startswith("ddp"), (
            "and hold the same weights, or shards of them"
        )
