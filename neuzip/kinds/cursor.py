"""A position in a file that is read from front to back, a few bytes at a time."""

from __future__ import annotations

import struct
from typing import Any

from neuzip.errors import TruncatedInput
from neuzip.kinds.part import Source

# Bytes asked of the source at a time: an archive decodes a segment for each request.
_BLOCK_BYTES = 1 << 20


class Cursor:
    """Reads bytes position … end − 1 of a source; end is the source's if not given."""

    def __init__(self, source: Source, position: int = 0, end: int | None = None) -> None:
        self._source = source
        self.position = position
        self.end = source.size if end is None else end
        self._start = 0  # of the block
        self._block = memoryview(b"")

    def take(self, count: int) -> memoryview:
        """The next bytes. Raises TruncatedInput."""
        start, at = self.position, self.position - self._start
        self.skip(count)
        if not 0 <= at <= at + count <= len(self._block):
            size = max(count, min(_BLOCK_BYTES, self.end - start))
            self._block, self._start, at = self._source.read(start, size), start, 0
        return self._block[at : at + count]

    def skip(self, count: int) -> None:
        """Goes on by so many bytes. Raises TruncatedInput."""
        if not 0 <= count <= self.end - self.position:
            raise TruncatedInput(f"{count} bytes are missing", offset=self.position)
        self.position += count

    def number(self, form: struct.Struct) -> Any:
        """The next number, of a struct with one. Raises TruncatedInput."""
        return form.unpack(self.take(form.size))[0]
