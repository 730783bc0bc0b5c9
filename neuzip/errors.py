"""The errors the library raises. Each names what it knows of file, tensor, chunk and offset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self


class NeuzipError(Exception):
    """Base of all errors raised for bad data, bad arguments or failing storage.

    Attributes ``file``, ``tensor``, ``chunk`` and ``offset`` (bytes) are ``None`` where unknown.
    """

    def __init__(
        self,
        message: str,
        *,
        file: object = None,
        tensor: str | None = None,
        chunk: int | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = None if file is None else str(file)
        self.tensor = tensor
        self.chunk = chunk
        self.offset = offset

    def at(
        self,
        *,
        file: object = None,
        tensor: str | None = None,
        chunk: int | None = None,
        offset: int | None = None,
    ) -> Self:
        """Fills in what is not known yet, and returns the error: layers add context as it passes them."""
        if self.file is None and file is not None:
            self.file = str(file)
        self.tensor = self.tensor if self.tensor is not None else tensor
        self.chunk = self.chunk if self.chunk is not None else chunk
        self.offset = self.offset if self.offset is not None else offset
        return self

    def __str__(self) -> str:
        where = [] if self.file is None else [self.file]
        if self.tensor is not None:
            where.append(f"tensor {self.tensor!r}")
        if self.chunk is not None:
            where.append(f"chunk {self.chunk}")
        if self.offset is not None:
            where.append(f"offset {self.offset}")
        return f"{', '.join(where)}: {self.message}" if where else self.message


class CorruptFrame(NeuzipError):
    """The bytes contradict the format or their checksum."""


class DamagedFile(CorruptFrame):
    """Parts of a file or directory are damaged; the others are intact.

    damages: what is wrong, an error for each chunk or, where that is not known, tensor or file. file, tensor, chunk
    and offset are the first one's.
    """

    def __init__(self, damages: Sequence[NeuzipError]) -> None:
        first = damages[0]
        more = f" ({len(damages)} damages in all)" if len(damages) > 1 else ""
        super().__init__(
            first.message + more,
            file=first.file,
            tensor=first.tensor,
            chunk=first.chunk,
            offset=first.offset,
        )
        self.damages = tuple(damages)


class TruncatedInput(NeuzipError):
    """The bytes end too early."""


class UnsupportedFormat(NeuzipError):
    """A version, feature or type this release does not read, or a file of another kind."""


class InvalidArgument(NeuzipError, ValueError):
    """The caller asked for something that cannot be: wrong dtype, shape, level or path."""


class StorageError(NeuzipError, OSError):
    """The file system refused: permissions, a full disk, a missing file."""


class DestinationBusy(StorageError):
    """Another process or thread is writing to the same destination."""
