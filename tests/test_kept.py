"""Kept files (§7.1): what would not shrink costs next to nothing, and is checked like everything else."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors_file import Tensor, build, header_text, weights, with_header

import neuzip.numpy
from neuzip import container_writer, kept
from neuzip.checkpoint import compress_file, decompress_file, verify_file
from neuzip.codec import Options
from neuzip.container import Container
from neuzip.container_writer import write_container
from neuzip.errors import CorruptFrame, DamagedFile, NeuzipError
from neuzip.layouts import DTYPES

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "formats"))
import reference

OPTIONS = Options(threads=2)
NOISE = np.random.default_rng(3).bytes(1 << 18)


def restored(file: bytes) -> bytes:
    """The original file; its checksums and its sha256 are compared."""
    container = Container.parse(memoryview(file))
    original = b"".join(bytes(piece) for piece in container.pieces(OPTIONS))
    if hashlib.sha256(original).hexdigest() != container.sha256:
        raise CorruptFrame("another sha256")
    return original


def packed(original: bytes) -> bytes:
    """Compresses, restores, compares; stock safetensors reads both alike."""
    out = io.BytesIO()
    sha256 = write_container(Container.parse(memoryview(original)), out, OPTIONS)
    assert sha256 == hashlib.sha256(original).hexdigest()
    file = out.getvalue()
    found = Container.parse(memoryview(file))
    assert restored(file) == original
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
    assert is_kept(file) and len(file) - len(original) <= 200 + len(original) // 3000


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


BLANKS = st.sampled_from(["", "", " ", "\n\t", "\r  "])
METADATA = st.none() | st.just("null") | st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)
# Nothing of this is a file's metadata.
ODD_NAMES = ['\\"__metadata__', "__metadata", "neuzip.version", "}},{", "ünï\\", "a.b/c", " "]


@st.composite
def any_headers(draw: st.DrawFn) -> tuple[str, int]:
    """The text of a valid header in any spelling that stock safetensors reads, and the bytes of its data."""

    def string(text: str) -> str:
        spelled = json.dumps(text, ensure_ascii=draw(st.booleans()))
        return spelled.replace("_", "\\u005f", draw(st.sampled_from([0, 0, 0, 1])))

    def listed(brackets: str, items: list[str]) -> str:
        padded = ",".join(draw(BLANKS) + item + draw(BLANKS) for item in items) or draw(BLANKS)
        return brackets[0] + padded + brackets[1]

    def mapping(fields: list[tuple[str, str]]) -> str:
        return listed(
            "{}", [string(key) + draw(BLANKS) + ":" + draw(BLANKS) + value for key, value in fields]
        )

    fields, position = [], 0
    for name in draw(st.lists(st.text(max_size=6) | st.sampled_from(ODD_NAMES), max_size=12, unique=True)):
        dtype, count = draw(st.sampled_from(["U8", "F32", "BF16", "F64"])), draw(st.integers(0, 9))
        end = position + count * DTYPES[dtype].bits // 8
        entry = [("dtype", string(dtype)), ("shape", listed("[]", [str(count)]))]
        entry.append(("data_offsets", listed("[]", [str(position), str(end)])))
        # A field that safetensors does not know, and passes over
        entry += draw(st.sampled_from([[]] * 3 + [[("__metadata__", '{"neuzip.version":"2"}')]]))
        fields.append((name, mapping(draw(st.permutations(entry)))))
        position = end
    fields = draw(st.permutations(fields))
    metadata = draw(METADATA)
    if isinstance(metadata, dict):
        metadata = mapping([(key, string(value)) for key, value in metadata.items()])
    if metadata is not None:
        fields.insert(draw(st.integers(0, len(fields))), ("__metadata__", metadata))
    return draw(BLANKS) + mapping(fields) + draw(BLANKS), position


@settings(deadline=None, max_examples=200)
@given(any_headers())
def test_any_header_is_kept(header: tuple[str, int]) -> None:
    text, size = header
    original = with_header(text.encode(), NOISE[:size])
    file = packed(original)
    assert is_kept(file) and len(file) - len(original) <= 200 + len(original) // 1000
    assert reference.decode_container(file) == original
    # The data is where it was, as far as alignment goes.
    assert (len(file) - len(original)) % 8 == 0


def test_a_header_that_has_the_inserted_text_elsewhere_is_not_kept() -> None:
    text = header_text(noise(50, 8)).decode()
    data = b"".join(tensor.data for tensor in noise(50, 8))
    header = Container.parse(memoryview(packed(with_header(text.encode(), data)))).header.text.decode()
    inserted = header[header.index('"neuzip.version"') : header.index("}")]
    odd = text.replace('"dtype"', inserted + ',"dtype"', 1).removesuffix("}") + ',"__metadata__":{"a":"b"}}'
    assert not is_kept(packed(with_header(odd.encode(), data)))


@settings(deadline=None, max_examples=100)
@given(any_headers(), st.data())
def test_damaged_headers_are_refused_or_read_as_the_reference_does(
    header: tuple[str, int], data: st.DataObject
) -> None:
    text, size = header
    file = bytearray(packed(with_header(text.encode(), NOISE[:size])))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(8, len(file) - size - 1))
        file[at] = data.draw(st.sampled_from(b'",:{} 0129') | st.integers(0, 255))
    try:
        found: bytes | None = restored(bytes(file))
    except NeuzipError:
        found = None
    try:
        expected: bytes | None = reference.decode_container(bytes(file))
    except reference.Refused:
        expected = None
    assert found == expected


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
