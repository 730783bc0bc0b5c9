"""remove: the source goes only after the result on disk was decoded and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import ORIGINAL, damage_on_sync, edit_manifest, snapshot

from neuzip.checkpoint import compress_file, decompress_file, verify_file
from neuzip.errors import (
    CorruptFrame,
    InvalidArgument,
    NeuzipError,
    StorageError,
)
from neuzip.frame_run import encode_run


def test_remove(source: Path) -> None:
    packed = source.with_name("model.nz.safetensors")
    compress_file(source, remove=True)
    assert list(source.parent.iterdir()) == [packed]
    decompress_file(packed, remove=True)
    assert list(source.parent.iterdir()) == [source]
    assert source.read_bytes() == ORIGINAL


@pytest.mark.parametrize("position", [0, 200, -1, -20_000])
def test_remove_reads_back_what_was_written(
    source: Path, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    damage_on_sync(monkeypatch, position)
    with pytest.raises(NeuzipError):
        compress_file(source, remove=True)
    assert list(source.parent.iterdir()) == [source]
    assert source.read_bytes() == ORIGINAL


@pytest.mark.parametrize("position", [0, 200, -1])
def test_remove_reads_back_what_was_restored(
    packed: Path, source: Path, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    source.unlink()
    before = packed.read_bytes()
    damage_on_sync(monkeypatch, position)
    with pytest.raises(CorruptFrame, match="decodes to"):
        decompress_file(packed, remove=True)
    assert list(source.parent.iterdir()) == [packed]
    assert packed.read_bytes() == before


def test_remove_compares_bytes_and_not_checksums(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that codes other bytes, with checksums to match."""

    def wrong(data: memoryview, *others: Any) -> list[memoryview]:
        return encode_run(memoryview(bytes([data[0] ^ 1]) + bytes(data[1:])), *others)

    monkeypatch.setattr("neuzip.container_writer.encode_run", wrong)
    with pytest.raises(CorruptFrame, match="decodes to other bytes"):
        compress_file(source, remove=True)
    assert list(source.parent.iterdir()) == [source]


def test_remove_with_an_existing_destination(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = source.with_name("model.nz.safetensors")
    packed.write_bytes(b"precious")
    damage_on_sync(monkeypatch, -1)
    with pytest.raises(NeuzipError):
        compress_file(source, remove=True, force=True)
    assert packed.read_bytes() == b"precious"
    assert source.read_bytes() == ORIGINAL


def test_remove_of_a_link_removes_the_link(source: Path, tmp_path: Path) -> None:
    blob = source.rename(tmp_path / "blob")
    source.symlink_to(blob)
    compress_file(source, remove=True)
    assert not source.is_symlink()
    assert blob.read_bytes() == ORIGINAL


def test_remove_of_a_directory(folder: Path) -> None:
    before = snapshot(folder)
    (folder / "hollow").mkdir()
    compress_file(folder, remove=True)
    packed = folder.with_name("llama.nz")
    assert list(folder.parent.iterdir()) == [packed]
    decompress_file(packed, remove=True)
    assert list(folder.parent.iterdir()) == [folder]
    assert snapshot(folder) == before


@pytest.mark.parametrize("back", [False, True])
def test_remove_of_a_directory_reads_back(folder: Path, monkeypatch: pytest.MonkeyPatch, back: bool) -> None:
    start = folder
    if back:
        compress_file(folder, remove=True)
        start = folder.with_name("llama.nz")
    before = snapshot(folder.parent)
    # The empty file has no bit to lose.
    if back:
        edit_manifest(start, lambda fields: fields["files"].pop("empty"))
        (start / "empty").unlink()
    else:
        (folder / "empty").unlink()
    before = snapshot(folder.parent)
    damage_on_sync(monkeypatch, -1)
    with pytest.raises(NeuzipError):
        (decompress_file if back else compress_file)(start, remove=True)
    assert snapshot(folder.parent) == before


def test_remove_of_a_copied_file_compares_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "config.json":
            path.unlink()
    damage_on_sync(monkeypatch, -1)
    with pytest.raises(CorruptFrame, match="differs"):
        compress_file(folder, remove=True)
    assert (folder / "config.json").exists()
    assert not folder.with_name("llama.nz").exists()


def test_remove_compares_the_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "empty").unlink()  # it has no bit to lose
    damage_on_sync(monkeypatch, -1)
    with pytest.raises(CorruptFrame, match="differs") as caught:
        compress_file(folder, remove=True)
    assert str(caught.value.file).endswith("config.json")
    assert (folder / "config.json").read_text() == '{"model_type": "llama"}'
    damage_on_sync(monkeypatch, 0)
    with pytest.raises(CorruptFrame, match="does not begin"):
        compress_file(folder, remove=True)


def test_remove_keeps_files_that_came_later(folder: Path) -> None:
    def add(done: int, total: int) -> None:
        (folder / "sub" / "later.txt").write_text("new")

    with pytest.raises(StorageError) as caught:
        compress_file(folder, remove=True, progress=add)
    assert caught.value.file == str(folder / "sub")
    assert (folder / "sub" / "later.txt").read_text() == "new"
    assert verify_file(folder.with_name("llama.nz")).files


def test_a_linked_directory_is_not_removed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(InvalidArgument, match="symbolic link"):
        compress_file(tmp_path / "link", remove=True)
    assert compress_file(tmp_path / "link").destination == tmp_path / "link.nz"
