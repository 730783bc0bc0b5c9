"""Launches of the encoding kernels over tensors, and what must come of them: the bytes of the CPU's coder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from chunk_cases import Chunks
from decoding import by_width, job_buffer
from script import Script

from neuzip.cuda.jobs import CHUNK, WARPS, slot_bytes

_BEFORE = 12
"""Bytes in front of the chunks, such as a frame's header."""


def _add(script: Script, cases: Sequence[Chunks], grid: int) -> None:
    """Adds the launches that encode cases of one width. Kept are, for each case, the packed bytes and the records."""
    width = cases[0].layout.width
    tasks = sum(len(case.records) for case in cases)
    packed, chunks = [], []
    for number, case in enumerate(cases):
        records = np.zeros(len(case.records), CHUNK)
        records["table"] = case.records["table"]
        packed.append(script.buffer(b"\xa5" * (_BEFORE + len(case.packed)), 4 * (1 + number % 5), kept=True))
        chunks.append(script.buffer(records, kept=True))
    jobs = job_buffer(
        script,
        cases,
        {
            "original": [script.buffer(case.original, width * (1 + i % 7)) for i, case in enumerate(cases)],
            "tables": [
                script.buffer(case.table, 4 * (i % 3)) if case.table else None for i, case in enumerate(cases)
            ],
            "slots": [
                script.buffer(b"\x5a" * (len(case.records) * slot_bytes(width, case.log2)), 4 * (1 + i % 5))
                for i, case in enumerate(cases)
            ],
            "packed": list(packed),
            "chunks": list(chunks),
        },
        packed_at=[_BEFORE] * len(cases),
        capacity=[_BEFORE + len(case.packed) for case in cases],
    )
    count, block = np.uint32(len(cases)), 32 * WARPS
    script.launch(f"nz_encode_w{width}", grid, block, [jobs, count, np.uint64(tasks)])
    script.launch("nz_place", grid, 32, [jobs, count])
    script.launch("nz_compact", grid, block, [jobs, count, np.uint64(tasks)])
    script.launch("nz_checksum", grid, block, [jobs, count, np.uint64(tasks)])


def check_encoding(program: Path, cases: Sequence[Chunks], seeds: Sequence[int], *, grid: int = 3) -> None:
    """Encodes cases of any widths for each seed, and asserts that chunks and records are the CPU's."""
    script, ordered = Script(), []
    for group in by_width(cases):
        _add(script, group, grid)
        ordered += group
    for results in script.run(program, seeds):
        for number, case in enumerate(ordered):
            packed, records = results[2 * number], np.frombuffer(results[2 * number + 1], CHUNK)
            wanted = case.records.copy()
            wanted["offset"] += np.uint64(_BEFORE)
            for name in ("size", "offset", "checksum"):
                assert np.array_equal(records[name], wanted[name]), f"{case.name}: another {name} than on the CPU"
            assert packed[:_BEFORE] == b"\xa5" * _BEFORE, f"{case.name}: bytes before the chunks are overwritten"
            assert packed[_BEFORE:] == case.packed, f"{case.name} has other bytes than on the CPU"
