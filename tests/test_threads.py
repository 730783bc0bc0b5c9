"""The library's threads stay between calls: through forks, beside one another, and until the process ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from distributions import make, shape_of

from neuzip import _native, frame, worker
from neuzip.codec import Options
from neuzip.digest import Digest
from neuzip.layouts import DTYPES
from neuzip.worker import Worker

BF16 = DTYPES["BF16"]
DATA = make("weights", "BF16", 60_000)
OPTIONS = Options(threads=3, chunk_log2=10)
FRAME = frame.encode(DATA, BF16, shape_of(BF16, len(DATA)), OPTIONS)


def decodes(options: Options = OPTIONS) -> bool:
    out = bytearray(len(DATA))
    frame.decode_many([(FRAME, out)], options)
    return bytes(out) == DATA


def tasks() -> set[str]:
    """The threads of this process."""
    return {path.name for path in Path("/proc/self/task").iterdir()}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how many threads there are")
def test_threads_stay() -> None:
    assert decodes()
    before = tasks()
    for _ in range(20):
        assert decodes()
    assert tasks() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_children_have_their_own() -> None:
    busy = threading.Event()

    def decode_all_the_time() -> None:
        while not busy.is_set():
            assert decodes()

    # Forked at any moment of another thread's calls.
    other = threading.Thread(target=decode_all_the_time)
    other.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                signal.alarm(60)  # a child that hangs is to fail
                good = all(decodes() for _ in range(3))
                workers = len(tasks()) if sys.platform == "linux" else 2
                os._exit(0 if good and workers > 1 else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert decodes()
    finally:
        busy.set()
        other.join()


PROGRAM = """
import sys, threading
sys.path.insert(0, {here!r})
from test_threads import decodes

def forever():
    while True:
        decodes()

assert decodes()
threading.Thread(target=forever, daemon=True).start()
decodes()
"""


def test_a_process_ends_while_they_work() -> None:
    program = PROGRAM.format(here=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_signal_while_a_thread_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[threading.Event] = []

    def interrupted(work: Callable[[], None], arguments: tuple[()]) -> None:
        end = threading.Event()
        ended.append(end)
        threading.Thread(target=lambda: (work(*arguments), end.set())).start()
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "start_new_thread", interrupted)
    with pytest.raises(KeyboardInterrupt), Digest() as digest:
        digest.update([memoryview(DATA)])
    words = np.arange(1 << 16)
    with pytest.raises(KeyboardInterrupt):
        frame.encode_many([(words, DTYPES["I64"], words.shape)] * 3, OPTIONS)
    assert len(ended) == 2
    assert all(end.wait(60) for end in ended)


def test_a_call_that_fails_in_a_thread() -> None:
    made = []
    with pytest.raises(ZeroDivisionError), Worker() as thread:
        thread.call(lambda: made.append(1))
        thread.call(lambda: 1 // 0)
        thread.call(lambda: made.append(2))
        thread.wait()
    assert made == [1, 2]


class Team:
    """A team of one, which counts its calls."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

        def parallel(function: int, context: int, threads: int, flags: int) -> None:
            self.asked.append(threads)
            work(function)(context)

        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        self.parallel = kind(parallel)


@pytest.fixture
def team() -> Iterator[Team]:
    made = Team()
    _native.set_team(ctypes.cast(made.parallel, ctypes.c_void_p).value)
    yield made
    _native.set_team(None)


def test_a_team_works_for_those_who_ask(team: Team) -> None:
    assert decodes() and not team.asked
    asking = replace(OPTIONS, team=True)
    assert frame.encode(DATA, BF16, shape_of(BF16, len(DATA)), asking) == FRAME
    encoded = len(team.asked)
    assert encoded and set(team.asked) == {3}
    assert decodes(asking) and len(team.asked) == encoded + 1
    assert decodes(replace(asking, threads=1)) and len(team.asked) == encoded + 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_children_have_no_team(team: Team) -> None:
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if decodes(replace(OPTIONS, team=True)) and not team.asked else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
