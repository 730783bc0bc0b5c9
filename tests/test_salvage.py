"""Damage: all of it is named, and what is intact is restored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file
from safetensors_file import Tensor, build, weights

import neuzip.numpy
from neuzip import container
from neuzip.archive import Archive
from neuzip.checkpoint import compress_file, decompress_file, verify_file
from neuzip.cli.main import program
from neuzip.container import Container
from neuzip.errors import CorruptFrame, DamagedFile, InvalidArgument, NeuzipError

LARGE = 6 << 19  # elements: of several batches
NOISE = np.random.default_rng(5).bytes(3 << 20)
TENSORS = [
    Tensor("first", "BF16", (300, 10), weights("BF16", 3000)),
    Tensor("large", "BF16", (LARGE,), weights("BF16", LARGE)),
    Tensor("noise", "U8", (3 << 20,), NOISE),
    Tensor("flag", "BOOL", (), b"\1"),
    Tensor("last", "F32", (2, 1 << 17), weights("F32", 1 << 18)),
    Tensor("none", "F16", (0,), b""),
]
ORIGINAL = build(TENSORS, {"format": "pt"})
BATCH = 4 << 20


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(container, "BATCH_BYTES", BATCH)
    source = tmp_path / "m.safetensors"
    source.write_bytes(ORIGINAL)
    compress_file(source, remove=True)
    return source.with_name("m.nz.safetensors")


def where(path: Path, name: str, chunk: int) -> int:
    """A byte in the middle of a chunk of a tensor."""
    with Container.open(path) as found:
        at = found.header.data_start + found.header.entries[name].start
        if not found.is_frame(name):
            return at + (chunk << 20)
        header = found.frame_header(name)
        return at + (header.offsets[chunk] + header.offsets[chunk + 1]) // 2


def flip(path: Path, *places: int) -> None:
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 4
    path.write_bytes(data)


def damages(path: Path) -> list[tuple[str | None, int | None]]:
    with pytest.raises(DamagedFile) as caught:
        verify_file(path)
    assert all(damage.file is not None for damage in caught.value.damages)
    assert (caught.value.tensor, caught.value.chunk) == (
        caught.value.damages[0].tensor,
        caught.value.damages[0].chunk,
    )
    return [(damage.tensor, damage.chunk) for damage in caught.value.damages]


def salvaged(path: Path, out: Path) -> dict[str, Any]:
    report = decompress_file(path, out, salvage=True)
    assert report.damages
    return load_file(out) if out.suffix == ".safetensors" else {}


def test_every_damaged_chunk_is_named(packed: Path) -> None:
    wanted = [
        ("first", 0),
        ("large", 0),
        ("large", 17),
        ("large", 47),
        ("noise", 2),
        ("flag", 0),
        ("last", 1),
    ]
    flip(packed, *(where(packed, *place) for place in wanted))
    assert damages(packed) == wanted


def test_a_damaged_frame_header_is_a_whole_tensor(packed: Path) -> None:
    with Container.open(packed) as found:
        at = found.header.data_start + found.header.entries["large"].start
    flip(packed, at + 20, where(packed, "last", 0))
    assert damages(packed) == [("large", None), ("last", 0)]


@pytest.mark.parametrize("lost", [["large"], ["noise"], ["first", "last"], ["flag", "large", "noise"]])
def test_intact_tensors_are_restored(packed: Path, tmp_path: Path, lost: list[str]) -> None:
    flip(packed, *(where(packed, name, 0) for name in lost))
    out = tmp_path / "rest.safetensors"
    with pytest.raises(CorruptFrame):
        decompress_file(packed, out)
    assert not out.exists()
    report = decompress_file(packed, out, salvage=True)
    assert [damage.tensor for damage in report.damages] == sorted(
        lost, key=[tensor.name for tensor in TENSORS].index
    )
    # Byte for byte the file that has the other tensors.
    with Container.open(out) as found:
        assert found.metadata == {"format": "pt"}
        assert found.original_size == out.stat().st_size == report.original_size
        for tensor in TENSORS:
            assert (tensor.name in found.entries) == (tensor.name not in lost)
            if tensor.name not in lost:
                assert bytes(found.data(tensor.name)) == tensor.data
                assert found.entries[tensor.name].shape == tensor.shape
    assert neuzip.numpy.load_file(out).keys() == found.entries.keys()


def test_a_file_that_ends_too_early(packed: Path, tmp_path: Path) -> None:
    """What lies before the end is restored."""
    end = where(packed, "noise", 1)
    packed.write_bytes(packed.read_bytes()[:end])
    assert [name for name, _ in damages(packed)] == ["noise", "flag", "last"]
    out = tmp_path / "rest.safetensors"
    decompress_file(packed, out, salvage=True)
    with Container.open(out) as found:
        assert list(found.entries) == ["first", "large", "none"]
        assert bytes(found.data("large")) == TENSORS[1].data


def test_an_undamaged_file_is_restored_as_it_was(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    assert decompress_file(packed, out, salvage=True).damages == ()
    assert out.read_bytes() == ORIGINAL
    with pytest.raises(InvalidArgument, match="not removed"):
        decompress_file(packed, out, force=True, salvage=True, remove=True)
    assert packed.exists()


def test_an_archive(tmp_path: Path) -> None:
    source, packed, out = tmp_path / "m.safetensors", tmp_path / "m.nz", tmp_path / "rest"
    source.write_bytes(ORIGINAL)
    compress_file(source, packed)
    with Archive.open(packed) as archive:
        segments = {segment.name: segment for segment in archive.segments}
    lost = [segments["large"], segments["last"]]
    flip(packed, *(segment.offset + segment.compressed_size // 2 for segment in lost))
    assert [name for name, _ in damages(packed)] == ["large", "last"]
    report = decompress_file(packed, out, salvage=True)
    assert [damage.tensor for damage in report.damages] == ["large", "last"]
    expected = bytearray(ORIGINAL)
    for segment in lost:
        expected[segment.start : segment.start + segment.size] = bytes(segment.size)
    assert out.read_bytes() == expected


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "d"
    root.mkdir()
    for name in ("a", "b", "c"):
        (root / f"{name}.safetensors").write_bytes(build(TENSORS[:1] + TENSORS[3:], {"file": name}))
    (root / "vocab.txt").write_text("some words")
    compress_file(root, remove=True)
    return root.with_name("d.nz")


def test_a_directory(folder: Path, tmp_path: Path) -> None:
    flip(folder / "a.safetensors", where(folder / "a.safetensors", "first", 0))
    flip(folder / "b.safetensors", 9)
    flip(folder / "vocab.txt", 3)
    with pytest.raises(DamagedFile) as caught:
        verify_file(folder)
    names = [Path(str(damage.file)).name for damage in caught.value.damages]
    assert names == ["a.safetensors", "b.safetensors", "vocab.txt"]
    out = tmp_path / "rest"
    report = decompress_file(folder, out, salvage=True)
    assert [Path(str(damage.file)).name for damage in report.damages] == names
    assert load_file(out / "a.safetensors").keys() == {"flag", "last", "none"}
    assert not (out / "b.safetensors").exists()
    assert (out / "c.safetensors").read_bytes() == build(TENSORS[:1] + TENSORS[3:], {"file": "c"})
    assert (out / "vocab.txt").read_text() == "soma words"
    assert not list(tmp_path.glob(".neuzip*"))


def test_a_missing_file_of_a_directory(folder: Path, tmp_path: Path) -> None:
    (folder / "b.safetensors").unlink()
    with pytest.raises(NeuzipError) as caught:
        verify_file(folder)
    assert caught.value.file == str(folder / "b.safetensors")
    decompress_file(folder, tmp_path / "rest", salvage=True)
    assert sorted(path.name for path in (tmp_path / "rest").iterdir()) == [
        "a.safetensors",
        "c.safetensors",
        "vocab.txt",
    ]


def test_the_program(packed: Path, tmp_path: Path) -> None:
    flip(packed, where(packed, "large", 5), where(packed, "flag", 0))
    result = CliRunner().invoke(program, ["verify", str(packed), "-q"])
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"{packed}, tensor 'large', chunk 5: the compressed data is damaged",
        f"{packed}, tensor 'flag', chunk 0: checksum mismatch",
    ]
    assert "2 damages" in result.stderr
    result = CliRunner().invoke(program, ["verify", str(packed), "--json", "-q"])
    assert [damage["tensor"] for damage in json.loads(result.stdout)["damages"]] == ["large", "flag"]
    out = tmp_path / "rest.safetensors"
    result = CliRunner().invoke(
        program, ["decompress", str(packed), "-o", str(out), "--salvage", "--json", "-q"]
    )
    assert result.exit_code == 1
    assert [damage["chunk"] for damage in json.loads(result.stdout)["damages"]] == [5, 0]
    assert out.exists()


def test_reading_an_uncompressed_tensor_checks_it(packed: Path) -> None:
    flip(packed, where(packed, "noise", 1))
    with neuzip.safe_open(packed, "np") as file:
        for read in (lambda: file.get_tensor("noise"), lambda: file.get_slice("noise")[(1 << 20) + 5 :][:2]):
            with pytest.raises(CorruptFrame) as caught:
                read()
            assert (caught.value.tensor, caught.value.chunk) == ("noise", 1)
        assert file.get_slice("noise")[: 1 << 20].tobytes() == NOISE[: 1 << 20]
