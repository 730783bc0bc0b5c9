"""compress_file, decompress_file, verify_file for directories (§8), and shard indexes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import ORIGINAL, edit_manifest, manifest_of, snapshot
from safetensors_file import with_header

from neuzip.checkpoint import compress_file, decompress_file, verify_file
from neuzip.errors import (
    CorruptFrame,
    InvalidArgument,
    StorageError,
    TruncatedInput,
)


def test_directory_roundtrip(folder: Path, tmp_path: Path) -> None:
    before = snapshot(folder)
    report = compress_file(folder)
    packed = tmp_path / "llama.nz"
    assert report.destination == packed
    assert snapshot(folder) == before
    names = {str(path.relative_to(packed)) for path in packed.rglob("*") if path.is_file()}
    assert names == {*before, "neuzip.json"}
    assert report.original_size == sum((folder / name).stat().st_size for name in before)
    assert report.compressed_size == sum((packed / name).stat().st_size for name in names)
    for name, record in manifest_of(packed)["files"].items():
        assert record["sha256"] == before[name][0]
        assert record["size"] == (folder / name).stat().st_size
        coding = "container" if "adapter" in name or "model-" in name else "copy"
        assert record["coding"] == ("config" if name == "config.json" else coding)

    verified = verify_file(packed)
    assert (verified.original_size, verified.compressed_size) == (
        report.original_size,
        report.compressed_size,
    )
    folder.rename(tmp_path / "away")
    report = decompress_file(packed)
    assert report.destination == folder
    assert snapshot(folder) == before


def test_directory_progress(folder: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = compress_file(folder, progress=lambda *call: calls.append(call))
    assert calls[-1] == (report.original_size, report.original_size)
    for work in (
        lambda progress: decompress_file(tmp_path / "llama.nz", tmp_path / "back", progress=progress),
        lambda progress: verify_file(tmp_path / "llama.nz", progress=progress),
        lambda progress: verify_file(folder, progress=progress),
    ):
        calls.clear()
        work(lambda *call: calls.append(call))
        assert calls == sorted(calls)
        assert calls[-1] == (report.original_size, report.original_size)


def test_dot_as_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    compress_file(".")
    assert verify_file("../llama.nz").files
    monkeypatch.chdir(folder / "sub")
    compress_file("..", force=True)
    shutil.rmtree(folder)
    assert decompress_file(f"{folder}.nz/").destination == folder


def test_single_files_of_a_compressed_directory(folder: Path, tmp_path: Path) -> None:
    compress_file(folder)
    inside = tmp_path / "llama.nz" / "sub" / "adapter.safetensors"
    assert verify_file(inside).files[0].coding == "container"
    with pytest.raises(InvalidArgument, match="destination is needed"):
        decompress_file(inside)
    decompress_file(inside, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == ORIGINAL


def test_directories_in_the_wrong_direction(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="not a compressed directory"):
        decompress_file(folder, tmp_path / "out")
    with pytest.raises(InvalidArgument, match="destination is needed"):
        decompress_file(folder)
    compress_file(folder)
    with pytest.raises(InvalidArgument, match="already compressed"):
        compress_file(tmp_path / "llama.nz")


def test_verify_a_plain_directory(folder: Path) -> None:
    codings = {file.path: file.coding for file in verify_file(folder).files}
    assert codings["sub/adapter.safetensors"] == "plain"
    assert codings["config.json"] == "copy"
    path = folder / "sub" / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TruncatedInput) as caught:
        verify_file(folder)
    assert caught.value.file == str(path)


def test_existing_directory(folder: Path, tmp_path: Path) -> None:
    packed = tmp_path / "llama.nz"
    compress_file(folder)
    with pytest.raises(InvalidArgument, match="exists"):
        compress_file(folder)
    # A file of the old result that is gone from the source disappears.
    (folder / "config.json").unlink()
    compress_file(folder, force=True)
    assert not (packed / "config.json").exists()
    with pytest.raises(InvalidArgument, match="exists"):
        decompress_file(packed)
    (folder / "empty").write_bytes(b"changed")
    decompress_file(packed, force=True)
    assert (folder / "empty").read_bytes() == b""
    assert sorted(tmp_path.iterdir()) == [folder, packed]


def test_force_loses_no_foreign_file(folder: Path, tmp_path: Path) -> None:
    packed = tmp_path / "llama.nz"
    compress_file(folder)
    for start, out in ((folder, packed), (packed, folder)):
        (out / "sub" / "notes.txt").write_text("mine")
        before = snapshot(tmp_path)
        with pytest.raises(InvalidArgument, match="would be lost") as caught:
            (compress_file if start is folder else decompress_file)(start, force=True)
        assert caught.value.file == str(out / "sub" / "notes.txt")
        assert snapshot(tmp_path) == before
        (out / "sub" / "notes.txt").unlink()
    with pytest.raises(InvalidArgument, match="lie in each other"):
        compress_file(folder, tmp_path, force=True)
    with pytest.raises(InvalidArgument, match="lie in each other"):
        compress_file(folder, folder / "out")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match="not a directory"):
        compress_file(folder, tmp_path / "file", force=True)


def test_links_of_the_hugging_face_cache(folder: Path, tmp_path: Path) -> None:
    before = snapshot(folder)
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate([path for path in folder.rglob("*") if path.is_file()]):
        blob = path.rename(tmp_path / "blobs" / str(number))
        path.symlink_to(blob)
    compress_file(folder, tmp_path / "packed")
    assert not any(path.is_symlink() for path in (tmp_path / "packed").rglob("*"))
    decompress_file(tmp_path / "packed", tmp_path / "back")
    assert snapshot(tmp_path / "back") == before
    compress_file(folder, remove=True)
    assert len(list((tmp_path / "blobs").iterdir())) == len(before)
    assert not folder.exists()


def test_sources_that_are_no_files(folder: Path, tmp_path: Path) -> None:
    odd = folder / "odd"
    odd.symlink_to(tmp_path)
    with pytest.raises(InvalidArgument, match="link to a directory"):
        compress_file(folder)
    odd.unlink()
    odd.symlink_to(tmp_path / "nothing")
    with pytest.raises(StorageError) as caught:
        compress_file(folder)
    assert caught.value.file == str(odd)
    odd.unlink()
    os.mkfifo(odd)
    with pytest.raises(InvalidArgument, match="not a regular file"):
        compress_file(folder)
    odd.unlink()
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).touch()
    with pytest.raises(InvalidArgument, match="not Unicode"):
        compress_file(folder)
    assert not (tmp_path / "llama.nz").exists()


def test_containers_and_later_dtypes_in_a_directory_are_copied(folder: Path, source: Path) -> None:
    compress_file(source, folder / "packed.nz.safetensors")
    text = b'{"a":{"dtype":"U128","shape":[1],"data_offsets":[0,16]}}'
    (folder / "later.safetensors").write_bytes(with_header(text, bytes(16)))
    before = snapshot(folder)
    compress_file(folder)
    shutil.rmtree(folder)
    codings = manifest_of(folder.with_name("llama.nz"))["files"]
    assert codings["packed.nz.safetensors"]["coding"] == "copy"
    assert codings["later.safetensors"]["coding"] == "copy"
    decompress_file(folder.with_name("llama.nz"))
    assert snapshot(folder) == before


def test_a_broken_safetensors_file_in_a_directory(folder: Path) -> None:
    (folder / "broken.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CorruptFrame, match="not a safetensors file") as caught:
        compress_file(folder)
    assert caught.value.file == str(folder / "broken.safetensors")


def write_index(root: Path, weight_map: Any) -> None:
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_missing_shard(folder: Path) -> None:
    compress_file(folder)
    shard = "model-00002-of-00002.safetensors"
    (folder / shard).unlink()
    for work in (compress_file, verify_file):
        with pytest.raises(StorageError, match=shard) as caught:
            work(folder, **({"force": True} if work is compress_file else {}))
        assert caught.value.tensor == "b"

    packed = folder.with_name("llama.nz")
    edit_manifest(packed, lambda fields: fields["files"].pop(shard))
    for work in (verify_file, decompress_file):
        with pytest.raises(StorageError, match=shard):
            work(packed)


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/passwd", "", ".", "sub//x", "sub/../config.json", "a\0b"]
)
def test_index_names_that_are_refused(folder: Path, name: str) -> None:
    write_index(folder, {"a": name})
    with pytest.raises(CorruptFrame, match="refused") as caught:
        compress_file(folder)
    assert caught.value.file == str(folder / "model.safetensors.index.json")


@pytest.mark.parametrize("weight_map", [None, [], {"a": 1}, {"a": None}, "x"])
def test_malformed_indexes(folder: Path, weight_map: Any) -> None:
    write_index(folder, weight_map)
    with pytest.raises(CorruptFrame, match="weight_map"):
        compress_file(folder)
    (folder / "model.safetensors.index.json").write_bytes(b"[" * 100_000)
    with pytest.raises(CorruptFrame, match="JSON"):
        compress_file(folder)


def test_an_index_below_a_directory(folder: Path) -> None:
    write_index(folder / "sub", {"a": "adapter.safetensors", "b": "deep/run.sh"})
    compress_file(folder)
    write_index(folder / "sub", {"a": "config.json"})
    with pytest.raises(StorageError, match=r"config\.json"):
        compress_file(folder, force=True)
