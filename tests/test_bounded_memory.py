"""Bounded memory whatever the size of a tensor; memory maps and plain reads of the same file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors_file import Tensor, build, header_text, model, with_header

from neuzip import _system, files, safe_open
from neuzip.checkpoint import compress_file, decompress_file, verify_file
from neuzip.container import Container
from neuzip.errors import DamagedFile, InvalidArgument, StorageError
from neuzip.files import FileBytes, ReadView

SIZE = 300 << 20  # bytes of the tensor
BOUND = 200 << 20  # above an idle interpreter: less than the tensor compressed

# Runs commands one after another, each in a process of its own, and prints what each took; small itself, because a
# process counts as its peak what its parent had.
LAUNCHER = """
import os, sys, json
for command in json.loads(sys.argv[1]):
    process = os.posix_spawn(command[0], command, os.environ)
    _, status, usage = os.wait4(process, 0)
    print(status, usage.ru_maxrss)
"""


def peaks(*commands: list[str]) -> list[int]:
    import json

    text = json.dumps([[sys.executable, *command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, text], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    assert all(status == "0" for status, _ in rows), done.stderr
    return [int(kibibytes) << 10 for _, kibibytes in rows]


@pytest.mark.skipif(sys.platform != "linux", reason="counts as Linux does")
def test_memory_does_not_grow_with_a_tensor(tmp_path: Path) -> None:
    source, packed, back = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "c"))
    block = np.random.default_rng(0).normal(0, 0.02, 1 << 20).astype("<f4").view("<u4") >> 16
    data = block.astype("<u2").tobytes()
    text = header_text([Tensor("w", "BF16", (2, SIZE // 4), b"")])
    text = text.replace(b"[0, 0]", f"[0, {SIZE}]".encode())
    with source.open("wb") as file:
        file.write(with_header(text))
        for _ in range(SIZE // len(data)):
            file.write(data)
    array = tmp_path / "a.npy"
    with array.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f2", "fortran_order": False, "shape": (SIZE // 2,)}
        )
        for _ in range(SIZE // len(data)):
            file.write(data)
    neuzip, two = ["-m", "neuzip.cli.main"], ["-q", "--threads", "2"]
    names = ("compress", "verify", "decompress", "plain reads", "diff", "inspect")
    idle, *found = peaks(
        ["-c", ""],
        [*neuzip, "compress", str(source), "-o", str(packed), *two, "--backend", "mmap"],
        [*neuzip, "verify", str(packed), *two, "--backend", "mmap"],
        [*neuzip, "decompress", str(packed), "-o", str(back), *two, "--backend", "mmap"],
        [*neuzip, "compress", str(back), "-o", str(packed), *two, "--backend", "read", "--force"],
        [*neuzip, "diff", str(packed), str(source), *two],
        [*neuzip, "inspect", str(array), *two],
    )
    above = {name: peak - idle for name, peak in zip(names, found, strict=True)}
    assert max(above.values()) < BOUND, above
    assert back.stat().st_size == source.stat().st_size


ORIGINAL = build(model(["BF16", "F32", "U8", "BOOL"], 40000), {"format": "pt"})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    path.write_bytes(ORIGINAL)
    return path


def test_backends_write_and_read_the_same(source: Path, tmp_path: Path) -> None:
    for suffix in (".safetensors", ".nz"):
        outs = []
        for backend in ("mmap", "read"):
            out = tmp_path / f"{backend}{suffix}"
            compress_file(source, out, backend=backend)
            outs.append(out.read_bytes())
            for reading in ("mmap", "read"):
                verify_file(out, backend=reading)
                decompress_file(out, tmp_path / "back", force=True, backend=reading)
                assert (tmp_path / "back").read_bytes() == ORIGINAL
        assert outs[0] == outs[1]
    for backend in ("mmap", "pread", None):
        with safe_open(tmp_path / "mmap.safetensors", "np", backend=backend) as file:
            whole = file.get_tensors()
            assert whole["layer.1.f32"].tobytes() == model(["BF16", "F32"], 40000)[1].data
            assert np.array_equal(file.get_slice("layer.2.u8")[7:99], whole["layer.2.u8"][7:99])
            assert np.array_equal(
                file.get_slice("layer.1.f32")[100:300].view("u4"), whole["layer.1.f32"][100:300].view("u4")
            )


def test_a_directory_with_plain_reads(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    source.rename(folder / "m.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    compress_file(folder, backend="read", remove=True)
    verify_file(tmp_path / "d.nz", backend="read")
    decompress_file(tmp_path / "d.nz", backend="read", remove=True)
    assert (folder / "m.safetensors").read_bytes() == ORIGINAL
    assert (folder / "config.json").read_text() == '{"model_type": "llama"}'


def test_the_backend_follows_the_file_system(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FileBytes(source) as file:
        assert isinstance(file.view, memoryview)
    for nfs in (0x6969, 0xFF534D42, 0x65735546, 0x01021997, 0x0BD00BD0):
        monkeypatch.setattr(_system, "file_system_type", lambda descriptor, nfs=nfs: nfs)
        with FileBytes(source) as file, Container.open(source) as container:
            assert isinstance(file.view, ReadView)
            assert isinstance(container.view, ReadView)
        with FileBytes(source, "mmap") as file:
            assert isinstance(file.view, memoryview)
    with pytest.raises(InvalidArgument, match="none of"):
        FileBytes(source, "telepathy")


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_the_type_of_a_file_system() -> None:
    """Types of linux/magic.h that are there on every Linux."""
    with Path("/proc/self/status").open("rb") as file:
        assert _system.file_system_type(file.fileno()) == 0x9FA0
    with Path("/sys/kernel/mm/transparent_hugepage/enabled").open("rb") as file:
        assert _system.file_system_type(file.fileno()) == 0x62656572


def test_an_input_error_of_plain_reads_is_an_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a memory map it would be the end of the process."""
    packed = tmp_path / "p.safetensors"
    compress_file(source, packed)
    real = os.preadv
    with Container.open(packed) as container:
        start = container.header.data_start + container.header.entries["layer.1.f32"].start

    def failing(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset >= start:
            raise OSError(5, "Input/output error")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(files.os, "preadv", failing)
    out = tmp_path / "out.safetensors"
    with pytest.raises(StorageError, match="Input/output"):
        decompress_file(packed, out, backend="read")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors", "p.safetensors"]
    with pytest.raises(StorageError, match="Input/output"):
        compress_file(source, out, backend="read", remove=True)
    assert source.read_bytes() == ORIGINAL
    # What can be read still is restored.
    with pytest.raises(DamagedFile):
        verify_file(packed, backend="read")
    report = decompress_file(packed, out, backend="read", salvage=True)
    assert report.damages
    with Container.open(out, backend="mmap") as container:
        assert list(container.entries) == ["layer.0.bf16"]


def test_a_view_is_read_as_it_is_sliced(source: Path) -> None:
    with FileBytes(source, "read") as file:
        view = file.view
        assert len(view) == len(ORIGINAL)
        assert bytes(view[3:9]) == ORIGINAL[3:9]
        assert bytes(view[-5:]) == ORIGINAL[-5:]
        assert bytes(view.part(10, 30)[5:]) == ORIGINAL[15:30]
        assert bytes(view[len(ORIGINAL) :]) == b""
    with pytest.raises(ValueError, match="closed"):
        view[:4]
