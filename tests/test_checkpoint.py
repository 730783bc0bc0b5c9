"""compress_file, decompress_file, verify_file for single files (§7)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import safetensors
from checkpoint_files import ORIGINAL

from neuzip import container_writer, files, member
from neuzip.checkpoint import compress_file, decompress_file, verify_file
from neuzip.container import Container
from neuzip.errors import (
    InvalidArgument,
    TruncatedInput,
    UnsupportedFormat,
)


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
    for name in ".nz.safetensors", ".nz":
        bare = source.rename(source.with_name(name))
        with pytest.raises(InvalidArgument, match="destination is needed"):
            decompress_file(bare)
        bare.rename(source)


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


@pytest.mark.parametrize("data", [b"", b"text", bytes(100)], ids=["empty", "text", "zeros"])
def test_a_file_that_neuzip_knows_nothing_of(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(data)
    for work in verify_file, lambda path: decompress_file(path, tmp_path / "out"):
        with pytest.raises(InvalidArgument, match=r"model\.pt: neither compressed nor a safetensors file"):
            work(tmp_path / "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


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
    for force in False, True:  # not said to be what force does
        with pytest.raises(InvalidArgument, match="exists and is a directory"):
            compress_file(source, tmp_path / "d", force=force)


def test_the_destination_appears_only_when_complete(source: Path) -> None:
    seen: list[set[Path]] = []
    compress_file(source, progress=lambda done, total: seen.append(set(source.parent.iterdir())))
    assert all(source.with_name("model.nz.safetensors") not in paths for paths in seen)
    assert any(len(paths) == 3 for paths in seen)  # the source, the draft and its lock


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


def test_a_header_too_long_for_a_container(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container_writer, "HEADER_LIMIT", 500)
    with pytest.raises(UnsupportedFormat, match="header"):
        compress_file(source)
    assert list(tmp_path.iterdir()) == [source]
    (tmp_path / "d").mkdir()
    source.rename(tmp_path / "d" / source.name)
    report = compress_file(tmp_path / "d")
    assert [file.coding for file in report.files] == ["copy"]  # as what only a later version knows
    decompress_file(tmp_path / "d.nz", tmp_path / "back")
    assert (tmp_path / "back" / source.name).read_bytes() == ORIGINAL
