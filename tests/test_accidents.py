"""Killed at any moment, full disks, two at once: the old state or the new, and the next run goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import ORIGINAL, snapshot
from safetensors_file import Tensor, build, weights
from victim import BUSY

from neuzip import draft, member
from neuzip.checkpoint import compress_file, decompress_file, verify_file
from neuzip.errors import DestinationBusy, StorageError

HERE = Path(__file__).parent


class Victim:
    """tests/victim.py at work."""

    def __init__(self) -> None:
        command = [sys.executable, str(HERE / "victim.py")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(
        self,
        what: str,
        source: Path,
        destination: Path,
        at: int | None = None,
        after: float | None = None,
        **options: Any,
    ) -> None:
        request = {"what": what, "source": str(source), "destination": str(destination)}
        assert self.process.stdin
        text = json.dumps({**request, "at": at, "after": after, "options": options})
        print(text, file=self.process.stdin, flush=True)

    def end(self) -> tuple[int, int]:
        """Exit status, and file operations begun."""
        assert self.process.stdout
        status, count = self.process.stdout.readline().split()
        return int(status), int(count)

    def run(self, what: str, source: Path, destination: Path, **options: Any) -> tuple[int, int]:
        self.start(what, source, destination, **options)
        return self.end()


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    found = Victim()
    yield found
    assert found.process.stdin
    found.process.stdin.close()
    assert found.process.wait(timeout=10) == 0


def test_ctrl_c_before_any_line(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "interrupted.py"), str(tmp_path), "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 8


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.name.startswith(".neuzip")]


def state(path: Path) -> dict[str, tuple[str, int]] | None:
    return snapshot(path) if path.exists() else None


def prepare(what: str, start: Path, root: Path) -> tuple[Path, Path, Any]:
    """Source and destination of a job, and the state that the destination is to have."""
    packed = root / "packed"
    compress_file(start, packed, threads=1)
    whole = snapshot(packed if what == "compress" else start)
    if what == "compress":
        packed.rename(root / "kept") if packed.is_file() else None
        return start, root / "out", whole
    return packed, root / "out", whole


@pytest.mark.parametrize("remove", [False, True])
@pytest.mark.parametrize("directory", [False, True])
@pytest.mark.parametrize("what", ["compress", "decompress"])
def test_killed_before_any_file_operation(
    what: str, directory: bool, remove: bool, source: Path, folder: Path, tmp_path: Path, victim: Victim
) -> None:
    start, out, whole = prepare(what, folder if directory else source, tmp_path)
    before = snapshot(start)
    status, operations = victim.run(what, start, tmp_path / "counted")
    assert status == 0
    # In a directory every third is enough: the operations of one file are those of the next.
    for at in range(1, operations + 200, 3 if directory else 1):
        status, _ = victim.run(what, start, out, at=at, remove=remove)
        assert state(out) in (None, whole)
        if state(start) != before:
            assert remove and state(out) == whole, "the source is lost"
        if status == 0 or state(out) == whole:
            break
        assert status == -signal.SIGKILL
    assert state(out) == whole
    assert at > 6
    # Whatever is left of the last one is taken away with the next result.
    if not remove:
        assert victim.run(what, start, out, force=True)[0] == 0
        assert state(out) == whole
        assert not leftovers(tmp_path)


@pytest.mark.parametrize("directory", [False, True])
@pytest.mark.parametrize("what", ["compress", "decompress"])
def test_killed_at_random_moments_over_an_old_result(
    what: str, directory: bool, source: Path, folder: Path, tmp_path: Path, victim: Victim
) -> None:
    start, out, whole = prepare(what, folder if directory else source, tmp_path)
    if directory:
        out.mkdir()
        (out / "config.json").write_text("old")
    else:
        out.write_bytes(b"old")
    old = snapshot(out)
    began = time.monotonic()
    assert victim.run(what, start, tmp_path / "timed")[0] == 0
    seconds = time.monotonic() - began
    rng, killed = random.Random(4), 0
    for _ in range(40):
        status, _ = victim.run(what, start, out, force=True, after=rng.uniform(0, seconds))
        killed += status == -signal.SIGKILL
        assert state(out) in (old, whole)
    assert killed > 15
    assert victim.run(what, start, out, force=True)[0] == 0
    assert state(out) == whole
    assert not leftovers(tmp_path)


def test_a_replacement_of_a_directory_that_cannot_be_one_step(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two directories cannot change places at once, the next call puts the old one back first."""
    out = tmp_path / "out"
    compress_file(folder, out)
    whole = snapshot(out)
    monkeypatch.setattr(draft._system, "exchange_paths", lambda first, second: False)
    compress_file(folder, out, force=True)
    assert snapshot(out) == whole
    assert not leftovers(tmp_path)

    class Killed(BaseException):
        pass

    rename = Path.rename

    def kill(path: Path, target: Path) -> None:
        if target == out:
            raise Killed
        rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "rename", kill)
        compress_file(folder, out, force=True)
    assert not out.exists()
    with pytest.raises(Exception, match="exists"):
        compress_file(folder, out)
    assert snapshot(out) == whole


def test_the_processes_on_one_destination(tmp_path: Path, source: Path) -> None:
    """While one writes, another is told so; the first is not disturbed."""
    out, told = tmp_path / "out", []

    def second(done: int, total: int) -> None:
        if not done:  # not begun
            return
        with pytest.raises(DestinationBusy, match="another process") as caught:
            compress_file(source, out, force=True)
        assert caught.value.file == str(out)
        told.append(done)

    compress_file(source, out, progress=second)
    assert told
    assert verify_file(out).files
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("directory", [False, True])
def test_many_processes_on_one_destination(
    source: Path, folder: Path, tmp_path: Path, directory: bool
) -> None:
    out, start = tmp_path / "out", folder if directory else source
    victims = [Victim() for _ in range(3)]
    wins, busy = 0, 0
    for _ in range(8):
        for victim in victims:
            victim.start("compress", start, out, force=True)
        ends = [victim.end()[0] for victim in victims]
        wins += ends.count(0)
        busy += ends.count(BUSY)
        assert set(ends) <= {0, BUSY}
        assert 0 in ends
    assert wins and busy
    assert verify_file(out).files
    assert not leftovers(tmp_path)
    for victim in victims:
        assert victim.process.stdin
        victim.process.stdin.close()
        victim.process.wait(timeout=10)


def test_without_locks(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems have none: then the lock's name is the lock, and a killed process's is named."""

    def refuse(file: object, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(draft.fcntl, "flock", refuse)
    compress_file(source, tmp_path / "out")
    assert not leftovers(tmp_path)
    lock = draft._beside(tmp_path / "out", "lock")
    lock.touch()
    with pytest.raises(DestinationBusy, match=lock.name):
        compress_file(source, tmp_path / "out", force=True)
    assert lock.exists()


def count_members(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are compressed, restored or copied from now on."""
    names: list[str] = []
    for function in ("compress", "restore", "copy"):
        real = getattr(member, function)

        def counting(file: Any, target: Path, *rest: Any, real: Any = real) -> Any:
            names.append(target.name)
            return real(file, target, *rest)

        monkeypatch.setattr(member, function, counting)
    return names


@pytest.mark.parametrize("what", ["compress", "decompress"])
def test_an_interrupted_directory_is_resumed(
    what: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, out, whole = prepare(what, folder, tmp_path)
    work = compress_file if what == "compress" else decompress_file
    names = count_members(monkeypatch)

    def interrupt(done: int, total: int) -> None:
        if done > 0.6 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        work(start, out, progress=interrupt)
    assert caught.value.__notes__ == ["what is done is kept: repeat the command to resume"]
    assert not out.exists()
    before = names.copy()
    names.clear()
    calls: list[int] = []
    report = work(start, out, progress=lambda done, total: calls.append(done))
    assert calls == sorted(calls)
    assert calls[-1] == report.original_size
    assert snapshot(out) == whole
    assert not leftovers(tmp_path)
    # Only the file that was in work is done again.
    assert set(before[:-1]).isdisjoint(names)
    assert len(before) > 3


@pytest.mark.parametrize("change", ["source", "draft", "removed", "level", "journal"])
def test_what_has_changed_is_not_resumed(change: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def interrupt(done: int, total: int) -> None:
        if done > 0.6 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress_file(folder, out, progress=interrupt)
    partial, journal = draft._beside(out, "partial"), draft._beside(out, "lock")
    assert (partial / "config.json").exists()
    options: dict[str, Any] = {}
    if change == "source":
        (folder / "config.json").write_text('{"model_type": "other"}')
    elif change == "draft":
        (partial / "config.json").write_text('{"model_type": "LLAMA"}')
    elif change == "removed":
        (folder / "config.json").unlink()
    elif change == "level":
        options["level"] = "max"
    else:
        journal.write_bytes(journal.read_bytes()[:-20])
    compress_file(folder, out, **options)
    clean = tmp_path / "clean"
    compress_file(folder, clean, **options)
    assert snapshot(out) == snapshot(clean)
    assert not leftovers(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    root = tmp_path / "disk"
    root.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(root)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a file system can only be mounted by root, and not in every container")
    yield root
    subprocess.run(["umount", str(root)], check=True)


@pytest.mark.parametrize("directory", [False, True])
def test_a_full_disk(directory: bool, tmp_path: Path, small_disk: Path) -> None:
    start = tmp_path / "model"
    start.mkdir()
    for number in range(3):
        tensors = [Tensor("w", "BF16", (1 << 18,), weights("BF16", 1 << 18, number))]
        (start / f"{number}.safetensors").write_bytes(build(tensors))
    if not directory:
        tensors = [Tensor("w", "F32", (1 << 19,), weights("F32", 1 << 19))]
        start = tmp_path / "model.safetensors"
        start.write_bytes(build(tensors))
    out, before = small_disk / "out", snapshot(start)
    with pytest.raises(StorageError, match="No space") as caught:
        compress_file(start, out, remove=True)
    assert caught.value.file is not None
    assert caught.value.file.startswith(str(out))
    assert not out.exists()
    assert snapshot(start) == before
    if directory:
        # Room is made, and the rest fits.
        subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
        compress_file(start, out, remove=True)
        assert not start.exists()
        decompress_file(out, start)
        assert snapshot(start) == before
    assert not leftovers(small_disk)


def test_a_draft_of_a_killed_process_is_replaced(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    draft._beside(out, "partial").write_bytes(b"half")
    draft._beside(out, "lock").touch()
    compress_file(source, out)
    assert not leftovers(tmp_path)
    decompress_file(out, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == ORIGINAL
