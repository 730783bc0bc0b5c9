"""One process of a group: ``python distributed_worker.py RANK WORLD FOLDER`` runs all cases with the others
of its group and leaves their results in FOLDER/result-RANK.json.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path

import distributed_checkpoint
import distributed_ddp
import distributed_fsdp
import torch
import torch.distributed as dist

GROUPS = {
    "ddp": distributed_ddp.CASES,
    "fsdp": distributed_fsdp.CASES,
    "checkpoint": distributed_checkpoint.CASES,
}


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    try:
        results = {group: {case.__name__: case(folder) for case in cases} for group, cases in GROUPS.items()}
        dist.barrier()
    finally:
        dist.destroy_process_group()
    (folder / f"result-{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
