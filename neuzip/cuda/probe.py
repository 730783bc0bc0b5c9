"""What `neuzip doctor` asks about CUDA: ``python -m neuzip.cuda.probe [--test]`` prints a JSON list of devices.

In a process of its own, because a broken driver may crash or hang.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from neuzip.cuda.obstacle import torch_obstacle


def devices(test: bool) -> list[dict[str, Any]]:
    """For each device ``name``, whether it is ``used``, and a ``detail``. test: judge them anew, by the self-test."""
    reason = torch_obstacle()
    if reason is not None:
        return [_described("cuda", False, reason)]
    from neuzip.cuda.driver import current

    driver = current()
    reason = driver.obstacle(0)
    if reason is not None:
        return [_described(driver.device_type, False, reason)]
    return [_examined(index, test) for index in range(driver.count())]


def _examined(index: int, test: bool) -> dict[str, Any]:
    from neuzip.cuda import trust
    from neuzip.cuda.driver import current

    driver = current()
    name = f"{driver.device_type}:{index}"
    reason = driver.obstacle(index)
    if reason is not None:
        return _described(name, False, reason)
    gpu = driver.gpu(index)
    title = f"{gpu.name} (sm_{gpu.capability[0]}{gpu.capability[1]}, driver {gpu.driver})"
    found = trust.verdict(index, fresh=True) if test else trust.kept_verdict(index)
    if found is None:
        return _described(name, True, f"{title}: its self-test runs when it is first used, or with --gpu")
    state = "passed its self-test" if found.trusted else "is left to the CPU"
    return _described(name, found.trusted, f"{title} {state}: {found.reason}")


def _described(name: str, used: bool, detail: str) -> dict[str, Any]:
    return {"name": name, "used": used, "detail": detail}


if __name__ == "__main__":
    json.dump(devices("--test" in sys.argv[1:]), sys.stdout)
    sys.stdout.write("\n")
