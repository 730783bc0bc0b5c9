"""The corpus: files as they are met in the wild and beyond, each compressed, verified and restored."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import gguf_file
import numpy as np
import pytest
from safetensors_file import FILE_DTYPES, Tensor, build, model, weights, with_header

from neuzip import compress_file, decompress_file, verify_file
from neuzip.layouts import DTYPES

NOISE = np.random.default_rng(11).bytes(1 << 19)
NAMES = [
    "a/b.c",
    ".",
    "..",
    "/",
    "",
    " ",
    "ü\u2028x",
    "\U0001f600",
    "__metadata",
    "x" * 3000,
    "a\\b\x00c",
    '"',
]


def every_dtype() -> bytes:
    return build(model(FILE_DTYPES, 4096), {"format": "pt"})


def scalars_and_empties() -> bytes:
    shapes: list[tuple[int, ...]] = [(), (0,), (3, 0, 5), (1,), (1, 1, 1)]
    tensors = []
    for dtype in FILE_DTYPES:
        for shape in shapes:
            bits = int(np.prod(shape)) * DTYPES[dtype].bits
            if bits % 8 == 0:
                tensors.append(Tensor(f"{dtype}{shape}", dtype, shape, NOISE[: bits // 8]))
    return build(tensors)


def odd_sizes() -> bytes:
    sizes = (1, 2, 3, 127, 129, 1023, 1025, 65_535, 65_537)
    return build(
        Tensor(f"{d}.{n}", d, (n,), weights(d, n)) for d in ("BF16", "F16", "F32", "U8") for n in sizes
    )


def duplicates() -> bytes:
    return build(Tensor(str(n), "BF16", (100, 100), weights("BF16", 10_000)) for n in range(5))


def nan_payloads() -> bytes:
    tensors = []
    for dtype, exponent in ("BF16", 0x7F80), ("F16", 0x7C00), ("F32", 0x7F80_0000), ("F64", 0x7FF0 << 48):
        width = DTYPES[dtype].bits // 8
        bits = np.frombuffer(NOISE[: 5000 * width], f"<u{width}") | np.array(exponent, f"<u{width}")
        tensors.append(Tensor(dtype, dtype, (5000,), bits.tobytes()))
    return build(tensors)


def unsorted_header() -> bytes:
    data = weights("F32", 3000)
    entries = [("z", 8000, 12_000), ("a", 0, 4000), ("m", 4000, 8000)]
    fields = {
        name: {"shape": [1000], "data_offsets": [low, high], "dtype": "F32"} for name, low, high in entries
    }
    return with_header(json.dumps(fields).encode(), data)


def odd_header() -> bytes:
    text = '  { "ü\\u00fc\\n" :\t{ "dtype":"F16" , "shape":[ 40,50 ],"data_offsets":[0,4000] }\r\n}'
    return with_header(text.encode() + b" " * 333, weights("F16", 2000))


def many_tiny_tensors() -> bytes:
    return build(Tensor(f"layers.{n}.w", "F32", (4,), NOISE[16 * n :][:16]) for n in range(10_000))


def odd_names() -> bytes:
    return build(Tensor(name, "BF16", (600,), weights("BF16", 600)) for name in NAMES)


def many_in_gguf() -> bytes:
    return gguf_file.build(gguf_file.Tensor(f"{n}", 0, (4,), NOISE[16 * n :][:16]) for n in range(3000))


CORPUS: dict[str, tuple[str, Callable[[], bytes]]] = {
    **{
        make.__name__: ("x.safetensors", make)
        for make in (
            every_dtype,
            scalars_and_empties,
            odd_sizes,
            duplicates,
            nan_payloads,
            unsorted_header,
            odd_header,
            many_tiny_tensors,
            odd_names,
        )
    },
    "many_in_gguf": ("x.gguf", many_in_gguf),
    "noise": ("x.bin", lambda: NOISE),
    "empty": ("x", lambda: b""),
    "one_byte": ("x", lambda: b"P"),
    "tar_of_torch": (
        "x.tar",
        lambda: b"storages\0".ljust(512, b"\0") + NOISE[:9000] + struct.pack("<9Q", *range(9)),
    ),
}


@pytest.mark.parametrize("name", CORPUS)
@pytest.mark.parametrize("archived", [False, True])
def test_every_byte_back(name: str, archived: bool, tmp_path: Path) -> None:
    file, make = CORPUS[name]
    data = make()
    source = tmp_path / file
    source.write_bytes(data)
    report = compress_file(
        source, tmp_path / "x.nz" if archived else None, level="max" if archived else "default"
    )
    verify_file(report.destination)
    decompress_file(report.destination, tmp_path / "back")
    assert hashlib.sha256((tmp_path / "back").read_bytes()).digest() == hashlib.sha256(data).digest()
    constant = 200 if report.files[0].coding == "archive" else 400
    assert report.compressed_size <= 1.001 * len(data) + constant


def test_a_directory_of_all_of_them(tmp_path: Path) -> None:
    """No file of a directory grows: what would is copied."""
    root = tmp_path / "all"
    root.mkdir()
    for name, (file, make) in CORPUS.items():
        (root / f"{name}.{file}").write_bytes(make())
    report = compress_file(root)
    assert all(file.compressed_size <= file.original_size for file in report.files)
    decompress_file(report.destination, tmp_path / "back")
    for path in root.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
