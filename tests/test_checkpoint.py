"""compress_file, decompress_file, verify_file: files and directories on disk (§7, §8)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from safetensors_file import Tensor, build, model, with_header

from neuzip import container, files, member
from neuzip.checkpoint import compress_file, decompress_file, verify_file
from neuzip.container import Container
from neuzip.errors import CorruptFrame, InvalidArgument, NeuzipError, StorageError, TruncatedInput

ORIGINAL = build(model(["BF16", "F32", "U8", "I64"]), {"format": "pt"})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(ORIGINAL)
    return path


@pytest.fixture
def packed(source: Path) -> Path:
    """A container beside its original."""
    compress_file(source)
    return source.with_name("model.nz.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sharded checkpoint as transformers writes it, and more."""
    root = tmp_path / "llama"
    (root / "sub" / "deep").mkdir(parents=True)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for number, name in enumerate(names):
        (root / name).write_bytes(build(model(["BF16", "F16"], 2048 + 8 * number), {"format": "pt"}))
    weight_map = {"a": names[0], "b": names[1], "c": names[0]}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    (root / "config.json").write_text('{"model_type": "llama"}')
    (root / "tokenizer ü.json").write_bytes(b"{}\n")
    (root / "empty").write_bytes(b"")
    (root / "sub" / "adapter.safetensors").write_bytes(ORIGINAL)
    (root / "sub" / "deep" / "run.sh").write_text("#!/bin/sh\n")
    (root / "sub" / "deep" / "run.sh").chmod(0o750)
    noise = np.random.default_rng(0).bytes(10_000)
    (root / "noise.safetensors").write_bytes(build([Tensor("n", "I32", (2500,), noise)]))
    return root


def snapshot(root: Path) -> dict[str, tuple[str, int]]:
    """sha256 and mode of every file below a directory, or of one file."""
    paths = [root] if root.is_file() else [path for path in root.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(root)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            stat.S_IMODE(path.stat().st_mode),
        )
        for path in paths
    }


def manifest_of(root: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((root / "neuzip.json").read_text())
    return fields


def edit_manifest(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    fields = manifest_of(root)
    change(fields)
    (root / "neuzip.json").write_text(json.dumps(fields))


# --- one file ---


def test_file_roundtrip(source: Path) -> None:
    report = compress_file(source)
    packed = source.with_name("model.nz.safetensors")
    assert (report.source, report.destination) == (source, packed)
    assert report.original_size == len(ORIGINAL)
    assert report.compressed_size == packed.stat().st_size < len(ORIGINAL)
    assert report.ratio == report.compressed_size / report.original_size
    assert [file.coding for file in report.files] == ["container"]
    assert source.read_bytes() == ORIGINAL
    with safetensors.safe_open(packed, "np") as opened:
        assert set(opened.keys()) == {"layer.0.bf16", "layer.1.f32", "layer.2.u8", "layer.3.i64"}

    assert verify_file(packed).original_size == len(ORIGINAL)
    source.unlink()
    report = decompress_file(packed)
    assert report.destination == source
    assert source.read_bytes() == ORIGINAL
    assert packed.exists()


@pytest.mark.parametrize("level", ["default", "max"])
@pytest.mark.parametrize("threads", [None, 1, 3])
def test_options(source: Path, tmp_path: Path, level: str, threads: int | None) -> None:
    packed, back = tmp_path / "x", tmp_path / "y"
    compress_file(str(source), str(packed), level=level, threads=threads)
    decompress_file(str(packed), str(back), threads=threads)
    assert back.read_bytes() == ORIGINAL


def test_bad_options(source: Path) -> None:
    with pytest.raises(InvalidArgument, match="level"):
        compress_file(source, level="best")
    with pytest.raises(InvalidArgument, match="threads"):
        compress_file(source, threads=0)
    assert list(source.parent.iterdir()) == [source]


def test_names_that_need_a_destination(source: Path) -> None:
    with pytest.raises(InvalidArgument, match="destination is needed"):
        decompress_file(source)
    other = source.rename(source.with_name("model.bin"))
    with pytest.raises(InvalidArgument, match="destination is needed"):
        compress_file(other)
    bare = other.rename(source.with_name(".nz.safetensors"))
    with pytest.raises(InvalidArgument, match="destination is needed"):
        decompress_file(bare)


def test_wrong_direction(source: Path, packed: Path) -> None:
    with pytest.raises(InvalidArgument, match="already compressed"):
        compress_file(packed)
    with pytest.raises(InvalidArgument, match="not compressed"):
        decompress_file(source, source.with_name("out"))
    assert sorted(source.parent.iterdir()) == sorted([source, packed])


def test_verify_a_plain_file(source: Path) -> None:
    assert [file.coding for file in verify_file(source).files] == ["plain"]
    source.write_bytes(ORIGINAL[:-1])
    with pytest.raises(TruncatedInput) as caught:
        verify_file(source)
    assert caught.value.file == str(source)


def test_existing_destination(source: Path, packed: Path) -> None:
    packed.write_bytes(b"precious")
    with pytest.raises(InvalidArgument, match="exists"):
        compress_file(source)
    assert packed.read_bytes() == b"precious"
    compress_file(source, force=True)
    with pytest.raises(InvalidArgument, match="exists"):
        decompress_file(packed)
    source.write_bytes(b"old")
    decompress_file(packed, force=True)
    assert source.read_bytes() == ORIGINAL


def test_a_directory_is_not_replaced_by_a_file(source: Path, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(InvalidArgument, match="not a file"):
        compress_file(source, tmp_path / "d", force=True)


def test_the_destination_appears_only_when_complete(source: Path) -> None:
    seen: list[list[str]] = []
    compress_file(source, progress=lambda done, total: seen.append(sorted(os.listdir(source.parent))))
    assert all("model.nz.safetensors" not in names for names in seen)
    assert any(len(names) == 2 for names in seen)


def test_source_as_destination(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    for destination in (source, tmp_path / "." / "model.safetensors", tmp_path / "link"):
        with pytest.raises(InvalidArgument, match="is the source"):
            compress_file(source, destination, force=True)
    assert source.read_bytes() == ORIGINAL


def test_a_link_as_destination_is_replaced_not_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "other")
    with pytest.raises(InvalidArgument, match="exists"):
        compress_file(source, tmp_path / "link")
    compress_file(source, tmp_path / "link", force=True)
    assert (tmp_path / "other").read_bytes() == b"precious"
    assert not (tmp_path / "link").is_symlink()


def test_mode_is_kept(source: Path) -> None:
    source.chmod(0o640)
    packed = source.with_name("model.nz.safetensors")
    compress_file(source)
    assert stat.S_IMODE(packed.stat().st_mode) == 0o640
    source.unlink()
    packed.chmod(0o400)
    decompress_file(packed)
    assert stat.S_IMODE(source.stat().st_mode) == 0o400


def test_progress(source: Path, packed: Path) -> None:
    for work in (
        lambda progress: compress_file(source, force=True, progress=progress),
        lambda progress: decompress_file(packed, force=True, progress=progress),
        lambda progress: verify_file(packed, progress=progress),
        lambda progress: verify_file(source, progress=progress),
    ):
        calls: list[tuple[int, int]] = []
        work(lambda done, total, calls=calls: calls.append((done, total)))
        assert calls[0][0] == 0
        assert calls[-1] == (len(ORIGINAL), len(ORIGINAL))
        assert calls == sorted(calls)


# --- failing storage ---


def test_missing_source(tmp_path: Path) -> None:
    for work in (compress_file, decompress_file):
        with pytest.raises(StorageError) as caught:
            work(tmp_path / "none.nz.safetensors", tmp_path / "out")
        assert caught.value.file == str(tmp_path / "none.nz.safetensors")
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
    assert snapshot(tmp_path) == before
    assert not list(tmp_path.glob(".neuzip*"))


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
def test_an_interrupt_leaves_nothing_behind(source: Path, folder: Path, tmp_path: Path, directory: bool) -> None:
    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    before = snapshot(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        compress_file(folder if directory else source, progress=interrupt)
    assert snapshot(tmp_path) == before
    assert not list(tmp_path.glob(".neuzip*"))


def test_a_source_that_changes_meanwhile(source: Path) -> None:
    def touch(done: int, total: int) -> None:
        os.utime(source, ns=(0, done))

    with pytest.raises(StorageError, match="changed"):
        compress_file(source, progress=touch)
    assert list(source.parent.iterdir()) == [source]


# --- remove ---


def damage_on_sync(monkeypatch: pytest.MonkeyPatch, position: int) -> None:
    """A disk that loses a bit of every draft when it is synced."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_file() and path.name != "neuzip.json":
            data = bytearray(path.read_bytes())
            data[position % len(data)] ^= 1
            path.write_bytes(data)

    monkeypatch.setattr(files.os, "fsync", fsync)


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
    real = container.frame.encode_many

    def wrong(items: Any, options: Any) -> list[bytes]:
        return real([(bytes([data[0] ^ 1]) + bytes(data[1:]), *rest) for data, *rest in items], options)

    monkeypatch.setattr(container.frame, "encode_many", wrong)
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


# --- directories ---


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
        assert record["coding"] == ("container" if "adapter" in name or "model-" in name else "copy")

    verified = verify_file(packed)
    assert (verified.original_size, verified.compressed_size) == (report.original_size, report.compressed_size)
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


# --- shard indexes ---


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


# --- manifests ---


@pytest.fixture
def packed_folder(folder: Path) -> Path:
    compress_file(folder, remove=True)
    return folder.with_name("llama.nz")


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "", ".", "..", "a/../b", "a//b", "a/", "./a", "a\0b", "neuzip.json", "config.json/x", "\ud800"],
)
def test_manifest_names_that_are_refused(packed_folder: Path, name: str) -> None:
    def change(fields: dict[str, Any]) -> None:
        fields["files"][name] = fields["files"]["config.json"]

    edit_manifest(packed_folder, change)
    for work in (decompress_file, verify_file):
        with pytest.raises(CorruptFrame) as caught:
            work(packed_folder)
        assert caught.value.file == str(packed_folder / "neuzip.json")
    assert list(packed_folder.parent.iterdir()) == [packed_folder]


@pytest.mark.parametrize("name", ["config.json", "sub/adapter.safetensors", "neuzip.json"])
def test_links_in_a_compressed_directory(packed_folder: Path, name: str) -> None:
    moved = (packed_folder / name).rename(packed_folder.parent / "moved")
    (packed_folder / name).symlink_to(moved)
    for work in (decompress_file, verify_file):
        with pytest.raises(CorruptFrame, match="symbolic link") as caught:
            work(packed_folder)
        assert caught.value.file == str(packed_folder / name)


def test_a_linked_subdirectory(packed_folder: Path) -> None:
    moved = (packed_folder / "sub").rename(packed_folder.parent / "moved")
    (packed_folder / "sub").symlink_to(moved)
    for work in (decompress_file, verify_file):
        with pytest.raises(CorruptFrame, match="symbolic link"):
            work(packed_folder)


def test_missing_and_wrong_members(packed_folder: Path) -> None:
    config = packed_folder / "config.json"
    text = config.read_bytes()
    for content, error in ((b"", CorruptFrame), (text[:-1], CorruptFrame), (text[:-1] + b"]", CorruptFrame)):
        config.write_bytes(content)
        for work in (decompress_file, verify_file):
            with pytest.raises(error) as caught:
                work(packed_folder)
            assert caught.value.file == str(config)
    config.unlink()
    for work in (decompress_file, verify_file):
        with pytest.raises(StorageError) as missing:
            work(packed_folder)
        assert missing.value.file == str(config)
    config.mkdir()
    for work in (decompress_file, verify_file):
        with pytest.raises(CorruptFrame, match="not a regular file"):
            work(packed_folder)
    assert list(packed_folder.parent.iterdir()) == [packed_folder]


def test_a_container_of_another_file(packed_folder: Path, source: Path) -> None:
    """Valid in itself, but not what the manifest lists."""
    source.write_bytes(build(model(["BF16"])))
    (packed_folder / "sub" / "adapter.safetensors").unlink()
    compress_file(source, packed_folder / "sub" / "adapter.safetensors")
    for work in (decompress_file, verify_file):
        with pytest.raises(CorruptFrame, match="manifest"):
            work(packed_folder)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b'{"neuzip": 1}',
        b'{"neuzip": true, "files": {}}',
        b'{"neuzip": 0, "files": {}}',
        b'{"neuzip": "1", "files": {}}',
        b'{"neuzip": 2, "files": {}}',
        b'{"neuzip": 1, "neuzip": 1, "files": {}}',
        b'{"neuzip": 1, "files": []}',
        b'{"neuzip": 1, "files": {"a": 1}}',
        b'{"neuzip": 1, "files": {"a": {}}}',
        b'{"neuzip": 1, "files": {"a": {"size": -1, "sha256": "' + b"0" * 64 + b'", "coding": "copy"}}}',
        b'{"neuzip": 1, "files": {"a": {"size": 1, "sha256": "' + b"G" * 64 + b'", "coding": "copy"}}}',
        b'{"neuzip": 1, "files": {"a": {"size": 1, "sha256": "' + b"0" * 64 + b'", "coding": "zip"}}}',
        b'{"neuzip": 1, "files": {"a": {"size": 1, "sha256": "' + b"0" * 64 + b'", "coding": []}}}',
    ],
)
def test_malformed_manifests(packed_folder: Path, text: bytes) -> None:
    (packed_folder / "neuzip.json").write_bytes(text)
    for work in (decompress_file, verify_file):
        with pytest.raises(NeuzipError) as caught:
            work(packed_folder)
        assert caught.value.file == str(packed_folder / "neuzip.json")
    assert list(packed_folder.parent.iterdir()) == [packed_folder]


def test_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    compress_file(tmp_path / "d")
    (tmp_path / "d").rmdir()
    decompress_file(tmp_path / "d.nz")
    assert list((tmp_path / "d").iterdir()) == []


def test_containers_close_their_files(packed: Path) -> None:
    for _ in range(2000):
        with Container.open(packed) as opened:
            view = opened.data("layer.0.bf16")
        del view


def test_same_bytes() -> None:
    data = os.urandom((1 << 20) + 17)
    for position in (0, 1 << 20, len(data) - 1):
        other = bytearray(data)
        other[position] ^= 128
        assert not files.same_bytes(memoryview(data), memoryview(other))
    assert files.same_bytes(memoryview(data), memoryview(bytearray(data)))
    assert not files.same_bytes(memoryview(data), memoryview(data)[:-1])
    assert member.SUFFIX == ".safetensors"
