"""The library's decoder against the golden vectors, in every instruction set this machine has."""

import json
from pathlib import Path

import pytest

from neuzip import _native, checkpoint, frame
from neuzip.codec import Options
from neuzip.errors import CorruptFrame, NeuzipError, TruncatedInput, UnsupportedFormat

VECTORS = Path(__file__).resolve().parent.parent / "formats/vectors"
GOOD = sorted(path for path in (VECTORS / "good").iterdir() if path.suffix != ".raw")
ERRORS = json.loads((VECTORS / "bad/errors.json").read_text(encoding="utf-8"))
KINDS = {"corrupt": CorruptFrame, "truncated": TruncatedInput, "unsupported": UnsupportedFormat}
AVAILABLE = [name for name in _native.isa_names() if _native.isa_available(name)]
OPTIONS = Options(threads=2)


@pytest.fixture(params=AVAILABLE)
def isa(request):
    _native.isa_select(request.param)
    yield request.param
    _native.isa_select(None)


def decode(path: Path, directory: Path) -> bytes:
    """The original bytes of a vector; containers and archives are restored to a file in `directory`."""
    if path.suffix != ".nzf":
        restored = directory / "restored.safetensors"
        checkpoint.decompress_file(path, restored)
        return restored.read_bytes()
    data = path.read_bytes()
    out = bytearray(frame.read_header(data, whole=True).size)
    frame.decode(data, out, OPTIONS)
    return bytes(out)


def raw(path: Path) -> bytes:
    return path.with_name(f"{path.name.partition('.')[0]}.raw").read_bytes()


def test_scalar_is_available():
    assert "scalar" in AVAILABLE


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.name)
def test_good_vector(path, isa, tmp_path):
    assert decode(path, tmp_path) == raw(path)


@pytest.mark.parametrize("name", ERRORS)
def test_bad_vector(name, isa, tmp_path):
    with pytest.raises(NeuzipError) as caught:
        decode(VECTORS / "bad" / name, tmp_path)
    assert type(caught.value) is KINDS[ERRORS[name]["error"]], str(caught.value)
    assert not any(tmp_path.iterdir())


def test_the_third_chunk_is_named(isa):
    for name in "chunk_checksum_third", "stream_state_third_chunk":
        with pytest.raises(CorruptFrame) as caught:
            decode(VECTORS / f"bad/{name}.nzf", VECTORS)
        assert caught.value.chunk == 2


@pytest.mark.parametrize("path", [path for path in GOOD if path.suffix == ".nzf"], ids=lambda path: path.name)
def test_chunks_decode_alone(path, isa):
    """Every chunk by itself, from a buffer that ends where the chunk ends."""
    data, original = path.read_bytes(), raw(path)
    header = frame.read_header(data)
    offsets = [int(offset) for offset in header.offsets]
    for chunk in range(header.chunk_count):
        expected = original[chunk * header.chunk_size : (chunk + 1) * header.chunk_size]
        out = bytearray(len(expected))
        frame.decode_chunks(header, data[offsets[chunk] : offsets[chunk + 1]], chunk, 1, out, OPTIONS)
        assert bytes(out) == expected
