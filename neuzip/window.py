"""Which part of a tensor an index touches, so that no more of it is decoded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Window:
    """The run of consecutive elements that an index touches: a sub-tensor, and the index within it.

    start: elements before the window. shape: of the window; it has as many dimensions as the tensor.
    """

    start: int
    shape: tuple[int, ...]
    index: Any

    @classmethod
    def of(cls, shape: tuple[int, ...], index: Any) -> Window:
        """Narrow leading dimensions as far as ints and slices select a single run of rows."""
        items = index if isinstance(index, tuple) else (index,)
        if 0 in shape:
            return cls(0, shape, index)
        start, row, extents, inner = 0, math.prod(shape), [], []
        for item, extent in zip(items, shape, strict=False):
            rows = _rows(item, extent)
            if rows is None:
                break
            row //= extent
            first, last = (min(rows[0], rows[-1]), max(rows[0], rows[-1])) if rows else (0, -1)
            start += first * row
            extents.append(last - first + 1)
            # A dimension is kept even if one row is left of it, so that the remaining index means the same.
            inner.append(slice(None, None, rows.step) if isinstance(item, slice) else 0)
            if last != first:
                break
        done = len(extents)
        return cls(start, (*extents, *shape[done:]), (*inner, *items[done:]))


def is_basic(index: Any) -> bool:
    """Whether an index has nothing but ints, slices, None and Ellipsis: no masks and no lists of rows."""
    items = index if isinstance(index, tuple) else (index,)
    return all(item is None or item is ... or isinstance(item, slice) or _is_int(item) for item in items)


def _rows(item: Any, extent: int) -> range | None:
    """Rows of a dimension that an item selects; None if it is no int in range and no slice."""
    if isinstance(item, slice):
        return range(*item.indices(extent))
    if _is_int(item) and -extent <= item < extent:
        return range(item % extent, item % extent + 1)
    return None


def _is_int(item: Any) -> bool:
    return isinstance(item, (int, np.integer)) and not isinstance(item, bool)
