"""A minute of fuzzing: the C library by libFuzzer, readers of files by hypothesis, decoders against one another."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import frame_header
from hypothesis import given, settings
from hypothesis import strategies as st
from optional import missing

from neuzip import _native, frame
from neuzip.archive import HEADER, Archive
from neuzip.codec import Options
from neuzip.container import Container
from neuzip.errors import NeuzipError
from neuzip.manifest import Manifest
from neuzip.safetensors_header import parse_file

ROOT = Path(__file__).resolve().parent.parent
VECTORS = ROOT / "formats" / "vectors" / "good"
sys.path.insert(0, str(ROOT / "formats"))  # its scripts import one another by their own names

import reference  # noqa: E402
import reference_archive  # noqa: E402

SECONDS = 5  # of each target
ONE = Options(threads=1)
UNCHECKED = Options(threads=1, verify=False)
ISAS = [name for name in _native.isa_names() if _native.isa_available(name)]
FRAMES = [path.read_bytes() for path in sorted(VECTORS.glob("*.nzf")) if path.stat().st_size < 4000]
CONTAINERS = [path.read_bytes() for path in sorted(VECTORS.glob("*.safetensors"))]
ARCHIVES = [path.read_bytes() for path in sorted(VECTORS.glob("*.nz"))]


def test_the_c_library(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    tools = [tool for tool in ("clang++", "cmake") if shutil.which(tool, path=path) is None]
    if tools:
        missing(f"not installed: {', '.join(tools)}")
    done = subprocess.run(
        [ROOT / "tests" / "fuzz" / "run", str(SECONDS), str(tmp_path / "fuzz")],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert done.stdout.count("DONE") == len(list((ROOT / "tests" / "fuzz").glob("*.zip"))) == 5


@st.composite
def damaged(draw: Any, files: list[bytes], first: int = 0) -> bytes:
    """A file with a few bytes changed, inserted, removed or copied from elsewhere in it, from `first` on."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 4))):
        if len(data) <= first:
            break
        at = draw(st.integers(first, len(data) - 1))
        match draw(st.sampled_from(("set", "bit", "insert", "remove", "copy", "number", "cut"))):
            case "set":
                data[at] = draw(st.integers(0, 255))
            case "bit":
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=9))
            case "remove":
                del data[at : at + draw(st.integers(1, 9))]
            case "copy":
                source = draw(st.integers(0, len(data) - 1))
                data[at : at + 8] = data[source : source + 8]
            case "number":
                number = draw(st.sampled_from((0, 1, 255, 1 << 16, 1 << 31, (1 << 64) - 1)))
                data[at : at + 8] = struct.pack("<Q", number)
            case "cut":
                del data[at:]
    return bytes(data)


def decoded(data: bytes, options: Options) -> bytes | None:
    """What a frame decodes to; None if it is refused."""
    try:
        header = frame.read_header(data, whole=True)
        out = bytearray(header.size)
        frame.decode(data, out, options)
    except NeuzipError:
        return None
    return bytes(out)


def by_all(data: bytes, options: Options) -> bytes | None:
    """The same of every instruction set, which must agree."""
    results = []
    try:
        for isa in ISAS:
            _native.isa_select(isa)
            results.append(decoded(data, options))
    finally:
        _native.isa_select(None)
    assert all(result == results[0] for result in results), dict(zip(ISAS, results, strict=True))
    return results[0]


def referred(decode: Any, data: bytes) -> bytes | None:
    try:
        result = decode(data)
    except reference.Refused:
        return None
    return bytes(getattr(result, "data", result))


@settings(max_examples=400, deadline=None)
@given(damaged(FRAMES))
def test_frames_against_the_reference(data: bytes) -> None:
    """The header's checksum is put right, so that what it guards is looked at."""
    try:
        size = frame.header_length(data)
    except NeuzipError:
        size = 0
    if 40 <= size <= len(data):
        data = frame_header.stamp(data, size)
    assert by_all(data, ONE) == referred(reference.decode_frame, data)


@settings(max_examples=400, deadline=None)
@given(damaged(FRAMES, first=40))
def test_chunks_against_the_reference(data: bytes) -> None:
    """What is accepted without checksums, the reference decoder accepts with the checksums of what came out."""
    try:
        size = frame.header_length(data)
        data = frame_header.stamp(data, size)
        header = frame.read_header(data, whole=True)
    except NeuzipError:
        return
    out = by_all(data, UNCHECKED)
    if out is None:
        return
    patched = bytearray(data)
    for chunk in range(header.chunk_count):
        part = out[chunk * header.chunk_size :][: header.chunk_size]
        at = size - 8 * (header.chunk_count - chunk) + 4
        patched[at : at + 4] = struct.pack("<I", _native.checksum64(part) & 0xFFFFFFFF)
    whole = frame_header.stamp(patched, size)
    assert by_all(whole, ONE) == out
    assert referred(reference.decode_frame, whole) == out


def container_file(data: bytes) -> bytes | None:
    try:
        container = Container.parse(memoryview(data))
        if not container.compressed:
            return None
        file = b"".join(bytes(piece) for piece in container.pieces(ONE))
    except NeuzipError:
        return None
    return file if hashlib.sha256(file).hexdigest() == container.sha256 else None


@settings(max_examples=300, deadline=None)
@given(damaged(CONTAINERS))
def test_containers_against_the_reference(data: bytes) -> None:
    assert container_file(data) == referred(reference.decode_container, data)


@settings(max_examples=300, deadline=None)
@given(damaged(ARCHIVES), st.booleans())
def test_archives_against_the_reference(data: bytes, stamped: bool) -> None:
    if stamped and len(data) >= HEADER.size:
        packed = data[len(data) - int.from_bytes(data[12:16], "little") :]
        head = data[:32] + bytes(8) + data[40 : HEADER.size]
        checksum = _native.checksum64(head + packed).to_bytes(8, "little")
        data = data[:32] + checksum + data[40:]
    try:
        archive = Archive.parse(memoryview(data))
        file: bytes | None = b"".join(bytes(piece) for piece in archive.pieces(ONE))
        if hashlib.sha256(file or b"").hexdigest() != archive.sha256:
            file = None
    except NeuzipError:
        file = None
    assert file == referred(reference_archive.decode_archive, data)


@settings(max_examples=300, deadline=None)
@given(damaged(CONTAINERS, first=8))
def test_safetensors_headers(data: bytes) -> None:
    try:
        header = parse_file(memoryview(data))
    except NeuzipError:
        return
    assert header.file_size == len(data)
    assert sum(entry.size for entry in header.entries.values()) == header.data_size


MANIFEST = Manifest.parse(
    b'{"neuzip": 1, "files": {"a/b.safetensors": {"size": 12, "sha256": "'
    + b"0" * 64
    + b'", "coding": "copy"}}}'
)


@settings(max_examples=300, deadline=None)
@given(damaged([MANIFEST.format()]))
def test_manifests(text: bytes) -> None:
    try:
        manifest = Manifest.parse(text)
    except NeuzipError:
        return
    assert Manifest.parse(manifest.format()) == manifest
    assert not any(name.startswith("/") or ".." in name.split("/") for name in manifest.files)
