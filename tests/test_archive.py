"""Archives (§10): what is written, what comes back, and what damage does. The vectors have the rules one by one."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import snapshot
from gguf_file import Tensor, array, build, pair, string
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors_file import weights

from neuzip import archive_writer
from neuzip.archive import SEGMENT_BYTES, Archive
from neuzip.archive_source import ArchiveSource
from neuzip.archive_writer import write_archive
from neuzip.checkpoint import compress_file, decompress_file, verify_file
from neuzip.codec import Options
from neuzip.errors import CorruptFrame, InvalidArgument, NeuzipError, TruncatedInput
from neuzip.kinds import Kind
from neuzip.kinds.part import Part, plain_part
from neuzip.layouts import DTYPES

OPTIONS = Options(threads=2)
NOISE = np.random.default_rng(5).bytes(1 << 20)


def packed(data: bytes, parts: list[Part] | None = None) -> bytes:
    out = io.BytesIO()
    sha256 = write_archive(memoryview(data), 0, parts or [], out, OPTIONS)
    assert sha256 == hashlib.sha256(data).hexdigest()
    return out.getvalue()


def unpacked(data: bytes) -> bytes:
    archive = Archive.parse(memoryview(data))
    return b"".join(bytes(piece) for piece in archive.pieces(OPTIONS))


def part(name: str, dtype: str, start: int, size: int) -> Part:
    return plain_part(name, DTYPES[dtype], (size * 8 // DTYPES[dtype].bits,), start, size)


def quantised(start: int, count: int) -> tuple[Part, bytes]:
    """Records of a scale and 32 codes, and their bytes."""
    records = np.empty((count, 34), np.uint8)
    records[:, :2] = np.frombuffer(weights("F16", count), np.uint8).reshape(count, 2)
    records[:, 2:] = np.random.default_rng(1).normal(0, 20, (count, 32)).astype(np.int8).view(np.uint8)
    fields = ((DTYPES["F16"], 1), (DTYPES["I8"], 32))
    return Part("q", "Q8_0", (count * 32,), start, records.size, fields), records.tobytes()


def test_tensors_and_the_bytes_between_them() -> None:
    matrix, (blocks, records) = weights("BF16", 30_000), quantised(61_111, 2000)
    data = b"header " * 100 + bytes(411) + matrix + records + weights("F32", 1000) + b"end"
    assert data.index(records) == blocks.start
    parts = [part("layer.ü/0", "BF16", 1111, len(matrix)), blocks, part("w", "F32", blocks.end, 4000)]
    made = packed(data, parts)
    assert unpacked(made) == data
    assert len(made) < 0.85 * len(data)
    segments = Archive.parse(memoryview(made)).segments
    assert [segment.name for segment in segments] == ["", "layer.ü/0", "q", "w", ""]
    assert [len(segment.frames) for segment in segments] == [1, 1, 2, 1, 1]


def test_what_does_not_shrink_joins_the_bytes_around_it() -> None:
    noise, good = NOISE[:10_000], weights("BF16", 10_000)
    data = noise + good + noise + bytes(100) + noise
    parts = [part(str(i), "F32", start, 10_000) for i, start in enumerate((0, 30_000, 40_100))]
    parts.insert(1, part("good", "BF16", 10_000, 20_000))
    made = packed(data, parts)
    assert unpacked(made) == data
    assert [s.name for s in Archive.parse(memoryview(made)).segments] == ["", "good", ""]


def test_long_tensors_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_writer, "SEGMENT_BYTES", 100_000)
    blocks, records = quantised(5, 10_000)
    data = b"12345" + records + weights("F64", 50_000) + bytes(250_001)
    made = packed(data, [blocks, part("d", "F64", blocks.end, 400_000)])
    assert unpacked(made) == data
    segments = Archive.parse(memoryview(made)).segments
    assert [s.size for s in segments if s.name == "q"] == [99_994, 99_994, 99_994, 40_018]
    assert [s.size for s in segments if s.name == "d"] == [100_000] * 4


@pytest.mark.parametrize("size", [0, 1, 255, 4096, 100_000, 1 << 20])
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E4M3", "BOOL"])
def test_noise_costs_nearly_nothing(size: int, dtype: str) -> None:
    data = NOISE[:size]
    for parts in ([part("x", dtype, 0, size // 8 * 8)] if size >= 8 else [], []):
        assert len(packed(data, parts)) <= 1.001 * size + 200


def test_ten_thousand_small_tensors_of_noise() -> None:
    data = NOISE[:640_000]
    made = packed(data, [part(f"tensor.{i}", "F32", 64 * i, 60) for i in range(10_000)])
    assert len(made) <= 1.001 * len(data) + 200
    assert unpacked(made) == data


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_range_is_read_out_of_any_segments(data: st.DataObject) -> None:
    matrix, (blocks, records) = weights("BF16", 2000), quantised(4100, 100)
    file = bytes(range(100)) + matrix + records + NOISE[:1000]
    archive = Archive.parse(memoryview(packed(file, [part("m", "BF16", 100, 4000), blocks])))
    source = ArchiveSource(archive, OPTIONS)
    ranges = data.draw(st.lists(st.tuples(st.integers(0, len(file)), st.integers(0, len(file))), max_size=4))
    requests = [(min(pair), np.empty(max(pair) - min(pair), np.uint8)) for pair in ranges]
    source.fill(requests)
    for start, out in requests:
        assert out.tobytes() == file[start : start + out.size]
        assert bytes(source.read(start, out.size)) == out.tobytes()


def test_reading_beyond_the_end() -> None:
    source = ArchiveSource(Archive.parse(memoryview(packed(b"abc"))), OPTIONS)
    for start, size in (2, 2), (4, 0), (-1, 1):
        with pytest.raises(TruncatedInput):
            source.read(start, size)


def test_no_flipped_bit_goes_unnoticed() -> None:
    blocks, records = quantised(0, 20)
    data = records + weights("BF16", 300)
    made = packed(data, [blocks, part("m", "BF16", blocks.end, 600)])
    for position in range(8 * len(made)):
        flipped = bytearray(made)
        flipped[position // 8] ^= 1 << position % 8
        try:
            archive = Archive.parse(memoryview(flipped))
            restored = b"".join(bytes(piece) for piece in archive.pieces(OPTIONS))
        except NeuzipError:
            continue
        # The kind is for information; a patched symbol can be said in two ways.
        assert restored == data


def test_errors_name_file_tensor_and_chunk(tmp_path: Path) -> None:
    data = weights("BF16", 200_000)
    made = bytearray(packed(data, [part("deep.weight", "BF16", 0, len(data))]))
    made[-3000] ^= 1
    (tmp_path / "x.nz").write_bytes(made)
    with pytest.raises(CorruptFrame) as caught:
        verify_file(tmp_path / "x.nz")
    error = caught.value
    assert (error.file, error.tensor, error.chunk) == (str(tmp_path / "x.nz"), "deep.weight", 3)


# Files and directories.


@pytest.mark.parametrize("data", [b"", b"text " * 1000, NOISE], ids=["empty", "text", "noise"])
@pytest.mark.parametrize("remove", [False, True])
def test_any_file(tmp_path: Path, data: bytes, remove: bool) -> None:
    source = tmp_path / "weights.v1.h5"
    source.write_bytes(data)
    source.chmod(0o640)
    before = snapshot(source)
    report = compress_file(source, remove=remove)
    assert report.destination == tmp_path / "weights.v1.h5.nz"
    assert report.files[0].coding == "archive"
    assert report.compressed_size == report.destination.stat().st_size <= 1.001 * len(data) + 200
    assert source.exists() != remove
    assert verify_file(report.destination).files[0].coding == "archive"
    source.unlink(missing_ok=True)
    assert decompress_file(report.destination, remove=remove).destination == source
    assert snapshot(source) == before
    assert report.destination.exists() != remove


def test_a_safetensors_file_can_be_an_archive(source: Path, tmp_path: Path) -> None:
    original = source.read_bytes()
    container, archive = tmp_path / "model.nz.safetensors", tmp_path / "model.safetensors.nz"
    size = compress_file(source).compressed_size
    assert compress_file(source, archive, remove=True).compressed_size < size
    assert Archive.open(archive).kind == Kind.SAFETENSORS
    container.unlink()
    assert decompress_file(tmp_path / "model.safetensors.nz").destination == source
    assert source.read_bytes() == original


def test_an_archive_is_not_compressed_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    compress_file(tmp_path / "a")
    with pytest.raises(InvalidArgument, match="already compressed"):
        compress_file(tmp_path / "a.nz")
    assert not (tmp_path / "a.nz.nz").exists()


def test_a_mixed_directory(folder: Path, tmp_path: Path) -> None:
    (folder / "model.h5").write_bytes(b"\x89HDF\r\n" + bytes(5000))
    (folder / "tokenizer.model").write_bytes(b"\xff\xfe" + bytes(5000))
    (folder / "noise.bin").write_bytes(NOISE)
    (folder / "long.txt").write_text("ü" * 70_001, encoding="utf-8")
    # Both are UTF-8 for longer than is looked at.
    (folder / "external.data").write_bytes(bytes(70_000) + weights("F32", 50_000))
    words = pair(b"tokens", 9, array(8, [string(b"word")] * 7000))
    matrix = Tensor("w", 30, (50_000,), weights("BF16", 50_000))
    (folder / "vocabulary.gguf").write_bytes(build([matrix], [words]))
    (tmp_path / "a").write_bytes(bytes(5000) + b"\xff")
    compress_file(tmp_path / "a", folder / "a.nz")
    before = snapshot(folder)
    codings = {file.path: file.coding for file in compress_file(folder, remove=True).files}
    for name in "model.h5", "external.data", "vocabulary.gguf":
        assert codings[name] == "archive", name
    assert codings["sub/adapter.safetensors"] == "container"
    for name in "tokenizer.model", "noise.bin", "long.txt", "a.nz":
        assert codings[name] == "copy", name
    assert verify_file(tmp_path / "llama.nz").original_size == sum(
        file.original_size for file in decompress_file(tmp_path / "llama.nz", remove=True).files
    )
    assert snapshot(folder) == before
    codings = {file.path: file.coding for file in verify_file(folder).files}
    assert codings["a.nz"] == "archive"


def test_a_damaged_member_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "model.h5").write_bytes(b"\xff" + weights("F16", 50_000))
    compress_file(folder)
    path = tmp_path / "llama.nz" / "model.h5"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    for work in verify_file, decompress_file:
        with pytest.raises(CorruptFrame) as caught:
            work(tmp_path / "llama.nz", **({} if work is verify_file else {"dst": tmp_path / "back"}))
        assert caught.value.file == str(path)
    assert not (tmp_path / "back").exists()


def test_the_longest_segment_fits_the_format() -> None:
    assert archive_writer.SEGMENT_BYTES == SEGMENT_BYTES == 1 << 24
