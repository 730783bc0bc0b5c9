"""The verdict on a GPU: where it comes from, how long it is believed, and what a bad one does."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from neuzip.cuda import driver, sources, trust
from neuzip.cuda.driver import Gpu

PASSED = "import json; print(json.dumps({'trusted': True, 'reason': '3 frames as on the CPU'}))"
FAILED = "import json; print(json.dumps({'trusted': False, 'reason': 'other bytes'}))"
UNSURE = "import json; print(json.dumps({'trusted': False, 'reason': 'no memory', 'final': False}))"


class Fake:
    """A driver whose self-test is a script; it counts how often one is asked for."""

    device_type = "fake"

    def __init__(self, script: str, version: str = "1", reason: str | None = None) -> None:
        self.script, self.version, self.reason, self.tests = script, version, reason, 0

    def current_index(self) -> int:
        return 1

    def obstacle(self, index: int) -> str | None:
        return self.reason

    def gpu(self, index: int) -> Gpu:
        return Gpu("fake", (9, 0), f"uuid {index}", self.version, 1)

    def self_test_command(self, index: int) -> list[str]:
        self.tests += 1
        return [sys.executable, "-c", self.script]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trust, "_warned", set())
    yield tmp_path / "cache"
    driver.install(None)


def judge(fake: Fake, index: int = 0) -> trust.Verdict:
    """As a new process would."""
    driver.install(fake)  # type: ignore[arg-type]
    trust._verdicts.clear()
    return trust.verdict(index)


def test_a_verdict_is_kept(cache: Path) -> None:
    fake = Fake(PASSED)
    for _ in range(2):
        assert judge(fake).trusted
    assert trust.why_off() is None
    assert fake.tests == 1
    [kept] = (cache / "neuzip").iterdir()
    assert json.loads(kept.read_text())["trusted"] is True


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (FAILED, "other bytes"),
        ("import os; os.abort()", "crashed (SIGABRT)"),
        ("raise RuntimeError('CUDA error: an illegal memory access')", "an illegal memory access"),
        ("print('hello')", "crashed (exit code 0)"),
        ("print('{\"trusted\": true}')", "crashed (exit code 0)"),
    ],
)
def test_a_bad_verdict_is_kept_too(script: str, words: str) -> None:
    fake = Fake(script)
    for _ in range(2):
        found = judge(fake)
        assert not found.trusted and words in found.reason
    assert fake.tests == 1


def test_a_hang_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    found = trust.run_self_test([sys.executable, "-c", "import time; time.sleep(60)"], seconds=0.5)
    assert found == trust.Verdict(False, "its self-test took more than 0.5 s")


def test_what_may_be_otherwise_tomorrow_is_not_kept() -> None:
    for fake in (Fake(UNSURE, "1"), Fake(PASSED, "2", reason="no driver")):
        assert not judge(fake).trusted
        before = fake.tests
        fake.script, fake.reason = PASSED, None
        assert judge(fake).trusted
        assert fake.tests == before + 1


def test_another_gpu_driver_or_kernel_is_tested_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(PASSED)
    judge(fake)
    judge(fake, 1)
    assert fake.tests == 2
    fake.version = "2"
    judge(fake)
    assert fake.tests == 3
    monkeypatch.setattr(sources, "digest", lambda: "other kernels")
    judge(fake)
    assert fake.tests == 4


@pytest.mark.parametrize("content", ["", "{", "[]", '{"trusted": "yes", "reason": "me"}', "\0" * 100])
def test_a_damaged_cache_is_no_verdict(content: str, cache: Path) -> None:
    fake = Fake(FAILED)
    judge(fake)
    [kept] = (cache / "neuzip").iterdir()
    kept.write_text(content)
    assert not judge(fake).trusted
    assert fake.tests == 2


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    fake = Fake(PASSED)
    assert judge(fake).trusted
    assert judge(fake).trusted
    assert fake.tests == 2


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert judge(Fake(PASSED)).trusted


def test_one_warning_for_each_reason() -> None:
    judge(Fake(FAILED), 1)
    device = torch.device("privateuseone")
    driver.current().device_type = device.type  # type: ignore[misc]
    with pytest.warns(RuntimeWarning, match="on the CPU: other bytes"):
        assert not trust.is_trusted(device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not trust.is_trusted(device)
        assert not trust.is_trusted(torch.device("mps")), "other devices are nobody's business"
