"""What a caller asks to be done with a file or directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from neuzip.codec import Options
from neuzip.errors import InvalidArgument
from neuzip.report import Progress


@dataclass(frozen=True)
class Task:
    """source to destination.

    force: replace the destination. remove: remove the source, once the result was decoded and compared with
    it. progress: called with the original bytes done and in all. salvage: restore what is intact of a damaged
    source.
    """

    source: Path
    destination: Path
    options: Options
    force: bool = False
    remove: bool = False
    progress: Progress | None = None
    salvage: bool = False

    def check(self) -> None:
        """Raises InvalidArgument if source and destination are the same or one is in the other, or if a
        directory to be removed is only linked to."""
        # realpath() and not resolve(), which raises RuntimeError for links that form a loop.
        source, destination = (Path(os.path.realpath(path)) for path in (self.source, self.destination))
        if source == destination:
            raise InvalidArgument("the destination is the source", file=self.destination)
        if destination.is_relative_to(source) or source.is_relative_to(destination):
            raise InvalidArgument("source and destination lie in each other", file=self.destination)
        if self.remove and self.salvage:
            raise InvalidArgument(
                "a source from which something is salvaged is not removed", file=self.source
            )
        if self.remove and self.source.is_symlink() and self.source.is_dir():
            raise InvalidArgument("a symbolic link to a directory is not removed", file=self.source)
