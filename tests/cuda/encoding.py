"""Launches of the encoding kernels over tensors, and what must come of them: the bytes of the CPU's coder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from chunk_cases import Chunks
from decoding import by_width, job_buffer
from script import Buffer, Script

from neuzip import _native
from neuzip.cuda.jobs import CHUNK, SEGMENT, SEGMENT_COUNTS, WARPS, slot_bytes

_BEFORE = 12
"""Bytes in front of the chunks, such as a frame's header."""

_UNTOUCHED = b"\xa5"


def _add(script: Script, cases: Sequence[Chunks], shortfall: int, grid: int) -> None:
    """Adds the launches that encode cases, sorted by width, in one go but for the kernels of a width.

    Kept are, for each case, the packed bytes and the records.
    """
    places: dict[str, list[Buffer | None]] = {
        name: [] for name in ("original", "tables", "slots", "packed", "chunks")
    }
    for number, case in enumerate(cases):
        width, records = case.layout.width, np.zeros(len(case.records), CHUNK)
        records["table"] = case.records["table"]
        slots = len(case.records) * slot_bytes(width, case.log2)
        packed = _UNTOUCHED * (_BEFORE + len(case.packed))
        places["original"].append(script.buffer(case.original, width * (1 + number % 7)))
        places["tables"].append(script.buffer(case.table, 4 * (number % 3)) if case.table else None)
        places["slots"].append(script.buffer(b"\x5a" * slots, 4 * (1 + number % 5)))
        places["packed"].append(script.buffer(packed, 4 * (1 + number % 5), kept=True))
        places["chunks"].append(script.buffer(records, kept=True))
    first = 0
    for group in [*by_width(cases), cases]:
        first = 0 if group is cases else first
        jobs = job_buffer(
            script,
            group,
            {name: buffers[first : first + len(group)] for name, buffers in places.items()},
            packed_at=[_BEFORE] * len(group),
            capacity=[_BEFORE + len(case.packed) - shortfall for case in group],
        )
        first += len(group)
        count, tasks = np.uint32(len(group)), np.uint64(sum(len(case.records) for case in group))
        if group is not cases:
            script.launch(f"nz_encode_w{group[0].layout.width}", grid, 32 * WARPS, [jobs, count, tasks])
    script.launch("nz_place", grid, 32, [jobs, count])
    script.launch("nz_compact", grid, 32 * WARPS, [jobs, count, tasks])
    script.launch("nz_checksum", grid, 32 * WARPS, [jobs, count, tasks])


def check_encoding(
    program: Path, cases: Sequence[Chunks], seeds: Sequence[int], *, grid: int = 3, shortfall: int = 0
) -> None:
    """Encodes cases of any widths for each seed, and asserts that chunks and records are the CPU's.

    shortfall: bytes by which the room for the chunks falls short; those that do not fit must be left out.
    """
    script, ordered = Script(), [case for group in by_width(cases) for case in group]
    _add(script, ordered, shortfall, grid)
    for results in script.run(program, seeds):
        for number, case in enumerate(ordered):
            packed, records = results[2 * number], np.frombuffer(results[2 * number + 1], CHUNK)
            wanted = case.records.copy()
            wanted["offset"] += np.uint64(_BEFORE)
            for name in ("size", "offset", "checksum"):
                assert np.array_equal(records[name], wanted[name]), (
                    f"{case.name}: another {name} than on the CPU"
                )
            ends = case.records["offset"] + case.records["size"]
            end = int(ends[ends <= len(case.packed) - shortfall].max(initial=0))
            assert packed[:_BEFORE] == _UNTOUCHED * _BEFORE, (
                f"{case.name}: bytes before the chunks are overwritten"
            )
            assert packed[_BEFORE:][:end] == case.packed[:end], f"{case.name} has other bytes than on the CPU"
            assert set(packed[_BEFORE + end :]) <= set(_UNTOUCHED), (
                f"{case.name}: bytes behind what fits are overwritten"
            )


def check_sample(program: Path, cases: Sequence[Chunks], seeds: Sequence[int]) -> None:
    """Asserts for both levels that tables made from nz_sample's counts are those that the CPU plans."""
    script, kept = Script(), []
    for case in cases:
        layout, units = case.layout, script.buffer(case.original, case.layout.width)
        places = _native.plan_segments(layout.id, case.log2, case.units)
        for level in (0, 1):
            segments = np.zeros(len(places), SEGMENT)
            segments["count"], segments["taken"] = places[:, 1], places[:, 2]
            segments["width"], segments["heads"] = layout.width, level == 1 and layout.joint
            records = script.buffer(segments)
            for number, start in enumerate(places[:, 0].tolist()):
                script.point(records, number * SEGMENT.itemsize, units, start * layout.width)
            counts = script.buffer(
                np.full((len(places), SEGMENT_COUNTS), 99, np.uint32).reshape(-1), kept=True
            )
            script.launch("nz_sample", 3, 256, [records, np.uint32(len(places)), counts])
            kept.append((case, level))
    for results in script.run(program, seeds):
        for (case, level), data in zip(kept, results, strict=True):
            layout, counts = case.layout, np.frombuffer(data, np.uint32)
            planned = _native.plan_counts(layout.id, level, case.log2, counts, case.units)
            source = np.frombuffer(case.original, np.uint8)
            assert planned == _native.plan(layout.id, level, case.log2, source, case.units), case.name
            heads = counts.reshape(-1, SEGMENT_COUNTS)[:, 256:]
            assert heads.any() == (level == 1 and layout.joint and layout.width > 1), case.name
