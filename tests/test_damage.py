"""Damaged files: cut at every byte, every bit flipped. Each time a NeuzipError, or the original bytes."""

from __future__ import annotations

import hashlib
import random
import shutil
from pathlib import Path

import pytest
from safetensors_file import Tensor, build, weights

from neuzip.checkpoint import compress_file, decompress_file, verify_file
from neuzip.codec import Options
from neuzip.container import Container
from neuzip.errors import CorruptFrame, NeuzipError

ONE_THREAD = Options(threads=1)

# Every coding of a frame, and a tensor that is stored; small, so that every bit can be tried.
ORIGINAL = build(
    [
        Tensor("planes", "BF16", (20, 18), weights("BF16", 360)),
        Tensor("constant", "F32", (600,), b"\x00\x00\x80\x3f" * 600),
        Tensor("zstd", "I64", (66,), b"".join(i.to_bytes(8, "little") for i in range(66))),
        Tensor("stored", "U8", (9,), b"neuzip\x00\x01\x02"),
        Tensor("empty", "F16", (0,), b""),
    ],
    {"format": "pt"},
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    source = tmp_path_factory.mktemp("damage") / "m.safetensors"
    source.write_bytes(ORIGINAL)
    compress_file(source, remove=True)
    data = source.with_name("m.nz.safetensors").read_bytes()
    container = Container.parse(memoryview(data))
    assert [name for name in container.entries if container.is_frame(name)] == ["planes", "constant", "zstd"]
    assert len(data) < 3000
    return data


def decoded(file: bytes) -> bytes | None:
    """What a damaged container restores to; None if it is refused with a typed error."""
    try:
        container = Container.parse(memoryview(file))
        data = b"".join(bytes(piece) for piece in container.pieces(ONE_THREAD))
    except NeuzipError as error:
        assert str(error)
        return None
    return data if hashlib.sha256(data).hexdigest() == container.sha256 else None


def test_the_undamaged_file(packed: bytes) -> None:
    assert decoded(packed) == ORIGINAL


def test_truncation_at_every_byte(packed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.nz.safetensors"
    for length in range(len(packed)):
        path.write_bytes(packed[:length])
        with pytest.raises(NeuzipError) as caught:
            verify_file(path, threads=1)
        assert caught.value.file == str(path)
        with pytest.raises(NeuzipError):
            decompress_file(path, threads=1)
        with pytest.raises(NeuzipError):
            compress_file(path, tmp_path / "out", threads=1)
    assert list(tmp_path.iterdir()) == [path]


def test_every_flipped_bit(packed: bytes) -> None:
    for position in range(len(packed)):
        for bit in range(8):
            damaged = bytearray(packed)
            damaged[position] ^= 1 << bit
            assert decoded(bytes(damaged)) in (None, ORIGINAL), f"byte {position}, bit {bit}"


def test_flipped_bits_on_disk(packed: bytes, tmp_path: Path) -> None:
    path, out = tmp_path / "m.nz.safetensors", tmp_path / "m.safetensors"
    for position in range(0, len(packed), 3):
        damaged = bytearray(packed)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            decompress_file(path, threads=1)
        except NeuzipError as error:
            assert error.file == str(path)
            assert list(tmp_path.iterdir()) == [path]
        else:
            assert out.read_bytes() == ORIGINAL
            out.unlink()


@pytest.mark.parametrize("name", ["planes", "constant", "stored"])
def test_no_flipped_bit_of_a_tensor_goes_unnoticed(packed: bytes, name: str) -> None:
    """But for zstd's frames, which have bits of no meaning."""
    header = Container.parse(memoryview(packed)).header
    entry = header.entries[name]
    for position in range(header.data_start + entry.start, header.data_start + entry.end):
        damaged = bytearray(packed)
        damaged[position] ^= 1 << position % 8
        assert decoded(bytes(damaged)) is None, f"byte {position}"


@pytest.mark.parametrize("seed", range(4))
def test_random_damage(packed: bytes, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(300):
        damaged = bytearray(packed)
        for _ in range(rng.randint(1, 5)):
            position = rng.randrange(len(damaged))
            kind = rng.randrange(4)
            if kind == 0:
                damaged[position] = rng.randrange(256)
            elif kind == 1:
                del damaged[position : position + rng.randint(1, 16)]
            elif kind == 2:
                damaged[position:position] = rng.randbytes(rng.randint(1, 16))
            else:
                other = rng.randrange(len(damaged))
                damaged[position : position + 8] = damaged[other : other + 8]
        assert decoded(bytes(damaged)) in (None, ORIGINAL)


def test_a_wrong_sha256(packed: bytes, tmp_path: Path) -> None:
    """All checksums of all chunks are right, and still it is not the file."""
    digest = hashlib.sha256(ORIGINAL).hexdigest().encode()
    path = tmp_path / "m.nz.safetensors"
    path.write_bytes(packed.replace(digest, hashlib.sha256(b"").hexdigest().encode()))
    for work in (verify_file, decompress_file):
        with pytest.raises(CorruptFrame, match="sha256"):
            work(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed directory with a shard index."""
    root = tmp_path_factory.mktemp("damage") / "d"
    root.mkdir()
    (root / "m.safetensors").write_bytes(ORIGINAL)
    (root / "m.safetensors.index.json").write_text('{"weight_map": {"planes": "m.safetensors"}}')
    (root / "config.json").write_text("{}")
    compress_file(root)
    return root.with_name("d.nz")


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["neuzip.json", "m.safetensors.index.json", "config.json"])
def test_damaged_files_of_a_directory(folder: Path, tmp_path: Path, name: str) -> None:
    packed, out = tmp_path / "d.nz", tmp_path / "d"
    shutil.copytree(folder, packed)
    original, whole = contents(folder.with_name("d")), (packed / name).read_bytes()
    flips = [whole[:i] + bytes([byte ^ 1 << i % 8]) + whole[i + 1 :] for i, byte in enumerate(whole)]
    for damaged in [whole[:length] for length in range(len(whole))] + flips:
        (packed / name).write_bytes(damaged)
        try:
            decompress_file(packed, threads=1)
        except NeuzipError:
            assert list(tmp_path.iterdir()) == [packed]
        else:
            # The manifest is not protected itself: a flip may change how a file is called.
            restored = contents(out)
            assert sorted(restored.values()) == sorted(original.values())
            assert name == "neuzip.json"
            shutil.rmtree(out)
