"""Kept files (§7.1): what would not shrink costs next to nothing, and is checked like everything else."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors_file import FILE_DTYPES, Tensor, build, header_text, weights, with_header

import neuzip.numpy
from neuzip import container_writer, kept
from neuzip.checkpoint import compress_file, decompress_file, verify_file
from neuzip.codec import Options
from neuzip.container import Container
from neuzip.container_writer import write_container
from neuzip.errors import CorruptFrame, DamagedFile

OPTIONS = Options(threads=2)
NOISE = np.random.default_rng(3).bytes(1 << 18)


def packed(original: bytes) -> bytes:
    """Compresses, restores, compares; stock safetensors reads both alike."""
    out = io.BytesIO()
    sha256 = write_container(Container.parse(memoryview(original)), out, OPTIONS)
    assert sha256 == hashlib.sha256(original).hexdigest()
    file = out.getvalue()
    found = Container.parse(memoryview(file))
    assert b"".join(bytes(piece) for piece in found.pieces(OPTIONS)) == original
    assert (found.sha256, found.metadata) == (sha256, Container.parse(memoryview(original)).metadata)
    ours, theirs = dict(safetensors.deserialize(file)), dict(safetensors.deserialize(original))
    assert ours.keys() == theirs.keys()
    return file


def is_kept(file: bytes) -> bool:
    return Container.parse(memoryview(file)).header.metadata["neuzip.version"] == "2"


def noise(count: int, size: int) -> list[Tensor]:
    return [Tensor(f"t.{i}", "I8", (size,), NOISE[i % 99 : i % 99 + size]) for i in range(count)]


@pytest.mark.parametrize("size", [0, 1, 64, 255, 511, 600, 5000])
@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt", "quote": '"}},{', "neuzip": "no"}])
def test_files_of_noise_hardly_grow(size: int, metadata: dict[str, str] | None) -> None:
    original = build(noise(3000 if size < 1000 else 30, size), metadata)
    file = packed(original)
    # An empty object for the metadata leaves nothing to put ours behind.
    assert is_kept(file) == (metadata != {})
    if is_kept(file):
        assert len(file) - len(original) < 400 + len(original) // 2000


def test_a_file_of_small_and_large_noise_is_written_again() -> None:
    original = build([*noise(3000, 20), Tensor("large", "U8", (1 << 17,), NOISE[: 1 << 17])])
    file = packed(original)
    assert is_kept(file) and len(file) - len(original) < 500


def test_what_shrinks_is_not_kept() -> None:
    tensors = [*noise(20, 100), Tensor("w", "BF16", (1 << 16,), weights("BF16", 1 << 16))]
    assert not is_kept(packed(build(tensors)))


@pytest.mark.parametrize(
    "text",
    [
        header_text(noise(50, 8), {"a": "b"}, indent=1),
        b"{  " + header_text(noise(50, 8))[1:] + b"     ",
        header_text(noise(50, 8)).replace(b"t.", b"\\u0074."),
    ],
)
def test_unusual_headers_come_back(text: bytes) -> None:
    packed(with_header(text, b"".join(tensor.data for tensor in noise(50, 8))))


def test_metadata_behind_the_tensors() -> None:
    fields = json.loads(header_text(noise(50, 8)))
    text = json.dumps({**fields, "__metadata__": {"late": "yes"}}).encode()
    file = packed(with_header(text, b"".join(tensor.data for tensor in noise(50, 8))))
    assert not is_kept(file)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(FILE_DTYPES), st.integers(0, 30), st.booleans()), max_size=30),
    st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    st.integers(0, 9),
)
def test_any_small_file(
    rows: list[tuple[str, int, bool]], metadata: dict[str, str] | None, spaces: int
) -> None:
    tensors = [
        Tensor(f'"{i}\\é' if odd else f"t{i:02}", dtype, (8 * count,), weights(dtype, 8 * count))
        if dtype != "C64"
        else Tensor(f"c{i}", dtype, (count,), bytes(8 * count))
        for i, (dtype, count, odd) in enumerate(rows)
    ]
    text = header_text(tensors, metadata) + b" " * spaces
    packed(with_header(text, b"".join(tensor.data for tensor in tensors)))


def test_parts_are_read_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_writer, "_LEAST_FRAME", 1 << 30)
    values = np.random.default_rng(1).standard_normal((40, 3000), np.float32)
    path = tmp_path / "a.safetensors"
    neuzip.numpy.save_file({f"t{i:02}": values[i] for i in range(40)}, path)
    for backend in "mmap", "pread":
        with neuzip.safe_open(path, "np", backend=backend) as file:
            for i in range(40):
                assert np.array_equal(file.get_tensor(f"t{i:02}"), values[i])
                assert np.array_equal(file.get_slice(f"t{i:02}")[77:2900], values[i][77:2900])
            assert all(np.array_equal(file.get_tensors()[f"t{i:02}"], values[i]) for i in range(40))
    data = bytearray(path.read_bytes())
    data[-4 * 3000 * 20] ^= 1  # the first byte of tensor 20
    path.write_bytes(data)
    with neuzip.safe_open(path, "np") as file:
        assert np.array_equal(file.get_tensor("t00"), values[0])
        with pytest.raises(CorruptFrame) as caught:
            file.get_tensor("t20")
        assert caught.value.tensor == "t20"
    with pytest.raises(CorruptFrame):
        neuzip.numpy.load_file(path)


def test_damage_is_named_and_the_rest_restored(tmp_path: Path) -> None:
    tensors = noise(900, 400)
    source, path = tmp_path / "m.safetensors", tmp_path / "m.nz.safetensors"
    source.write_bytes(build(tensors))
    compress_file(source)
    data = bytearray(path.read_bytes())
    at = len(data) - 900 * 400 + 3 * kept.BLOCK_BYTES + 5
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFile) as caught:
        verify_file(path)
    # Whose bytes are in the block.
    first, last = 3 * kept.BLOCK_BYTES // 400, (4 * kept.BLOCK_BYTES - 1) // 400
    assert [error.tensor for error in caught.value.damages] == [f"t.{i}" for i in range(first, last + 1)]
    assert {error.chunk for error in caught.value.damages} == {3}
    report = decompress_file(path, tmp_path / "rest.safetensors", salvage=True)
    assert len(report.damages) == last + 1 - first
    rest = safetensors.numpy.load_file(tmp_path / "rest.safetensors")
    assert rest.keys() == {f"t.{i}" for i in [*range(first), *range(last + 1, 900)]}
    assert all(rest[name].tobytes() == tensors[int(name[2:])].data for name in rest)


def test_sums_of_data_in_pieces_of_any_size() -> None:
    block = kept.BLOCK_BYTES
    whole = kept.checksums32(memoryview(NOISE), kept.cut(len(NOISE), block)).tobytes()
    for step in (1000, block - 1, block, block + 1, 5 * block + 7, len(NOISE)):
        sums = kept.BlockSums()
        for start in range(0, len(NOISE), step):
            sums.add(memoryview(NOISE)[start : start + step])
        assert sums.finish() == whole
