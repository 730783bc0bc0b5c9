"""Timing: all contenders take turns, round after round; what disturbs the machine disturbs all of them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from time import perf_counter
from typing import Any

import heap

WARM = 2  # times as much free memory as there are bytes: for results and what it takes to come to them
OURS, PEER, LIMIT = "ours", "peer", "limit"


class WrongBytes(Exception):
    """A contender's output is not what it should be: its time means nothing."""


@dataclass(frozen=True)
class Label:
    """What was timed.

    memory: where the output went: "reused" or "fresh" memory, or "files". isa: of neuzip's loops. each: one
    call for each tensor, where the others have one call for all.
    """

    codec: str
    threads: int = 1
    memory: str = "fresh"
    isa: str | None = None
    each: bool = False
    role: str = PEER

    def __str__(self) -> str:
        return f"{self.codec} ({self.isa or 'any'}, {self.threads} threads, {self.memory} memory)"


@dataclass(frozen=True)
class Contender:
    """Something to time. prepare runs before each run, unclocked, and its result is what run is given.

    check: whether the last run's result is right.
    """

    label: Label
    run: Callable[[Any], Any]
    check: Callable[[Any], bool]
    prepare: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Measurement:
    """One contender's times over all rounds, in seconds, and the original bytes of a run.

    against: how many times faster it is than each peer and limit with as many threads and, with more threads,
    than itself with one; medians over the rounds, in each of which both ran.
    """

    question: str
    data: str
    label: Label
    size: int
    rounds: int
    median_seconds: float
    best_seconds: float
    against: dict[str, float] = field(default_factory=dict)

    @property
    def speed(self) -> float:
        """GB/s of original bytes, by the median."""
        return self.size / self.median_seconds / 1e9


@dataclass(frozen=True)
class Method:
    """How many rounds: `least`, and for small data more, until each contender has run over small_bytes."""

    least: int = 5
    most: int = 15
    small_bytes: int = 800_000_000

    def rounds(self, size: int) -> int:
        return max(self.least, min(self.most, self.small_bytes // max(size, 1)))


def measure(
    question: str, data: str, size: int, contenders: Sequence[Contender], rounds: int, warm: bool = True
) -> list[Measurement]:
    """Runs each contender once a round, after a round that is not counted if warm.

    Every other round runs backwards: nobody always finds the caches as the same neighbour left them.
    Raises WrongBytes.
    """
    times: list[list[float]] = [[] for _ in contenders]
    turns = list(zip(contenders, times, strict=True))
    gc.collect()
    gc.disable()
    try:
        for number in range(-1 if warm else 0, rounds):
            for contender, seconds in turns if number % 2 else reversed(turns):
                ready = contender.prepare()
                heap.warm(WARM * size)
                start = perf_counter()
                result = contender.run(ready)
                stop = perf_counter()
                if number >= 0:
                    seconds.append(stop - start)
                if number == rounds - 1 and not contender.check(result):
                    raise WrongBytes(f"{question}, {data}: {contender.label} gave wrong bytes")
                del ready, result  # unclocked, and before the next one asks for memory
    finally:
        gc.enable()
    timed = [(contender.label, seconds) for contender, seconds in zip(contenders, times, strict=True)]
    return [
        Measurement(
            question,
            data,
            label,
            size,
            rounds,
            median(seconds),
            min(seconds),
            compare(label, seconds, timed),
        )
        for label, seconds in timed
    ]


def compare(
    label: Label, seconds: Sequence[float], timed: Sequence[tuple[Label, Sequence[float]]]
) -> dict[str, float]:
    """Measurement.against."""
    found = {}
    for other, others in timed:
        if label.role != OURS:
            continue
        speedup = median(theirs / mine for theirs, mine in zip(others, seconds, strict=True))
        if other.role != OURS and other.threads == label.threads:
            found[against_name(other)] = speedup
        if other.role == OURS and label.threads > 1 and twin(other, label):
            found["1 thread"] = speedup
    return found


def against_name(label: Label) -> str:
    own = label.role == LIMIT or label.memory == "reused"
    return f"{label.codec}, {label.memory}" if own else label.codec


def twin(one: Label, many: Label) -> bool:
    """Whether `one` is `many` with a single thread."""
    return replace(many, threads=1) == one
