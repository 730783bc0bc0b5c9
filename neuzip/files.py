"""Files: read through a memory map or with plain reads; created, synced; walked and removed."""

from __future__ import annotations

import io
import mmap
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from neuzip import _system
from neuzip.errors import InvalidArgument, NeuzipError, StorageError

BACKENDS = ("mmap", "read", None)
# f_type of statfs(2) and linux/magic.h: NFS, SMB and CIFS, FUSE (sshfs, object stores, virtiofs), 9P, Lustre, Ceph,
# AFS, GPFS, BeeGFS, OrangeFS.
_REMOTE = frozenset(
    {
        0x6969,
        0x517B,
        0xFE534D42,
        0xFF534D42,
        0x65735546,
        0x01021997,
        0x0BD00BD0,
        0x00C36400,
        0x5346414F,
        0x47504653,
        0x19830326,
        0x20030528,
    }
)
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


class ReadView:
    """A part of a file as a sequence of bytes that are read when they are sliced."""

    def __init__(self, path: Path, file: io.FileIO, start: int, stop: int) -> None:
        self._path, self._file, self._start, self._stop = path, file, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, part: slice) -> memoryview:
        """The bytes of a slice without a step, in memory of their own. Raises StorageError."""
        low, high, _ = part.indices(len(self))
        out = memoryview(bytearray(max(0, high - low)))
        at = 0
        with storage(self._path):
            while at < len(out):
                count = os.preadv(self._file.fileno(), [out[at:]], self._start + low + at)
                if count == 0:
                    raise StorageError("the file became shorter while it was read", file=self._path)
                at += count
        return out.toreadonly()

    def part(self, start: int, stop: int) -> ReadView:
        """A part, which is not read yet."""
        low, high, _ = slice(start, stop).indices(len(self))
        return ReadView(self._path, self._file, self._start + low, self._start + max(low, high))


View = memoryview | ReadView


def lazy_part(view: View, start: int, stop: int) -> View:
    """view[start:stop] whose bytes are only read, if they have to be, when that is sliced."""
    return view.part(start, stop) if isinstance(view, ReadView) else view[start:stop]


class FileBytes:
    """A regular file, open for reading, its bytes in `view`. A context manager.

    backend: "mmap"; "read", with which `view` reads what is sliced; None for "read" on network file systems, where a
    lost connection would end a process that has mapped a file, and else "mmap". Truncating a file while it is mapped
    ends the process as well: that is what memory maps do. Raises InvalidArgument for another backend.
    """

    def __init__(self, path: Path, backend: str | None = None) -> None:
        if backend not in BACKENDS:
            raise InvalidArgument(f"backend {backend!r} is none of 'mmap' and 'read'")
        self.path = path
        self.view: Any = memoryview(b"")  # of the two, only a memoryview is a buffer
        self._map: mmap.mmap | None = None
        self._file: io.FileIO | None = None
        with storage(path):
            # Asked first: opening a pipe would wait for a writer.
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode):
                what = "a directory, not a file" if stat.S_ISDIR(mode) else "not a regular file"
                raise InvalidArgument(what, file=path)
            with ExitStack() as stack:
                file = stack.enter_context(io.FileIO(path))
                self._status = os.fstat(file.fileno())
                backend = backend or ("read" if is_remote(file.fileno()) else "mmap")
                if backend == "read":
                    self._file = file
                    self.view = ReadView(path, file, 0, self._status.st_size)
                    stack.pop_all()
                elif self._status.st_size:  # an empty file cannot be mapped
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                    self.view = memoryview(self._map)

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

    def forget(self, start: int = 0, stop: int | None = None) -> None:
        """Lets go of bytes that were read through a memory map, so that they do not count as this process's memory.

        They are in the system's cache still, and are mapped again where they are touched again.
        """
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = len(self._map) if stop is None else stop // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        """Ends the mapping, or leaves that to the last view of it."""
        if self._file is not None:
            self._file.close()
            return
        with suppress(BufferError):
            self.view.release()
            if self._map is not None:
                self._map.close()

    def __enter__(self) -> FileBytes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_remote(descriptor: int) -> bool:
    """Whether an open file lies on a network file system, as far as the system tells."""
    return _system.file_system_type(descriptor) in _REMOTE


def same_bytes(left: View, right: View) -> bool:
    """Whether two views of bytes are equal."""
    if len(left) != len(right):
        return False
    for start in range(0, len(left), _COMPARE_BYTES):
        a, b = left[start : start + _COMPARE_BYTES], right[start : start + _COMPARE_BYTES]
        if not _system.equal(a, b):
            return False
    return True


def refuse_existing(destination: Path, *, force: bool, directory: bool) -> None:
    """Raises InvalidArgument if `destination` exists and may not be replaced."""
    with storage(destination):
        try:
            mode = destination.lstat().st_mode
        except FileNotFoundError:
            return
    if directory != stat.S_ISDIR(mode) and (directory or not stat.S_ISLNK(mode)):
        kind = "not a directory" if directory else "a directory" if stat.S_ISDIR(mode) else "not a file"
        raise InvalidArgument(f"the destination exists and is {kind}", file=destination)
    if not force:
        raise InvalidArgument("the destination exists; force replaces it", file=destination)


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


def remove_tree(root: Path, *, ignore_errors: bool = False) -> None:
    """Removes a directory and all that is in it."""
    import shutil  # which costs a single file's compression more than it does itself

    shutil.rmtree(root, ignore_errors=ignore_errors)


def remove_files(root: Path, names: Iterable[str]) -> None:
    """Removes the named files below `root`, then every directory, which must be empty by then."""
    for name in names:
        with storage(root / name):
            (root / name).unlink()
    for folder, _, _ in os.walk(root, topdown=False):
        with storage(Path(folder)):
            Path(folder).rmdir()
