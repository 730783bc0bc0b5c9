"""Launches of the decoding kernels over chunks, and what must come of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from chunk_cases import Chunks, decode_one
from script import Buffer, Script

from neuzip._native import checksum64
from neuzip.cuda.jobs import JOB, WARPS

NONE = (1 << 64) - 1
"""No task is bad."""


@dataclass(frozen=True)
class _Kept:
    chunks: Sequence[Chunks]
    status: int
    first_bad: int
    originals: list[int]
    """Numbers among the kept buffers."""


def job_buffer(
    script: Script, cases: Sequence[Chunks], places: dict[str, list[Buffer | None]], **fields: Sequence[int]
) -> Buffer:
    """JOB records of cases, their chunks numbered through, with pointers to each case's buffer for a field.

    fields: other fields' values for each case.
    """
    records = np.zeros(len(cases), JOB)
    first = 0
    for record, case in zip(records, cases, strict=True):
        record["first"] = first
        record["units"] = case.units
        record["kind"] = case.table[0] if case.table else 0
        record["chunk_log2"] = case.log2
        record["width"] = case.layout.width
        first += -(-case.units >> case.log2)
    for name, values in fields.items():
        records[name] = values
    jobs = script.buffer(records)
    for name, buffers in places.items():
        for number, buffer in enumerate(buffers):
            if buffer is not None:
                script.point(jobs, number * JOB.itemsize + JOB.fields[name][1], buffer)
    return jobs


def _add(script: Script, cases: Sequence[Chunks], verify: bool, grid: int, kept: int) -> _Kept:
    """Adds one launch for cases of one width, and its verification."""
    width = cases[0].layout.width
    tasks = sum(len(case.records) for case in cases)
    # Frames begin at multiples of 4 and originals at multiples of a unit, neither at better ones.
    originals = [
        script.buffer(b"\xa5" * len(case.original), width * (1 + number % 7), kept=True)
        for number, case in enumerate(cases)
    ]
    jobs = job_buffer(
        script,
        cases,
        {
            "original": list(originals),
            "packed": [script.buffer(case.packed, 4 * (1 + i % 5)) for i, case in enumerate(cases)],
            "chunks": [script.buffer(case.records) for case in cases],
            "tables": [
                script.buffer(case.table, 4 * (i % 3)) if case.table else None for i, case in enumerate(cases)
            ],
        },
    )
    status = script.buffer(np.full(tasks, 99, np.uint32), kept=True)
    first_bad = script.buffer(np.array([NONE], np.uint64), kept=True)
    arguments = [jobs, np.uint32(len(cases)), np.uint64(tasks), status, first_bad]
    script.launch(f"nz_decode_w{width}", grid, 32 * WARPS, arguments)
    if verify:
        script.launch("nz_verify", grid, 32 * WARPS, arguments)
    return _Kept(cases, kept + len(cases), kept + len(cases) + 1, list(range(kept, kept + len(cases))))


def check(
    program: Path, cases: Sequence[Chunks], seeds: Sequence[int], *, verify: bool = True, grid: int = 3
) -> None:
    """Decodes cases of any widths for each seed, and asserts that everything is as on the CPU.

    A chunk is either refused by both or has the same bytes; with ``verify`` also if its checksum is wrong.
    """
    script, launches, kept = Script(), [], 0
    for group in by_width(cases):
        launches.append(_add(script, group, verify, grid, kept))
        kept = launches[-1].first_bad + 1
    expected = [[outcomes(case, verify) for case in launch.chunks] for launch in launches]
    for results in script.run(program, seeds):
        for launch, wanted in zip(launches, expected, strict=True):
            _compare(launch, wanted, results)


def by_width(cases: Sequence[Chunks]) -> Iterator[list[Chunks]]:
    """Cases that one launch may hold."""

    def width(case: Chunks) -> int:
        return case.layout.width

    for _, group in groupby(sorted(cases, key=width), key=width):
        yield list(group)


def outcomes(case: Chunks, verify: bool) -> list[bytes | None]:
    """What the CPU makes of each chunk; None if it refuses it: for its checksum only with ``verify``."""
    found = []
    for number, record in enumerate(case.records):
        data = decode_one(case, number)
        is_right = data is not None and (not verify or _has_checksum(data, record))
        found.append(data if is_right else None)
    return found


def _has_checksum(data: bytes, record: np.void) -> bool:
    return checksum64(np.frombuffer(data, np.uint8)) & 0xFFFFFFFF == record["checksum"]


def _compare(launch: _Kept, expected: list[list[bytes | None]], results: list[bytes]) -> None:
    status = np.frombuffer(results[launch.status], np.uint32)
    task, bad = 0, []
    for case, wanted, place in zip(launch.chunks, expected, launch.originals, strict=True):
        size = case.layout.width << case.log2
        for number, outcome in enumerate(wanted):
            name = f"{case.name}, chunk {number}"
            if outcome is None:
                assert status[task] in (1, 2, 3), f"{name} must be refused, but its status is {status[task]}"
                bad.append(task)
            else:
                assert status[task] == 0, f"{name} is refused with {status[task]}"
                got = results[place][number * size : (number + 1) * size]
                assert got == outcome, f"{name} has other bytes than on the CPU"
            task += 1
    first_bad = int(np.frombuffer(results[launch.first_bad], np.uint64)[0])
    assert first_bad == (bad[0] if bad else NONE), f"{first_bad} is said to be the first bad task"
