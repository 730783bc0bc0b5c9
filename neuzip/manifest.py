"""The manifest of a compressed directory (§8), and the shard indexes that name files beside themselves."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from neuzip.digest import is_sha256
from neuzip.errors import CorruptFrame, NeuzipError, StorageError, UnsupportedFormat
from neuzip.files import FileBytes, storage
from neuzip.safetensors_header import parse_json

MANIFEST_NAME = "neuzip.json"
VERSION = 1
CONTAINER = "container"
ARCHIVE = "archive"
ARCHIVE_MAGIC = b"NZAR"
COPY = "copy"
CONFIG = "config"
INDEX_SUFFIX = ".safetensors.index.json"


@dataclass(frozen=True)
class Record:
    """One file of a directory: bytes and sha256 of the original, and `coding`, as of §8."""

    size: int
    sha256: str
    coding: str


@dataclass(frozen=True)
class Manifest:
    """The files of a compressed directory by relative path."""

    files: dict[str, Record]

    @classmethod
    def read(cls, root: Path) -> Manifest:
        """Reads the manifest of the compressed directory `root`.

        Raises CorruptFrame, UnsupportedFormat, StorageError.
        """
        path = member_path(root, MANIFEST_NAME)
        with FileBytes(path) as file:
            try:
                return cls.parse(bytes(file.view[:]))
            except NeuzipError as error:
                error.at(file=path)
                raise

    @classmethod
    def parse(cls, text: bytes) -> Manifest:
        """Parses a manifest. Unknown fields are ignored: a later version may add some (§9)."""
        fields = parse_json(text)
        version = fields.get("neuzip")
        if type(version) is not int or version < 1:
            raise CorruptFrame("not a manifest: no version")
        if version > VERSION:
            raise UnsupportedFormat(f"the manifest has version {version}; this decoder knows {VERSION}")
        files = fields.get("files")
        if not isinstance(files, dict):
            raise CorruptFrame("the manifest has no files")
        for name in files:
            check_path(name)
        _refuse_nesting(files)
        return cls({name: _record(name, value) for name, value in files.items()})

    def format(self) -> bytes:
        """The manifest's text."""
        fields = {"neuzip": VERSION, "files": {name: asdict(record) for name, record in self.files.items()}}
        return json.dumps(fields, ensure_ascii=False, indent=1).encode("utf-8") + b"\n"

    @property
    def size(self) -> int:
        """Bytes of all originals."""
        return sum(record.size for record in self.files.values())


def is_archive(file: FileBytes) -> bool:
    """Whether a file begins as an archive (§10) does."""
    return bytes(file.view[: len(ARCHIVE_MAGIC)]) == ARCHIVE_MAGIC


def check_path(name: str) -> None:
    """Raises CorruptFrame unless `name` is relative and stays below the directory it starts at (§8)."""
    parts = name.split("/")
    if (
        any(part in ("", ".", "..") for part in parts)
        or "\0" in name
        or (os.sep != "/" and (os.sep in name or ":" in name))
    ):
        raise CorruptFrame(f"the path {name!a} is refused: it is not relative and plain")
    if name == MANIFEST_NAME:
        raise CorruptFrame("the manifest lists itself")


def member_path(root: Path, name: str) -> Path:
    """The path of a file below `root`.

    Raises CorruptFrame if it leads through a symbolic link (§8) or to no regular file, StorageError if
    nothing is there.
    """
    path = root
    for part in name.split("/"):
        path = path / part
        with storage(path):
            mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise CorruptFrame("a path that leads through a symbolic link is refused", file=path)
    if not stat.S_ISREG(mode):
        raise CorruptFrame("not a regular file", file=path)
    return path


def is_index(name: str) -> bool:
    """Whether a relative path is that of a shard index."""
    return name.endswith(INDEX_SUFFIX)


def check_index(path: Path, name: str, names: Iterable[str]) -> None:
    """Checks that every shard that the index at `path` names is among `names`. `name` is the index's own one.

    Raises CorruptFrame for an index or a shard name that is refused, StorageError for a missing shard.
    """
    known = set(names)
    folder = PurePosixPath(name).parent
    with FileBytes(path) as file:
        try:
            shards = _shards(bytes(file.view[:]))
            for tensor, shard in shards.items():
                check_path(shard)
                if (folder / shard).as_posix() not in known:
                    missing = StorageError(
                        f"the shard {shard!a} that the index names is missing", tensor=tensor
                    )
                    missing.errno = errno.ENOENT
                    raise missing
        except NeuzipError as error:
            error.at(file=path)
            raise


def _shards(text: bytes) -> dict[str, str]:
    weights = parse_json(text).get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(shard, str) for shard in weights.values()):
        raise CorruptFrame("the index has no weight_map from tensor names to file names")
    return weights


def _refuse_nesting(names: Iterable[str]) -> None:
    """Refuses a path that needs another one of the manifest's files to be a directory."""
    files = set(names)
    for name in files:
        for parent in PurePosixPath(name).parents:
            if parent.as_posix() in files:
                raise CorruptFrame(f"{name!a} lies below {parent.as_posix()!a}, which is a file")


def _record(name: str, value: Any) -> Record:
    if not isinstance(value, dict):
        raise CorruptFrame(f"the manifest's entry {name!a} is not an object")
    size, sha256, coding = value.get("size"), value.get("sha256"), value.get("coding")
    if type(size) is not int or not 0 <= size < 1 << 63:
        raise CorruptFrame(f"the manifest's entry {name!a} has no size")
    if not is_sha256(sha256):
        raise CorruptFrame(f"the manifest's entry {name!a} has no sha256")
    if coding not in (CONTAINER, ARCHIVE, CONFIG, COPY):
        raise UnsupportedFormat(f"the manifest's entry {name!a} has an unknown coding {ascii(coding)[:40]}")
    return Record(size, sha256, coding)
