"""Original bytes to chunks on a device: any number of tensors of one unit width in a launch (spec §4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from neuzip._native import Words
from neuzip.codec import Plan
from neuzip.cuda.jobs import CHUNK, JOB, Records, slot_bytes
from neuzip.cuda.kernels import download, launch, upload
from neuzip.cuda.placed import table_offsets
from neuzip.cuda.planning import Original

SLOT_BYTES = 256 << 20
"""Room for chunks that are being encoded: several thousand, more than a GPU has warps for."""

_ALIGNMENT = 8


@dataclass(frozen=True)
class Packed:
    """A tensor's chunks without gaps, uint8 (size,), on the device; their index (§5), on the host."""

    chunks: torch.Tensor
    index: Words


@dataclass(frozen=True)
class _Part:
    """Chunks ``first`` … ``first + count − 1`` of the tensor numbered ``number``."""

    number: int
    first: int
    count: int


def pack(originals: Sequence[Original], plans: Sequence[Plan]) -> list[Packed]:
    """Encodes tensors of one device, all of coding *planes*. Waits for it once for each ``SLOT_BYTES``."""
    parts: list[list[Packed]] = [[] for _ in originals]
    for batch in _batches(plans):
        encoded = _encode(batch, originals, plans)
        for part, packed in zip(batch, encoded, strict=True):
            parts[part.number].append(packed)
    return [_joined(each) for each in parts]


def _batches(plans: Sequence[Plan]) -> Iterator[list[_Part]]:
    """All chunks, those of one width and of at most SLOT_BYTES of slots together."""
    order = sorted(range(len(plans)), key=lambda number: plans[number].layout.width)
    batch: list[_Part] = []
    width = room = 0
    for number in order:
        plan = plans[number]
        slot = slot_bytes(plan.layout.width, plan.chunk_log2)
        first = 0
        while first < plan.chunk_count:
            if batch and (plan.layout.width != width or room < slot):
                yield batch
                batch = []
            if not batch:
                width, room = plan.layout.width, max(SLOT_BYTES, slot)
            count = min(plan.chunk_count - first, room // slot)
            batch.append(_Part(number, first, count))
            room -= count * slot
            first += count
    if batch:
        yield batch


def _encode(batch: list[_Part], originals: Sequence[Original], plans: Sequence[Plan]) -> list[Packed]:
    device = originals[0].data.device
    width = plans[batch[0].number].layout.width
    tasks = sum(part.count for part in batch)
    blobs = _Blobs(batch, plans)
    jobs, chunks = _records(batch, originals, plans)
    room = upload(np.concatenate([chunks.view(np.uint8), blobs.data]), device)
    records = room[: chunks.nbytes]
    slots = torch.empty(_slot_total(batch, plans), dtype=torch.uint8, device=device)
    jobs["chunks"] += np.uint64(records.data_ptr())
    jobs["slots"] += np.uint64(slots.data_ptr())
    jobs["tables"] = blobs.offsets + np.uint64(room.data_ptr() + chunks.nbytes)
    sent, count = upload(jobs, device), np.uint32(len(jobs))
    launch("checksum.cu", "nz_checksum", device, tasks, (sent, count, np.uint64(tasks)))
    launch("encode.cu", f"nz_encode_w{width}", device, tasks, (sent, count, np.uint64(tasks)))
    launch("encode.cu", "nz_place", device, len(jobs), (sent, count), warps=1)
    found = download(records).view(CHUNK)
    sizes = [int(part["size"].sum(dtype=np.uint64)) for part in np.split(found, _ends(batch)[:-1])]
    starts = np.cumsum([0, *(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)])
    packed = torch.empty(int(starts[-1]), dtype=torch.uint8, device=device)
    jobs["packed"] = starts[:-1].astype(np.uint64) + np.uint64(packed.data_ptr())
    jobs["capacity"] = sizes
    launch("encode.cu", "nz_compact", device, tasks, (upload(jobs, device), count, np.uint64(tasks)))
    index = np.stack([found["size"], found["checksum"]], 1).reshape(-1)
    return [
        Packed(packed[start : start + size], index[2 * (end - part.count) : 2 * end])
        for part, start, size, end in zip(batch, starts.tolist(), sizes, _ends(batch), strict=False)
    ]


class _Blobs:
    """The table blobs of a batch's tensors one behind the other, u8; ``offsets`` has each part's, u64."""

    def __init__(self, batch: list[_Part], plans: Sequence[Plan]) -> None:
        data, at, offsets = b"", {}, []
        for part in batch:
            if part.number not in at:
                at[part.number] = len(data)
                blob = plans[part.number].table
                data += blob + bytes(-len(blob) % _ALIGNMENT)
            offsets.append(at[part.number])
        self.data = np.frombuffer(data, np.uint8)
        self.offsets = np.array(offsets, np.uint64)


def _records(
    batch: list[_Part], originals: Sequence[Original], plans: Sequence[Plan]
) -> tuple[Records, Records]:
    """JOB and CHUNK records; chunks and slots count from the beginning of theirs."""
    jobs = np.zeros(len(batch), JOB)
    chunks = np.zeros(sum(part.count for part in batch), CHUNK)
    first = slot = 0
    for job, part in zip(jobs, batch, strict=True):
        original, plan = originals[part.number], plans[part.number]
        width = plan.layout.width
        start = part.first << plan.chunk_log2
        job["first"] = first
        job["units"] = min(original.units - start, part.count << plan.chunk_log2)
        job["original"] = original.data.data_ptr() + start * width
        job["chunks"] = first * CHUNK.itemsize
        job["slots"] = slot
        job["kind"] = plan.table[0] if plan.table else 0
        job["chunk_log2"], job["width"] = plan.chunk_log2, width
        tables = table_offsets(plan.layout.id, plan.table, plan.chunk_count)
        chunks["table"][first : first + part.count] = tables[part.first : part.first + part.count]
        first += part.count
        slot += part.count * slot_bytes(width, plan.chunk_log2)
    return jobs, chunks


def _slot_total(batch: list[_Part], plans: Sequence[Plan]) -> int:
    chosen = [(part, plans[part.number]) for part in batch]
    return sum(part.count * slot_bytes(plan.layout.width, plan.chunk_log2) for part, plan in chosen)


def _ends(batch: list[_Part]) -> list[int]:
    """Number of chunks up to the end of each part."""
    ends: list[int] = np.cumsum([part.count for part in batch]).tolist()
    return ends


def _joined(parts: list[Packed]) -> Packed:
    if len(parts) == 1:
        return parts[0]
    return Packed(torch.cat([part.chunks for part in parts]), np.concatenate([part.index for part in parts]))
