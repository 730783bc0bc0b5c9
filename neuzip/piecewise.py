"""One frame (spec §5) from a tensor that exists only a piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from neuzip import _native
from neuzip._native import Words
from neuzip.codec import EncodeRun, Options, Plan, encode_runs, make_plan
from neuzip.errors import InvalidArgument
from neuzip.frame import header_bytes
from neuzip.layouts import DType
from neuzip.pages import Bytes, in_pages, pages
from neuzip.tables import JoinedPlan


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
        self._joined = JoinedPlan()
        self._chunks: list[Any] = []
        self._indices: list[Words] = []

    def add(self, piece: Any) -> None:
        """Takes the next original bytes, any buffer. All pieces but the last are whole chunks: multiples of
        ``2^options.chunk_log2`` elements (of 1 MiB where a dtype is not cut into planes).

        Raises InvalidArgument if a piece is not, or goes beyond the tensor.
        """
        data, taken = self._bytes(piece), self._joined.size
        plan = self._make_plan(data)
        if taken % (self._joined.first or plan).chunk_size or taken + len(data) > self._size:
            raise InvalidArgument(f"{len(data)} bytes do not continue a tensor of {self._size} at {taken}")
        plan = self._joined.fitted(plan)
        chunks, index = self._encode(data, plan)
        self._joined.add(plan)
        self._chunks.append(chunks)
        self._indices.append(index)

    def finish(self) -> Any:
        """The frame, uint8. Raises InvalidArgument if pieces are missing."""
        if self._joined.size != self._size:
            raise InvalidArgument(f"{self._joined.size} bytes of a tensor of {self._size} have been given")
        plan = self._joined.whole(self._dtype.layout, self._size, self._options)
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
