"""The original bytes of an archive, decoded as they are asked for (§10)."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from neuzip import _native
from neuzip._system import room
from neuzip.archive import Archive, Segment
from neuzip.codec import Options
from neuzip.errors import NeuzipError
from neuzip.files import FileBytes
from neuzip.kinds.part import Source, ViewSource, check_range
from neuzip.manifest import is_archive


class ArchiveSource:
    """What the readers of file kinds read of an archive (kinds.part.Source)."""

    def __init__(self, archive: Archive, options: Options) -> None:
        self.archive, self._options = archive, options
        self._starts = [segment.start for segment in archive.segments]
        self._held: tuple[int, memoryview] = (-1, memoryview(b""))  # a segment, for reads in a row

    @property
    def size(self) -> int:
        """Bytes of the original file."""
        return self.archive.original_size

    def read(self, start: int, size: int) -> memoryview:
        """See kinds.part.Source. Errors of damaged segments as those of Archive.decode."""
        check_range(self, start, size)
        if size == 0:
            return memoryview(b"")
        number = self._number(start)
        segment = self.archive.segments[number]
        if start + size > segment.start + segment.size:
            out = room(size)
            self.fill([(start, out)])
            return out
        if self._held[0] != number:
            data = room(segment.size)
            self.archive.decode([(segment, data)], self._options)
            self._held = number, data
        at = start - segment.start
        return self._held[1][at : at + size]

    def fill(self, requests: list[tuple[int, Any]]) -> None:
        """See kinds.part.Source. What lies in the buffers whole is decoded there."""
        targets: dict[tuple[int, int], tuple[Segment, memoryview]] = {}
        partial: list[tuple[int, memoryview]] = []
        for number, (start, buffer) in enumerate(requests):
            out = _native.as_bytes(buffer)
            check_range(self, start, len(out))
            stop = start + len(out)
            for segment in self._touched(start, stop):
                low, high = max(start, segment.start), min(stop, segment.start + segment.size)
                target = out[low - start : high - start]
                if high - low == segment.size:
                    targets[number, segment.start] = segment, target
                else:
                    partial.append((low, target))
        self.archive.decode(targets.values(), self._options)
        for start, target in sorted(partial, key=lambda item: item[0]):
            target[:] = self.read(start, len(target))

    def forget(self) -> None:
        """See kinds.part.Source."""
        if self.archive.file is not None:
            self.archive.file.forget()

    def _number(self, position: int) -> int:
        return bisect.bisect_right(self._starts, position) - 1

    def _touched(self, start: int, stop: int) -> tuple[Segment, ...]:
        if start == stop:
            return ()
        return self.archive.segments[self._number(start) : self._number(stop - 1) + 1]


@contextmanager
def open_source(path: Path, options: Options) -> Iterator[Source]:
    """The original bytes of an archive, or the bytes of any other file.

    Raises StorageError, InvalidArgument for a directory, and of a damaged archive what Archive.open raises.
    Errors of the block that name no file are given this one.
    """
    try:
        with FileBytes(path, options.backend) as file:
            if is_archive(file):
                yield ArchiveSource(replace(Archive.parse(file.view, path), file=file), options)
            else:
                yield ViewSource(file.view, file)
    except NeuzipError as error:
        error.at(file=path)
        raise
