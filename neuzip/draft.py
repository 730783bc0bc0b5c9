"""Drafts: what is written lies beside its destination until it is complete, and is then renamed into place.

Beside a destination there may be, with its name's digest in theirs: `.lock`, held while one process writes, and the
journal of what a directory's draft has; `.partial`, the draft; `.old`, a directory that is being replaced. A process
that is killed leaves them; the next one that writes to the same destination takes them over.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from neuzip import _system
from neuzip.errors import DestinationBusy, NeuzipError, StorageError
from neuzip.files import created_file, refuse_existing, remove_tree, storage, sync_directory, walk_files

__all__ = ["DirectoryDraft", "created_file", "drafted_directory", "drafted_file"]

# What file systems without locks answer: some network ones, depending on how they were mounted.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_RESUME = "what is done is kept: repeat the command to resume"


@contextmanager
def drafted_file(destination: Path, *, force: bool) -> Iterator[Path]:
    """A path beside `destination` for the block to create a file at; after the block it is renamed.

    If the block fails the draft is removed and `destination` is as it was. Raises StorageError,
    DestinationBusy, and InvalidArgument if `destination` exists and `force` is not set.
    """
    with _locked(destination):
        refuse_existing(destination, force=force, directory=False)
        draft = _beside(destination, "partial")
        try:
            with storage(destination):
                _discard(draft)
            yield draft
            refuse_existing(destination, force=force, directory=False)
            with storage(destination):
                draft.replace(destination)
                sync_directory(destination.parent)
        except BaseException:
            with suppress(OSError):
                draft.unlink()
            raise


class DirectoryDraft:
    """A directory under construction at `path`, and the journal of the files in it that are complete."""

    def __init__(self, path: Path, journal: BinaryIO, work: str, names: Collection[str]) -> None:
        self.path = path
        self._journal = journal
        self._vouched = _read_journal(journal, work)
        if not path.is_dir() or path.is_symlink():
            _discard(path)
            path.mkdir()
        self._keep_vouched(names)
        if not self._vouched:
            journal.truncate(0)
            self._append({"work": work})

    def _keep_vouched(self, names: Collection[str]) -> None:
        """Removes what is not complete, has changed or is no longer wanted."""
        found = dict(walk_files(self.path))
        for name, path in found.items():
            entry = self._vouched.get(name)
            if name not in names or entry is None or entry["draft"] != _identity(path):
                self._vouched.pop(name, None)
                path.unlink()
        self._vouched = {name: entry for name, entry in self._vouched.items() if name in found}
        for folder, _, _ in os.walk(self.path, topdown=False):
            if folder != str(self.path):
                with suppress(OSError):  # not empty
                    Path(folder).rmdir()

    def done(self, name: str, source: Path) -> dict[str, Any] | None:
        """What was said of a file when it was added; None if it is to be made, or its source has changed since."""
        entry = self._vouched.get(name)
        if entry is None:
            return None
        if entry["source"] == _identity(source):
            facts: dict[str, Any] = entry["facts"]
            return facts
        del self._vouched[name]
        (self.path / name).unlink()
        return None

    def add(self, name: str, source: Path, facts: dict[str, Any]) -> None:
        """Notes that a file is complete and synced."""
        entry = {"source": _identity(source), "draft": _identity(self.path / name), "facts": facts}
        self._vouched[name] = entry
        self._append({"name": name, **entry})

    @property
    def worth_keeping(self) -> bool:
        """Whether anything is done that would not have to be done again."""
        return bool(self._vouched)

    def _append(self, line: dict[str, Any]) -> None:
        self._journal.seek(0, os.SEEK_END)
        self._journal.write(json.dumps(line).encode() + b"\n")
        self._journal.flush()


@contextmanager
def drafted_directory(
    destination: Path, *, force: bool, check: Callable[[], None], work: str, names: Collection[str]
) -> Iterator[DirectoryDraft]:
    """As drafted_file, for a directory. `check` may refuse to replace what is there.

    work: what is being done, with which options. names: the files the directory is to have. After an
    interruption or a failure of the storage the draft stays; the next call for the same destination and work
    goes on from there.
    """
    with _locked(destination) as lock:
        refuse_existing(destination, force=force, directory=True)
        check()
        path, draft = _beside(destination, "partial"), None
        try:
            with storage(destination):
                draft = DirectoryDraft(path, lock.file, work, names)
                yield draft
            for folder, _, _ in os.walk(path):
                sync_directory(Path(folder))
            refuse_existing(destination, force=force, directory=True)
            check()
            with storage(destination):
                _put(path, destination)
        except BaseException as error:
            # What is wrong with the data would be wrong again.
            accident = not isinstance(error, NeuzipError) or isinstance(error, StorageError)
            lock.keep = accident and draft is not None and draft.worth_keeping and path.exists()
            if lock.keep:
                error.add_note(_RESUME)
            else:
                remove_tree(path, ignore_errors=True)
            raise


class _Lock:
    """keep: leave the file, which is the journal of a draft to be resumed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.keep = False


@contextmanager
def _locked(destination: Path) -> Iterator[_Lock]:
    """Holds the right to write to `destination`. Raises DestinationBusy if another process or thread does."""
    path = _beside(destination, "lock")
    with storage(destination):
        lock = _Lock(_acquire(path, destination))
    try:
        with storage(destination):
            _finish_replacement(destination)
        yield lock
    finally:
        # Removed before it is released, so that no other process locks a file without a name for long.
        if not lock.keep:
            with suppress(OSError):
                path.unlink()
        with suppress(OSError):
            lock.file.close()


def _acquire(path: Path, destination: Path) -> BinaryIO:
    while True:
        try:
            file, created = path.open("x+b"), True
        except FileExistsError:
            try:
                file, created = path.open("r+b"), False
            except FileNotFoundError:
                continue
        try:
            if _try_lock(file, created, path, destination):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _try_lock(file: BinaryIO, created: bool, path: Path, destination: Path) -> bool:
    """False if whoever held the lock has removed its file in the meantime."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _busy("another process is writing it", destination) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        # Then the name is the lock; nobody can tell whether the process that made it still lives.
        if not created:
            raise _busy(
                f"another process is writing it, or was killed: then {path.name} beside it has to be removed",
                destination,
            ) from None
        return True
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _busy(message: str, destination: Path) -> DestinationBusy:
    error = DestinationBusy(message, file=destination)
    error.errno = errno.EBUSY
    return error


def _beside(destination: Path, what: str) -> Path:
    # Not made from the destination's name itself, which may already be as long as a name can be.
    digest = hashlib.sha256(os.fsencode(destination.name)).hexdigest()[:16]
    return destination.with_name(f".neuzip-{digest}.{what}")


def _put(draft: Path, destination: Path) -> None:
    """Makes a directory take the name `destination`, and removes what had it before."""
    old = _beside(destination, "old")
    if not destination.exists():
        draft.rename(destination)
    elif _system.exchange_paths(draft, destination):
        draft.rename(old)
    else:
        # A process killed in between leaves no destination, but all of `old`: _finish_replacement puts it back.
        destination.rename(old)
        try:
            draft.rename(destination)
        except OSError:
            old.rename(destination)
            raise
    sync_directory(destination.parent)
    # The result is in place: what is left of the old one is removed now or by the next call.
    remove_tree(old, ignore_errors=True)


def _finish_replacement(destination: Path) -> None:
    old = _beside(destination, "old")
    if not old.exists():
        return
    if destination.exists():
        _discard(old)
    else:
        old.rename(destination)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def _identity(path: Path) -> list[int]:
    """What changes when a file is written to or replaced."""
    status = path.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _read_journal(journal: BinaryIO, work: str) -> dict[str, dict[str, Any]]:
    """Entries by name; none if the journal is of other work. It is cut where a line is not whole."""
    entries: dict[str, dict[str, Any]] = {}
    journal.seek(0)
    end = 0
    try:
        for line in journal:
            entry = json.loads(line)
            if end == 0 and entry != {"work": work}:
                return {}
            if end:
                entries[entry["name"]] = {key: entry[key] for key in ("source", "draft", "facts")}
            end += len(line)
    except (ValueError, KeyError, TypeError):
        journal.truncate(end)
    return entries
