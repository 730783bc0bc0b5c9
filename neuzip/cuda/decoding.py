"""Chunks to original bytes on a device: any number of frames in one launch for each unit width."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from threading import Lock
from typing import Any

import numpy as np
import torch

from neuzip.cuda.driver import current, index_of
from neuzip.cuda.jobs import CHUNK, FAULTS, JOB, Records
from neuzip.cuda.kernels import launch, upload
from neuzip.cuda.placed import Placed, tables_offset
from neuzip.errors import CorruptFrame, InvalidArgument

_NONE = np.uint64(0xFFFFFFFFFFFFFFFF)
"""What stands for the first bad task while there is none."""


@dataclass(frozen=True)
class Run:
    """Chunks ``first`` … ``first + count − 1`` of a placed frame, to be decoded into ``out``.

    frame: uint8 (frame_size,). out: contiguous, on the same device, exactly the chunks' original bytes. name: of the
    tensor, for errors.
    """

    frame: torch.Tensor
    placed: Placed
    first: int
    count: int
    out: torch.Tensor
    name: str | None = None

    @property
    def width(self) -> int:
        return self.placed.header.plan.layout.width

    def check(self) -> None:
        """Raises InvalidArgument unless ``out`` fits."""
        header = self.placed.header
        start, stop = (min(n * header.chunk_size, header.size) for n in (self.first, self.first + self.count))
        fits = self.out.nbytes == stop - start and self.out.is_contiguous()
        if not fits or self.out.device != self.frame.device or not 0 <= self.first <= header.chunk_count:
            raise InvalidArgument(
                f"out must be a contiguous tensor of {stop - start} bytes on {self.frame.device}",
                tensor=self.name,
            )


def whole(frame: torch.Tensor, held: Placed, out: torch.Tensor, name: str | None = None) -> Run:
    """All chunks of a frame."""
    return Run(frame, held, 0, held.header.chunk_count, out, name)


def job_records(runs: Sequence[Run]) -> Records:
    """JOB records of runs for decoding, their chunks numbered through."""
    records = np.zeros(len(runs), JOB)
    first = 0
    for record, run in zip(records, runs, strict=True):
        header, base = run.placed.header, run.frame.data_ptr()
        record["first"] = first
        record["units"] = run.out.nbytes // run.width
        record["original"] = run.out.data_ptr()
        record["packed"] = base
        record["chunks"] = run.placed.chunks.data_ptr() + run.first * CHUNK.itemsize
        record["tables"] = base + tables_offset(header)
        record["kind"] = header.table[0] if header.table else 0
        record["chunk_log2"] = header.chunk_log2
        record["width"] = run.width
        first += run.count
    return records


Span = tuple[str | None, int | None, int]
"""Some of a launch's tasks: the tensor's name, their first chunk if the host knows it, and how many they are."""


@dataclass
class Launched:
    """A launch whose outcome is on its way to the host.

    Nothing it reads or writes is kept: torch gives memory to others in the order of the stream.
    """

    spans: list[Span]
    status: torch.Tensor
    outcome: torch.Tensor
    event: Any


@dataclass
class Pending:
    """Decodes that have been started. Their errors are known when the device is done."""

    launched: list[Launched] = field(default_factory=list)

    def is_done(self) -> bool:
        """Whether the device is done, without waiting for it."""
        return all(current().is_done(each.event) for each in self.launched)

    def check(self) -> None:
        """Waits for the device. Raises CorruptFrame, with tensor and chunk, for the first chunk it has refused."""
        for each in self.launched:
            current().synchronize(each.event)
            bad = int(each.outcome.numpy().view(np.uint64)[0])
            if bad != int(_NONE):
                raise _error(each, bad)


def _error(work: Launched, task: int) -> CorruptFrame:
    fault = int(work.status[task].item())
    for name, first, count in work.spans:
        if task < count:
            chunk = None if first is None else first + task
            return CorruptFrame(FAULTS.get(fault, f"fault {fault}"), tensor=name, chunk=chunk)
        task -= count
    raise AssertionError("the kernel named a chunk that it was not given")


def decode(runs: Iterable[Run], verify: bool = True) -> Pending:
    """Starts decoding runs of one device, all of coding *planes*. verify: compare with the checksums too."""
    pending = Pending()
    chosen = sorted((run for run in runs if run.out.nbytes), key=lambda run: run.width)
    for width, group in groupby(chosen, key=lambda run: run.width):
        pending.launched.append(_start(width, list(group), verify))
    return pending


def _start(width: int, runs: list[Run], verify: bool) -> Launched:
    for run in runs:
        run.check()
    tasks = sum(run.count for run in runs)
    spans: list[Span] = [(run.name, run.first, run.count) for run in runs]
    return start(width, upload(job_records(runs), runs[0].frame.device), tasks, spans, verify)


def start(width: int, jobs: torch.Tensor, tasks: int, spans: list[Span], verify: bool) -> Launched:
    """Starts decoding. jobs: JOB records, uint8, on the device; tasks: chunks of all of them."""
    device = jobs.device
    status = torch.empty(tasks, dtype=torch.int32, device=device)
    first_bad = torch.full((1,), -1, dtype=torch.int64, device=device)
    arguments = (jobs, np.uint32(jobs.numel() // JOB.itemsize), np.uint64(tasks), status, first_bad)
    launch("decode.cu", f"nz_decode_w{width}", device, tasks, arguments)
    if verify:
        launch("checksum.cu", "nz_verify", device, tasks, arguments)
    return launched(status, first_bad, spans)


def launched(status: torch.Tensor, first_bad: torch.Tensor, spans: list[Span]) -> Launched:
    """What kernels just started have to tell: status, i32 (tasks,), and first_bad, i64 (1,), are theirs (launch.h)."""
    driver = current()
    outcome = driver.pinned(first_bad.nbytes)
    outcome.copy_(first_bad.view(torch.uint8), non_blocking=True)
    return Launched(spans, status, outcome, driver.record(index_of(first_bad.device)))


class Watch:
    """Decodes nobody waits for, such as a layer's in forward: their errors are raised by the next one."""

    def __init__(self) -> None:
        self._pending: deque[Pending] = deque()
        self._lock = Lock()

    def add(self, pending: Pending) -> None:
        """Watches one more, and raises what those before have to say if that is known."""
        with self._lock:
            self._pending.append(pending)
        while (finished := self._take(wait=False)) is not None:
            finished.check()

    def check(self) -> None:
        """Waits for all of them. Raises CorruptFrame."""
        while (each := self._take(wait=True)) is not None:
            each.check()

    def _take(self, wait: bool) -> Pending | None:
        with self._lock:
            if self._pending and (wait or self._pending[0].is_done()):
                return self._pending.popleft()
            return None


watch = Watch()
"""The process's."""
