"""ONNX models: initialisers, constants and external data found, every byte restored, and files that lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kind_files import found, packed, restored
from safetensors_file import weights

from neuzip.archive import Archive
from neuzip.checkpoint import compress_file, decompress_file
from neuzip.difference import diff_files
from neuzip.errors import NeuzipError
from neuzip.kinds import Kind, find_parts
from neuzip.kinds.onnx_file import _DTYPES, read_onnx
from neuzip.kinds.part import ViewSource
from neuzip.layouts import DTYPES

onnx = pytest.importorskip("onnx")

MATRIX = np.frombuffer(weights("F32", 40_000), np.float32).reshape(200, 200)


def raw(name: str, kind: int, shape: tuple[int, ...], data: bytes) -> Any:
    return onnx.TensorProto(name=name, data_type=kind, dims=shape, raw_data=data)


def model(*tensors: Any, nodes: Any = ()) -> Any:
    graph = onnx.helper.make_graph(list(nodes), "g", [], [], initializer=list(tensors))
    return onnx.helper.make_model(graph, producer_name="tests")


def test_every_type() -> None:
    """All of onnx's types but text and what has no planes to gain from: 6-bit floats, 2- and 4-bit integers."""
    names = {number: name for name, number in onnx.TensorProto.DataType.items()}
    left = {"UNDEFINED", "STRING", "UINT4", "INT4", "UINT2", "INT2", "FLOAT6E2M3", "FLOAT6E3M2"}
    assert set(_DTYPES) == {number for number, name in names.items() if name not in left}
    tensors = []
    for kind, name in _DTYPES.items():
        count = 1024 * 8 // DTYPES[name].bits
        tensors.append(raw(f"layer.{kind}/ü", kind, (count // 2, 2), weights("U8", 1024)))
    data = model(*tensors).SerializeToString()
    for kind, name in _DTYPES.items():
        assert found(data)[f"layer.{kind}/ü"] == (name, (1024 * 4 // DTYPES[name].bits, 2))
        bits = onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize * 8
        assert DTYPES[name].bits in (bits, 4)
    assert restored(packed(data)) == data


def test_subgraphs() -> None:
    def graph(name: str, *nodes: Any) -> Any:
        held = onnx.numpy_helper.from_array(MATRIX, name)
        return onnx.helper.make_graph(list(nodes), name, [], [], initializer=[held])

    loop = onnx.helper.make_node("Loop", [], [], body=graph("body"))
    branches = {"then_branch": graph("then", loop), "else_branch": graph("else")}
    node = onnx.helper.make_node("If", ["c"], [], **branches)
    several = onnx.helper.make_node("Custom", [], [], graphs=[graph("first"), graph("second")])
    data = onnx.helper.make_model(graph("main", node, several)).SerializeToString()
    names = ("main", "then", "body", "else", "first", "second")
    assert found(data) == dict.fromkeys(names, ("F32", (200, 200)))
    made = packed(data)
    assert restored(made) == data and len(made) < 0.9 * len(data)


def test_what_is_held_in_other_ways() -> None:
    constant = onnx.helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(MATRIX, "c"))
    floats = onnx.helper.make_tensor("floats", onnx.TensorProto.FLOAT, [50], MATRIX[0, :50])
    integers = onnx.helper.make_tensor("ints", onnx.TensorProto.INT32, [3], [1, 2, 3])
    scalar = onnx.numpy_helper.from_array(np.float32(3), "scalar")
    empty = onnx.numpy_helper.from_array(np.empty((0, 3), np.float32), "empty")
    data = model(floats, integers, scalar, empty, nodes=[constant]).SerializeToString()
    expected = {
        "c": ("F32", (200, 200)),
        "floats": ("F32", (50,)),
        "scalar": ("F32", ()),
        "empty": ("F32", (0, 3)),
    }
    assert found(data) == expected
    made = packed(data)
    assert restored(made) == data
    assert len(made) < 0.9 * len(data)
    assert Archive.parse(memoryview(made)).kind == Kind.ONNX


def test_external_data(tmp_path: Path) -> None:
    tensors = [onnx.numpy_helper.from_array(MATRIX[n:], f"w{n}") for n in range(1, 4)]
    names = {"save_as_external_data": True, "all_tensors_to_one_file": True, "location": "m.onnx.data"}
    onnx.save(model(*tensors), tmp_path / "m.onnx", **names)
    data = (tmp_path / "m.onnx.data").read_bytes()
    made = compress_file(tmp_path / "m.onnx.data").destination
    with Archive.open(made) as archive:
        assert archive.kind == Kind.ONNX
        assert {segment.name for segment in archive.segments} >= {"w1", "w2", "w3"}
    assert made.stat().st_size < 0.9 * len(data)
    decompress_file(made, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    (tmp_path / "m.onnx").unlink()
    alone = compress_file(tmp_path / "m.onnx.data", force=True)
    assert Archive.open(alone.destination).kind == Kind.OTHER
    decompress_file(alone.destination, tmp_path / "back", force=True)
    assert (tmp_path / "back").read_bytes() == data


def test_compressed_external_data_of_a_compressed_model(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    tensors = [onnx.numpy_helper.from_array(MATRIX[n:], f"layer.{n}.weight") for n in range(1, 90)]
    names = {"save_as_external_data": True, "all_tensors_to_one_file": True, "location": "m.onnx.data"}
    onnx.save(model(*tensors), folder / "m.onnx", **names)
    packed = compress_file(folder)
    assert [file.coding for file in packed.files] == ["archive", "archive"]
    found = diff_files(folder, packed.destination)
    assert (found.equal, found.tensors) == (89, ())
    for name in "m.onnx", "m.onnx.data":
        compress_file(folder / name, tmp_path / f"{name}.nz")
    assert diff_files(folder, tmp_path / "m.onnx.data.nz").equal == 89


@pytest.mark.parametrize(
    "where", [{"offset": "-4"}, {"offset": "x"}, {"length": "9" * 19}, {"offset": "9" * 19}]
)
def test_external_data_that_is_not_there(tmp_path: Path, where: dict[str, str]) -> None:
    tensor = onnx.TensorProto(name="w", data_type=1, dims=(10,))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "d.bin", **where}.items():
        tensor.external_data.add(key=key, value=value)
    (tmp_path / "m.onnx").write_bytes(model(tensor).SerializeToString())
    (tmp_path / "broken.onnx").write_bytes(b"\x08\xff")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "d.bin").write_bytes(b"\xff" * 39)
    compress_file(tmp_path / "d.bin", remove=True)
    decompress_file(tmp_path / "d.bin.nz")
    assert (tmp_path / "d.bin").read_bytes() == b"\xff" * 39


def field(number: int, data: bytes, size: int | None = None) -> bytes:
    return varint(number << 3 | 2) + varint(len(data) if size is None else size) + data


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


HEAD = b"\x08\x07"
TENSOR = b"\x08\x0a\x10\x01" + field(8, b"w") + field(9, bytes(40))
LIES = {
    "size": HEAD + field(7, field(5, TENSOR), 1 << 60),
    "inner_size": HEAD + field(7, field(5, TENSOR, 1 << 20)),
    "endless_number": HEAD + b"\x38" + b"\xff" * 40,
    "group": HEAD + b"\x3b" + field(7, b""),
    "field_0": HEAD + b"\x02\x00" + field(7, b""),
    "dimensions": HEAD + field(7, field(5, field(1, b"\x01" * 100_000) + TENSOR)),
    "cut": HEAD + field(7, field(5, TENSOR))[:-1],
}


@pytest.mark.parametrize("name", LIES)
def test_files_that_lie_are_files_of_no_kind(name: str) -> None:
    data = LIES[name]
    with pytest.raises(NeuzipError):
        read_onnx(ViewSource(memoryview(data)))
    assert find_parts(ViewSource(memoryview(data))).kind == Kind.OTHER
    assert restored(packed(data)) == data


def test_tensors_that_lie_are_left_out() -> None:
    huge = field(1, varint((1 << 63) - 1) * 8) + TENSOR
    other = TENSOR.replace(b"\x10\x01", b"\x10\x63")
    data = HEAD + field(7, field(5, huge) + field(5, other) + field(5, TENSOR) + field(5, b""))
    assert found(data) == {"w": ("F32", (10,))}
    assert read_onnx(ViewSource(memoryview(HEAD + field(9, b"no graph")))) is None
