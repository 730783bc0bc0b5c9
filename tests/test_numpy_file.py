"""NumPy's files: arrays found in .npy and .npz, every byte restored, and files that lie."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from kind_files import found, packed, restored
from safetensors_file import weights

from neuzip.archive import Archive
from neuzip.kinds import Kind, find_parts
from neuzip.kinds.part import ViewSource

SCALARS = {
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "C64": np.complex64,
    "C128": np.complex128,
    "BOOL": np.bool_,
    "BF16": ml_dtypes.bfloat16,
    **{f"{kind}{bits}": f"{kind.lower()}{bits // 8}" for kind in "UI" for bits in (8, 16, 32, 64)},
}


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def npz(compressed: bool = False, **arrays: Any) -> bytes:
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, **arrays)
    return out.getvalue()


def values(name: str, count: int) -> Any:
    data = np.resize(
        np.frombuffer(weights("F32" if name[0] in "FBC" else "U8", 4 * count), np.uint8), 16 * count
    )
    scalar = np.dtype(SCALARS[name])
    if name == "BOOL":
        return (data[:count] & 1).astype(bool)
    if name == "BF16":
        return np.frombuffer(weights("BF16", count), ml_dtypes.bfloat16)
    return data[: count * scalar.itemsize].view(scalar)


@pytest.mark.parametrize("name", SCALARS)
def test_every_type(name: str) -> None:
    array = values(name, 3000)
    assert len(array) == 3000
    for data in npy(array), npy(array.reshape(50, 60)), npy(np.asfortranarray(array.reshape(50, 60))):
        assert found(data)[""][0] == name
        assert restored(packed(data)) == data
    assert found(npy(array.reshape(10, 20, 15))) == {"": (name, (10, 20, 15))}
    assert found(npy(array[:1].reshape(()))) == {"": (name, ())}
    assert found(npy(array[:1])) == {"": (name, (1,))}
    assert found(npy(array[:0])) == {"": (name, (0,))}
    files = npz(a=array, **{"layer.0/w": array.reshape(30, 100)})
    assert found(files) == {"a": (name, (3000,)), "layer.0/w": (name, (30, 100))}
    assert restored(packed(files)) == files


def test_arrays_are_coded_as_what_they_are() -> None:
    matrix = values("BF16", 100_000)
    for data in npy(matrix), npz(w=matrix):
        made = packed(data)
        assert len(made) < 0.70 * len(data)
        assert Archive.parse(memoryview(made)).kind == Kind.NUMPY


def test_a_file_of_version_2() -> None:
    """Long headers have one; an array of many dimensions or fields gets there."""
    out = io.BytesIO()
    np.lib.format.write_array(out, values("F32", 64).reshape((1,) * 30 + (64,)), version=(2, 0))
    assert found(out.getvalue()) == {"": ("F32", (1,) * 30 + (64,))}


def test_deflated_arrays_stay_as_they_are() -> None:
    data = npz(compressed=True, a=values("F32", 50_000))
    made = packed(data)
    assert restored(made) == data
    assert len(made) <= 1.001 * len(data) + 200
    assert Archive.parse(memoryview(made)).kind == Kind.NUMPY


@pytest.mark.parametrize(
    "array",
    [
        np.arange(3000, dtype=">f4"),
        np.zeros(300, [("a", "<f4"), ("b", "<i2")]),
        np.array(["x" * 30] * 100),
        np.array([{}, None], dtype=object),
        np.arange(50).view("M8[s]"),
    ],
    ids=["big_endian", "record", "text", "object", "time"],
)
def test_other_arrays_are_restored(array: Any) -> None:
    assert found(npy(array)) == {}
    files = npz(other=array, w=values("F16", 100))
    assert found(files) == {"w": ("F16", (100,))}
    for data in npy(array), files:
        assert restored(packed(data)) == data


GOOD = npy(values("F32", 1000).reshape(20, 50))
AT = GOOD.index(b"\n") + 1


def headed(text: bytes, length: int | None = None, version: int = 1) -> bytes:
    form = "<H" if version == 1 else "<I"
    size = struct.pack(form, len(text) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + GOOD[AT:]


LIES = {
    "cut": GOOD[:-1],
    "longer": GOOD + b"\0",
    "head": GOOD[:9],
    "version": GOOD[:6] + b"\x07" + GOOD[7:],
    "length": headed(GOOD[10:AT], 0xFFFF),
    "length_64k": headed(GOOD[10:AT], 0xFFFFFFFF, 2),
    "shape": GOOD.replace(b"(20, 50)", b"(99, 50)"),
    "huge": GOOD.replace(b"(20, 50)", b"(" + b"9999999999999999999, " * 5 + b")"),
    "code": headed(b"{'descr': '<f4', 'fortran_order': print('executed'), 'shape': (20, 50), }\n"),
    "nested": headed(b"(" * 60_000),
    "nested_shape": headed(b"{'descr': '<f4', 'fortran_order': True, 'shape': (" + b"1, " * 20_000 + b"), }"),
    "digits": headed(b"{'descr': '<f4', 'fortran_order': True, 'shape': (" + b"1" * 60_000),
}


@pytest.mark.parametrize("name", LIES)
def test_files_that_lie_are_files_of_no_kind(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = LIES[name]
    assert find_parts(ViewSource(memoryview(data))).kind == Kind.OTHER
    assert restored(packed(data)) == data
    assert capsys.readouterr().out == ""


def test_files_on_disk(tmp_path: Path) -> None:
    """As people write them: savez to a path."""
    np.savez(tmp_path / "m.npz", w=values("F32", 10_000), i=np.arange(10))
    data = (tmp_path / "m.npz").read_bytes()
    assert found(data) == {"w": ("F32", (10_000,)), "i": ("I64", (10,))}
    assert len(packed(data)) < 0.9 * len(data)
