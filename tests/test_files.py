"""Failing storage: a typed error, and nothing lost or left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_files import snapshot

from neuzip import files
from neuzip.checkpoint import compress_file, decompress_file, verify_file
from neuzip.errors import (
    InvalidArgument,
    StorageError,
    TruncatedInput,
)


def without_drafts(root: Path) -> dict[str, tuple[str, int]]:
    return {name: found for name, found in snapshot(root).items() if not name.startswith(".neuzip")}


def assert_no_draft(start: Path, directory: bool, root: Path) -> None:
    """A file's draft is gone. A directory's may be there, until the next call has gone on from it."""
    if directory:
        (decompress_file if (start / "neuzip.json").exists() else compress_file)(
            start, root / "out", force=True
        )
    assert not list(root.glob(".neuzip*"))


def test_missing_source(tmp_path: Path) -> None:
    for work in (compress_file, decompress_file):
        with pytest.raises(StorageError) as caught:
            work(tmp_path / "none.nz.safetensors", tmp_path / "out")
        assert caught.value.file == str(tmp_path / "none.nz.safetensors")
        assert caught.value.errno == errno.ENOENT
    with pytest.raises(StorageError):
        verify_file(tmp_path / "none")


def test_a_pipe_as_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(InvalidArgument, match="regular file"):
        compress_file(tmp_path / "pipe.safetensors")


def test_an_empty_source(tmp_path: Path) -> None:
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(TruncatedInput):
        compress_file(tmp_path / "empty.safetensors")


def test_missing_destination_directory(source: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        compress_file(source, tmp_path / "none" / "out")
    assert caught.value.file == str(tmp_path / "none" / "out")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        compress_file(source, tmp_path / "file" / "out")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StorageError):
        compress_file(source, tmp_path / "loop" / "out")
    with pytest.raises(StorageError):
        compress_file(tmp_path / "loop", tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_destination(source: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(StorageError):
        compress_file(source, tmp_path / "locked" / "out")


def test_unwritable_destination_on_any_user(source: Path) -> None:
    """/proc takes no files, not even from root."""
    with pytest.raises(StorageError):
        compress_file(source, Path("/proc/out"))


LIMITED = """
import resource, sys
from neuzip.checkpoint import compress_file, decompress_file
from neuzip.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), int(sys.argv[4])))
try:
    {"c": compress_file, "d": decompress_file}[sys.argv[1]](sys.argv[2], sys.argv[3], force=True)
except StorageError as error:
    assert error.file.startswith(sys.argv[3]), error.file
    sys.exit(42)
"""


@pytest.mark.parametrize("limit", [0, 1000, 20_000])
@pytest.mark.parametrize("directory", [False, True])
@pytest.mark.parametrize("compress", [False, True])
def test_full_destination(
    source: Path, folder: Path, tmp_path: Path, limit: int, directory: bool, compress: bool
) -> None:
    """A limit on file sizes stands for a full disk: writes fail in the middle."""
    start = folder if directory else source
    if not compress:
        compress_file(start, tmp_path / "packed")
        start = tmp_path / "packed"
    out = tmp_path / "out"
    if not directory:
        out.write_bytes(b"precious")
    before = snapshot(tmp_path)
    command = [sys.executable, "-c", LIMITED, "c" if compress else "d", str(start), str(out), str(limit)]
    assert subprocess.run(command, check=False).returncode == 42
    assert without_drafts(tmp_path) == before
    assert_no_draft(start, directory, tmp_path)


@pytest.mark.parametrize("directory", [False, True])
def test_a_failing_sync_loses_nothing(
    source: Path, folder: Path, tmp_path: Path, directory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", fail)
    before = snapshot(tmp_path)
    with pytest.raises(StorageError, match="Input/output"):
        compress_file(folder if directory else source, remove=True)
    assert snapshot(tmp_path) == before
    assert not list(tmp_path.glob(".neuzip*"))


@pytest.mark.parametrize("directory", [False, True])
def test_an_interrupt(source: Path, folder: Path, tmp_path: Path, directory: bool) -> None:
    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    before = snapshot(tmp_path)
    start = folder if directory else source
    with pytest.raises(KeyboardInterrupt):
        compress_file(start, tmp_path / "out", progress=interrupt)
    assert without_drafts(tmp_path) == before
    assert_no_draft(start, directory, tmp_path)


def test_a_source_that_changes_meanwhile(source: Path) -> None:
    def touch(done: int, total: int) -> None:
        os.utime(source, ns=(0, done))

    with pytest.raises(StorageError, match="changed"):
        compress_file(source, progress=touch)
    assert list(source.parent.iterdir()) == [source]
