"""What became of the files of a checkpoint, and how far the work has got."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from neuzip.errors import NeuzipError

# The coding of a file that was verified and is not compressed. The others are manifest.py's.
PLAIN = "plain"

# Called with the original bytes done and the original bytes in all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FileReport:
    """One file. Sizes in bytes.

    path: relative to the directory, or the name of a single file. coding: "container", "archive", "config",
    "copy" (§8), or "plain" for an uncompressed file that was verified.
    """

    path: str
    original_size: int
    compressed_size: int
    coding: str


@dataclass(frozen=True)
class Report:
    """A whole file or directory. Sizes in bytes; a directory's compressed_size includes the manifest.

    destination: None if nothing was written. damages: what could not be restored, if that was allowed.
    """

    source: Path
    destination: Path | None
    original_size: int
    compressed_size: int
    seconds: float
    files: tuple[FileReport, ...]
    damages: tuple[NeuzipError, ...] = ()

    @property
    def ratio(self) -> float:
        """Compressed size by original size; 1 for nothing at all."""
        return self.compressed_size / self.original_size if self.original_size else 1.0


class Meter:
    """Counts the original bytes done and tells the caller."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress, self._done = total, progress, 0
        self.advance(0)

    def advance(self, count: int) -> None:
        """Adds to the bytes done."""
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)
