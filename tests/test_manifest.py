"""The manifest of a compressed directory (§8): what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import edit_manifest
from safetensors_file import build, model

from neuzip.checkpoint import compress_file, decompress_file, verify_file
from neuzip.errors import (
    CorruptFrame,
    DamagedFile,
    NeuzipError,
    StorageError,
)


@pytest.fixture
def packed_folder(folder: Path) -> Path:
    compress_file(folder, remove=True)
    return folder.with_name("llama.nz")


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/x",
        "",
        ".",
        "..",
        "a/../b",
        "a//b",
        "a/",
        "./a",
        "a\0b",
        "neuzip.json",
        "config.json/x",
        "\ud800",
    ],
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
    for work, kind in ((decompress_file, StorageError), (verify_file, DamagedFile)):
        with pytest.raises(kind) as missing:
            work(packed_folder)
        assert missing.value.file == str(config)
    config.mkdir()
    for work in (decompress_file, verify_file):
        with pytest.raises(CorruptFrame, match="not a regular file"):
            work(packed_folder)
    assert list(packed_folder.parent.iterdir()) == [packed_folder]


def test_a_config_that_was_edited(packed_folder: Path) -> None:
    config = packed_folder / "config.json"
    text = config.read_bytes()
    for changed in (
        b'{"model_type": "llama"}',
        text.replace(b'"neuzip"', b'"gptq"'),
        text.replace(b'"llama"', b'"lama"'),
        text + b"\n",
        text.replace(b"llama", b"gemma"),
    ):
        config.write_bytes(changed)
        for work in (decompress_file, verify_file):
            with pytest.raises(CorruptFrame) as caught:
                work(packed_folder)
            assert caught.value.file == str(config)
    config.write_bytes(text)
    edit_manifest(packed_folder, lambda fields: fields["files"]["config.json"].update(coding="copy"))
    with pytest.raises(CorruptFrame, match="manifest"):
        verify_file(packed_folder)


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
