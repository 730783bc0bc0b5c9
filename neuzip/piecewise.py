"""One frame (spec §5) from a tensor that exists only a piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from neuzip import _native
from neuzip._native import Words
from neuzip.codec import Coding, EncodeRun, Options, Plan, encode_runs, make_plan
from neuzip.errors import InvalidArgument
from neuzip.frame import header_bytes
from neuzip.layouts import DType
from neuzip.pages import Bytes, in_pages, pages
from neuzip.tables import Tables


class PiecewiseEncoder:
    """Encodes consecutive pieces of a tensor of ``shape`` and ``dtype``; only compressed bytes are kept.

    Every piece is planned on its own. The frame decodes to the same bytes as :func:`neuzip.frame.encode`'s,
    but its tables, and so its own bytes, may differ.

    allocate: where a piece is encoded to, ``size`` bytes that are free again when ``add`` returns.
    """

    def __init__(
        self,
        dtype: DType,
        shape: Sequence[int],
        options: Options | None = None,
        allocate: Callable[[int], Bytes] = pages,
    ) -> None:
        self._dtype, self._shape, self._options = dtype, tuple(shape), options or Options()
        size = dtype.nbytes(shape)
        if size is None:
            raise InvalidArgument(f"shape {tuple(shape)} of {dtype.name} does not fill whole bytes")
        self._size = size
        self._allocate = allocate
        self._plan: Plan | None = None
        self._tables = Tables()
        self._taken = 0
        self._chunks: list[Any] = []
        self._indices: list[Words] = []

    def add(self, piece: Any) -> None:
        """Takes the next original bytes, any buffer. All pieces but the last are whole chunks: multiples of
        ``2^options.chunk_log2`` elements (of 1 MiB where a dtype is not cut into planes).

        Raises InvalidArgument if a piece is not, or goes beyond the tensor.
        """
        data = self._bytes(piece)
        size = len(data)
        first = self._plan or self._make_plan(data)
        if self._taken % first.chunk_size or self._taken + size > self._size:
            raise InvalidArgument(f"{size} bytes do not continue a tensor of {self._size} at {self._taken}")
        plan = self._make_plan(data) if self._plan else first
        if plan.coding is not first.coding or not self._tables.takes(plan.table):
            # Chunks without a table of the tensor may bring their own (§4, mode local).
            plan = replace(first, table=b"", size=size)
        chunks, index = self._encode(data, plan)
        if plan.coding is Coding.PLANES:
            self._tables.add(plan.table, self._taken // plan.chunk_size)
        self._plan = first
        self._taken += size
        self._chunks.append(chunks)
        self._indices.append(index)

    def finish(self) -> Any:
        """The frame, uint8. Raises InvalidArgument if pieces are missing."""
        if self._taken != self._size:
            raise InvalidArgument(f"{self._taken} bytes of a tensor of {self._size} have been given")
        first = self._plan or make_plan(memoryview(b""), self._dtype.layout, self._options)
        plan = replace(first, table=self._tables.blob(), size=self._size)
        index = np.concatenate([np.empty(0, np.uint32), *self._indices])
        return self._join(header_bytes(self._dtype, self._shape, plan, self._options.level, index))

    # What is done elsewhere for a tensor that lies elsewhere.

    def _bytes(self, piece: Any) -> Any:
        return _native.as_bytes(piece)

    def _make_plan(self, data: Any) -> Plan:
        return make_plan(data, self._dtype.layout, self._options)

    def _encode(self, data: Any, plan: Plan) -> tuple[Any, Words]:
        """Chunks one behind the other, and their index."""
        buffer = self._allocate(plan.capacity)
        index = np.empty(2 * plan.chunk_count, np.uint32)
        run = EncodeRun(plan, data, buffer.ctypes.data, index)
        encode_runs([run], self._options)
        return in_pages(buffer[: run.written]), index

    def _join(self, header: bytearray) -> Any:
        size = len(header) + sum(map(len, self._chunks))
        frame = pages(-(-size // 8) * 8)
        frame[: len(header)] = header
        frame[size:] = 0
        at = len(header)
        # Each piece is let go when it is copied: an untouched page of the frame takes no memory yet.
        for chunks in self._take_chunks():
            frame[at : at + len(chunks)] = chunks
            at += len(chunks)
        return frame

    def _take_chunks(self) -> Any:
        self._chunks.reverse()
        while self._chunks:
            yield self._chunks.pop()
