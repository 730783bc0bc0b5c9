"""Tables for tensors that lie on a device: it counts the sample, the host chooses (spec §5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from neuzip import _native
from neuzip.codec import LEVELS, Coding, Options, Plan, is_coded, make_plan
from neuzip.cuda.jobs import SEGMENT, SEGMENT_COUNTS, Records
from neuzip.cuda.kernels import download, launch, upload
from neuzip.layouts import Layout


@dataclass(frozen=True)
class Original:
    """A tensor's bytes on a device, uint8 (size,), aligned to a unit; and their layout."""

    data: torch.Tensor
    layout: Layout

    @property
    def units(self) -> int:
        return self.data.numel() // self.layout.width


def make_plans(originals: Sequence[Original], options: Options) -> list[Plan]:
    """The plans that :func:`neuzip.codec.make_plan` makes, for tensors of one device. Waits for it once."""
    coded = [each for each in originals if is_coded(each.data.numel(), each.layout)]
    tables = iter(_make_tables(coded, options))
    plans = []
    for each in originals:
        size = each.data.numel()
        if is_coded(size, each.layout):
            plans.append(Plan(each.layout, Coding.PLANES, options.chunk_log2, next(tables), size))
        else:
            # Its size and layout decide alone.
            plans.append(make_plan(np.broadcast_to(np.uint8(0), size), each.layout, options))
    return plans


def _make_tables(originals: Sequence[Original], options: Options) -> list[bytes]:
    level = LEVELS.index(options.level)
    segments = [_native.plan_segments(each.layout.id, options.chunk_log2, each.units) for each in originals]
    records = [
        _segment_records(each, rows, level)
        for each, rows in zip(originals, segments, strict=True)
        if len(rows)
    ]
    counts = _count(np.concatenate(records), originals[0].data.device) if records else np.empty(0, np.uint32)
    tables, at = [], 0
    for each, rows in zip(originals, segments, strict=True):
        size = len(rows) * SEGMENT_COUNTS
        mine = counts[at : at + size]
        tables.append(_native.plan_counts(each.layout.id, level, options.chunk_log2, mine, each.units))
        at += size
    return tables


def _segment_records(
    original: Original, rows: np.ndarray[tuple[int, int], np.dtype[np.uint64]], level: int
) -> Records:
    records = np.zeros(len(rows), SEGMENT)
    width = original.layout.width
    records["units"] = original.data.data_ptr() + rows[:, 0] * np.uint64(width)
    records["count"], records["taken"] = rows[:, 1], rows[:, 2]
    records["width"] = width
    records["heads"] = level and original.layout.joint
    return records


def _count(segments: Records, device: torch.device) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    counts = torch.zeros(len(segments) * SEGMENT_COUNTS, dtype=torch.int32, device=device)
    launch(
        "planes.cu",
        "nz_sample",
        device,
        len(segments),
        (upload(segments, device), np.uint32(len(segments)), counts),
        warps=8,
        block_tasks=1,
    )
    return download(counts).view(np.uint32)
