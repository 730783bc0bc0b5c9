"""Files: read through a memory map; created, synced; walked and removed."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from neuzip.errors import InvalidArgument, NeuzipError, StorageError

# Coalesces the writes of small frames; larger ones pass through it.
_BUFFER_BYTES = 1 << 20
# Large enough to make calls rare, small enough for a core's cache.
_COMPARE_BYTES = 1 << 20


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turns an OSError of the block into a StorageError that names `path` and keeps the errno."""
    try:
        yield
    except NeuzipError:
        raise
    except OSError as error:
        named = StorageError(error.strerror or str(error), file=path)
        named.errno = error.errno
        raise named from error


class MappedFile:
    """A regular file, open for reading, its bytes in `view`. A context manager.

    Truncating the file while it is mapped ends the process: that is what memory maps do.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage(path):
            # Asked first: opening a pipe would wait for a writer.
            if not stat.S_ISREG(path.stat().st_mode):
                raise InvalidArgument("not a regular file", file=path)
            with path.open("rb") as file:
                self._status = os.fstat(file.fileno())
                # An empty file cannot be mapped.
                self._map = (
                    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self._status.st_size else None
                )
        self.view = memoryview(self._map if self._map is not None else b"")

    @property
    def mode(self) -> int:
        """The permission bits."""
        return stat.S_IMODE(self._status.st_mode) & 0o777

    def check_unchanged(self) -> None:
        """Raises StorageError if the file has been replaced or written to since it was opened."""
        with storage(self.path):
            now = self.path.stat()
        before = self._status
        if (now.st_ino, now.st_size, now.st_mtime_ns) != (before.st_ino, before.st_size, before.st_mtime_ns):
            raise StorageError("the file changed while it was read", file=self.path)

    def close(self) -> None:
        """Ends the mapping, or leaves that to the last view of it."""
        with suppress(BufferError):
            self.view.release()
            if self._map is not None:
                self._map.close()

    def __enter__(self) -> MappedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def same_bytes(left: memoryview, right: memoryview) -> bool:
    """Whether two views of bytes are equal."""
    if len(left) != len(right):
        return False
    a, b = np.frombuffer(left, np.uint8), np.frombuffer(right, np.uint8)
    return all(
        np.array_equal(a[start : start + _COMPARE_BYTES], b[start : start + _COMPARE_BYTES])
        for start in range(0, len(a), _COMPARE_BYTES)
    )


def refuse_existing(destination: Path, *, force: bool, directory: bool) -> None:
    """Raises InvalidArgument if `destination` exists and may not be replaced."""
    with storage(destination):
        try:
            mode = destination.lstat().st_mode
        except FileNotFoundError:
            return
    if not force:
        raise InvalidArgument("the destination exists; force replaces it", file=destination)
    if directory != stat.S_ISDIR(mode):
        kind = "not a directory" if directory else "not a file"
        if directory or not stat.S_ISLNK(mode):
            raise InvalidArgument(f"the destination exists and is {kind}", file=destination)


@contextmanager
def created_file(path: Path, *, mode: int, destination: Path) -> Iterator[BinaryIO]:
    """A file that must not exist yet, for writing. Synced after the block, or removed if the block fails.

    Errors name `destination`, the path the file will be known by.
    """
    with storage(destination):
        file = path.open("xb", buffering=_BUFFER_BYTES)
    try:
        with storage(destination):
            yield file
            file.flush()
            path.chmod(mode)
            os.fsync(file.fileno())
            # Network file systems report the last failed write here.
            file.close()
    except BaseException:
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            path.unlink()
        raise


def drop_cache(path: Path) -> None:
    """Asks the system to forget what it holds of a synced file, so that it is next read from the disk."""
    if hasattr(os, "posix_fadvise"):
        with storage(path), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable."""
    with storage(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def walk_files(root: Path) -> Iterator[tuple[str, Path]]:
    """Every file below `root` as (relative path with "/", path), sorted. Symbolic links count as files."""

    def refuse(error: OSError) -> None:
        raise error

    with storage(root):
        found = []
        for folder, folders, names in os.walk(root, onerror=refuse):
            links = [name for name in folders if Path(folder, name).is_symlink()]
            found += [Path(folder, name) for name in names + links]
    return iter(sorted((path.relative_to(root).as_posix(), path) for path in found))


def remove_files(root: Path, names: Iterable[str]) -> None:
    """Removes the named files below `root`, then every directory, which must be empty by then."""
    for name in names:
        with storage(root / name):
            (root / name).unlink()
    for folder, _, _ in os.walk(root, topdown=False):
        with storage(Path(folder)):
            Path(folder).rmdir()
