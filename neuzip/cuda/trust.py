"""Whether a GPU is trusted with weights: once its kernels have passed a test there, against the CPU (spec §4).

The test runs in a process of its own, because a broken driver may crash or hang, and its verdict is kept on disk for
this GPU, driver, compiler and kernels.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from neuzip import _abi
from neuzip.cuda import sources
from neuzip.cuda.driver import Driver, Gpu, current, index_of

SECONDS = 300
"""For the self-test: compiling takes seconds, a GPU that others use takes its time, and a hang must end."""


@dataclass(frozen=True)
class Verdict:
    """Whether a device may be used, and why not. final: whether the same question has the same answer tomorrow."""

    trusted: bool
    reason: str
    final: bool = True


_verdicts: dict[tuple[Driver, int], Verdict] = {}
_warned: set[str] = set()


def why_off(index: int = 0) -> str | None:
    """Why a device is not used, None if it is. The first question about a device may run the self-test."""
    found = verdict(index)
    return None if found.trusted else found.reason


def is_trusted(device: torch.device) -> bool:
    """Whether neuzip.cuda does the work of a device. Warns, once for each reason, if a GPU is left to the CPU."""
    if device.type != current().device_type:
        return False
    reason = why_off(index_of(device))
    if reason is None:
        return True
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"neuzip does its work for {device} on the CPU: {reason}. `neuzip doctor --gpu` says more",
            RuntimeWarning,
            stacklevel=2,
        )
    return False


def verdict(index: int, fresh: bool = False) -> Verdict:
    """The verdict on a device. fresh: of a new test, whatever was found before."""
    driver = current()
    key = (driver, index)
    if fresh or key not in _verdicts:
        _verdicts[key] = _judge(driver, index, fresh)
    return _verdicts[key]


def kept_verdict(index: int) -> Verdict | None:
    """The verdict that an earlier process has left about a device without obstacles, if there is one."""
    path = cache_path(current().gpu(index))
    return None if path is None else _read(path)


def _judge(driver: Driver, index: int, fresh: bool) -> Verdict:
    obstacle = driver.obstacle(index)
    if obstacle is not None:
        return Verdict(False, obstacle, final=False)
    kept = None if fresh else kept_verdict(index)
    if kept is not None:
        return kept
    found = run_self_test(driver.self_test_command(index))
    path = cache_path(driver.gpu(index))
    if found.final and path is not None:
        _write(path, found)
    return found


def run_self_test(command: list[str], seconds: float = SECONDS) -> Verdict:
    """The verdict of a command that prints one as JSON. A crash and a hang are final; failing to start is not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return Verdict(False, f"its self-test took more than {seconds:g} s")
    except OSError as error:
        return Verdict(False, f"its self-test could not be started: {error.strerror}", final=False)
    try:
        return Verdict(**json.loads(done.stdout.strip().splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        ending = (
            signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
        )
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Verdict(False, f"its self-test crashed ({ending}): {last}")


def cache_path(gpu: Gpu) -> Path | None:
    """Where the verdict on a GPU is kept; None for a user without a home."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    key = json.dumps([asdict(gpu), sources.digest(), _abi.ABI_VERSION], sort_keys=True)
    return base / "neuzip" / f"cuda-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _read(path: Path) -> Verdict | None:
    """A kept verdict; None for what is not there, not readable or no verdict."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(fields["trusted"], bool) and isinstance(fields["reason"], str):
            return Verdict(fields["trusted"], fields["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _write(path: Path, found: Verdict) -> None:
    """Keeps a verdict if it can: a cache that cannot be written costs the next process a test."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump(asdict(found), file)
        Path(file.name).replace(path)
    except OSError:
        pass
