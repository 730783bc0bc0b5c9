"""The plan of a tensor that is looked at a piece at a time: table blobs (spec §5) joined into one."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import replace

from neuzip.codec import Options, Plan, make_plan
from neuzip.layouts import Layout

# The kinds and sizes of a table blob's parts (spec §5).
_RANK = 1
_BLOB = struct.Struct("<BBH")
_FIRST_CHUNK = struct.Struct("<I")
_ENTRY_HEADER = 8
_RANK_TABLE = 36
_MAX_ENTRIES = 0xFFFF


def plan_pieces(plans: Iterable[Plan], layout: Layout, size: int, options: Options) -> Plan:
    """The plan of a tensor of `size` bytes out of those of its pieces, as JoinedPlan joins them."""
    joined = JoinedPlan()
    for plan in plans:
        joined.add(joined.fitted(plan))
    return joined.whole(layout, size, options)


class JoinedPlan:
    """The plans of a tensor's pieces, of which all but the last are whole chunks, joined into one: that of the first,
    with the tables of all.
    """

    def __init__(self) -> None:
        self.first: Plan | None = None
        self.size = 0
        """Original bytes of the pieces so far."""
        self._kind = 0
        self._entries: list[bytes] = []

    def fitted(self, plan: Plan) -> Plan:
        """What can be joined of the next piece's plan: not its tables, where they are of another kind than those
        before. Its chunks may then bring their own (§4, mode local).
        """
        first = self.first or plan
        if plan.coding is first.coding and self._takes(plan.table):
            return plan
        return replace(first, table=b"", size=plan.size)

    def add(self, plan: Plan) -> None:
        """Joins a fitted plan."""
        self._join(plan.table, self.size // plan.chunk_size)
        self.first = self.first or plan
        self.size += plan.size

    def whole(self, layout: Layout, size: int, options: Options) -> Plan:
        """The plan of the tensor, of `size` bytes."""
        first = self.first or make_plan(memoryview(b""), layout, options)
        table = (
            _BLOB.pack(self._kind, 0, len(self._entries)) + b"".join(self._entries) if self._entries else b""
        )
        return replace(first, table=table, size=size)

    def _takes(self, blob: bytes) -> bool:
        """Whether a blob can be joined: all entries have one kind (§5)."""
        if not blob:
            return True
        kind: int
        count: int
        kind, _, count = _BLOB.unpack_from(blob)
        return kind == (self._kind or kind) and len(self._entries) + count <= _MAX_ENTRIES

    def _join(self, blob: bytes, first_chunk: int) -> None:
        """Joins a blob whose chunks begin at ``first_chunk`` of the tensor."""
        if not blob:
            return
        self._kind, _, count = _BLOB.unpack_from(blob)
        at = _BLOB.size
        for _ in range(count):
            end = at + _entry_size(self._kind, blob, at)
            # The first entry begins at chunk 0, even if the chunks before this piece do not use it.
            first = _FIRST_CHUNK.unpack_from(blob, at)[0] + first_chunk if self._entries else 0
            self._entries.append(_FIRST_CHUNK.pack(first) + blob[at + _FIRST_CHUNK.size : end])
            at = end


def _entry_size(kind: int, blob: bytes, at: int) -> int:
    if kind == _RANK:
        return _ENTRY_HEADER + _RANK_TABLE
    # A byte table (§4.3): 36 bytes, then a u16 for each of its symbols.
    count: int = struct.unpack_from("<H", blob, at + _ENTRY_HEADER + 2)[0]
    return _ENTRY_HEADER + -(-(36 + 2 * count) // 4) * 4
