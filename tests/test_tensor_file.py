"""inspect, diff, bench and verify on files of every kind, compressed or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_file
import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors_file import Tensor, build, weights

from neuzip import CorruptFrame, InvalidArgument, compress_file, decompress_file, diff_files, verify_file
from neuzip.cli.main import program
from neuzip.inspection import TensorInspection, inspect_file
from neuzip.kinds.gguf_file import _PLAIN

SHAPES = {"F32": (300, 200), "F16": (50, 100), "BF16": (3, 70, 1000), "I64": (60,)}
TENSORS = {f"a.{dtype}/ü x": (dtype, shape) for dtype, shape in SHAPES.items()}
SCALARS = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(program, [*map(str, arguments)])


def octets(dtype: str, shape: tuple[int, ...]) -> bytes:
    return weights(dtype, int(np.prod(shape)))


def arrays() -> dict[str, Any]:
    return {
        name: np.frombuffer(octets(dtype, shape), SCALARS[dtype]).reshape(shape)
        for name, (dtype, shape) in TENSORS.items()
    }


def as_safetensors(path: Path) -> None:
    path.write_bytes(build([Tensor(name, *form, octets(*form)) for name, form in TENSORS.items()]))


def as_torch(path: Path, zipped: bool = True) -> None:
    torch = pytest.importorskip("torch")
    state = {
        name: torch.frombuffer(bytearray(array.tobytes()), dtype=getattr(torch, array.dtype.name)).reshape(
            array.shape
        )
        for name, array in arrays().items()
    }
    torch.save(state, path, _use_new_zipfile_serialization=zipped)


def as_npz(path: Path) -> None:
    np.savez(path, **arrays())


def as_onnx(path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    kinds = {"F32": 1, "F16": 10, "BF16": 16, "I64": 7}
    tensors = [
        onnx.TensorProto(name=name, data_type=kinds[dtype], dims=shape, raw_data=octets(dtype, shape))
        for name, (dtype, shape) in TENSORS.items()
    ]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], initializer=tensors)), path)


def as_gguf(path: Path) -> None:
    kinds = {name: kind for kind, name in _PLAIN.items()}
    tensors = [
        gguf_file.Tensor(name, kinds[dtype], shape[::-1], octets(dtype, shape))
        for name, (dtype, shape) in TENSORS.items()
    ]
    path.write_bytes(gguf_file.build(tensors))


WRITERS: dict[str, Callable[[Path], None]] = {
    "m.safetensors": as_safetensors,
    "m.pt": as_torch,
    "old.bin": lambda path: as_torch(path, zipped=False),
    "m.npz": as_npz,
    "m.onnx": as_onnx,
    "m.gguf": as_gguf,
}


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same tensors in files of every kind, each also compressed."""
    root = tmp_path_factory.mktemp("forms")
    paths = []
    for name, write in WRITERS.items():
        write(root / name)
        report = compress_file(root / name)
        assert report.ratio < 0.8
        paths += [root / name, report.destination]
    return paths


def facts(tensor: TensorInspection) -> tuple[Any, ...]:
    counted = (tensor.exponents, tensor.exponent_entropy, tensor.bound_size, tensor.checksum)
    return tensor.name, tensor.dtype, tensor.shape, tensor.original_size, *counted


def test_every_form_holds_the_same(forms: list[Path]) -> None:
    for other in forms[1:]:
        found = diff_files(forms[0], other)
        assert diff_files(forms[0], other, backend="read") == found
        assert (found.equal, found.tensors) == (len(TENSORS), ()), other
    before = sorted(map(facts, inspect_file(forms[0]).tensors))
    for path in forms:
        found = inspect_file(path)
        assert sorted(map(facts, found.tensors)) == before, path
        assert inspect_file(path, backend="read") == found
        packed = path.name.endswith((".nz", ".nz.safetensors"))
        assert found.compressed_size == (path.stat().st_size if packed else None)
        for tensor in found.tensors:
            if not packed:
                assert tensor.coding is None
            elif tensor.dtype != "I64":
                assert tensor.coding == "planes"
                assert sum(tensor.planes[0].values()) == -(-np.prod(tensor.shape) // (1 << 16))
                assert 0.9 < sum(tensor.plane_sizes) / tensor.compressed_size < 1
                assert abs(tensor.distance) < 0.04


def test_inspections_agree_with_the_files(forms: list[Path]) -> None:
    for path in forms:
        result = run("inspect", path, "--json")
        document = json.loads(result.stdout)["files"][0]
        held = sum(tensor["compressed_size"] or tensor["original_size"] for tensor in document["tensors"])
        assert 0 < path.stat().st_size - held < 4000
        assert "300×200" in run("inspect", path).stdout


def test_a_directory_of_every_kind(forms: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "mixed"
    (root / "deep").mkdir(parents=True)
    for path in forms[::2]:
        (root / "deep" / path.name).write_bytes(path.read_bytes())
    (root / "README.md").write_text("text")
    (root / "random.bin").write_bytes(bytes(range(256)) * 10)
    packed = compress_file(root)
    assert {file.path: file.coding for file in packed.files} == {
        "README.md": "copy",
        "random.bin": "archive",
        "deep/m.safetensors": "container",
        **{f"deep/{path.name}": "archive" for path in forms[2::2]},
    }
    verify_file(packed.destination)
    found = diff_files(root, packed.destination)
    assert (found.equal, found.tensors) == (len(TENSORS) * len(forms) // 2, ())
    for source in root, packed.destination:
        inspected = json.loads(run("inspect", source, "--json").stdout)
        assert len(inspected["files"]) == len(forms) // 2
    page = tmp_path / "page.html"
    assert run("inspect", packed.destination, "--html", page).exit_code == 0
    assert "a.BF16/ü x" in page.read_text(encoding="utf-8")
    restored = decompress_file(packed.destination, tmp_path / "back").destination
    for path in sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file()):
        assert (restored / path).read_bytes() == (root / path).read_bytes()


def quantised(path: Path, change: int = 0) -> Path:
    """Blocks of Q8_0, and a vector; one byte of the codes changed."""
    scales = np.frombuffer(weights("F16", 4000), np.uint8).reshape(-1, 2)
    codes = np.random.default_rng(0).normal(0, 30, (4000, 32)).astype(np.int8).view(np.uint8)
    codes[7, 7] += change
    blocks = np.concatenate([scales, codes], axis=1).tobytes()
    vector = gguf_file.Tensor("norm", 0, (5000,), weights("F32", 5000))
    path.write_bytes(gguf_file.build([gguf_file.Tensor("blocks", 8, (3200, 40), blocks), vector]))
    return path


def test_quantised_tensors(tmp_path: Path) -> None:
    plain = quantised(tmp_path / "q.gguf")
    packed = compress_file(plain).destination
    for path in plain, packed:
        blocks, vector = inspect_file(path).tensors
        assert (blocks.name, blocks.dtype, blocks.shape) == ("blocks", "Q8_0", (40, 3200))
        assert blocks.exponents is None and blocks.planes == () and vector.exponents is not None
        assert 0.8 < blocks.bound_ratio < 0.97
        if path == packed:
            assert (blocks.coding, vector.coding) == ("records", "planes")
            assert abs(blocks.distance) < 0.02
        page = tmp_path / "page.html"
        assert run("inspect", path, "--html", page, "--force").exit_code == 0
        assert "Q8_0" in page.read_text(encoding="utf-8")
    (found,) = diff_files(packed, quantised(tmp_path / "other.gguf", change=4)).tensors
    assert found.name == "blocks" and found.left.dtype == "Q8_0"
    assert (found.distance.differing, found.distance.elements) == (1, 4000 * 34)


@pytest.mark.parametrize("name", ["q.gguf", "c.npz"])
def test_bench_runs_on_any_kind(tmp_path: Path, name: str) -> None:
    if name == "q.gguf":
        quantised(tmp_path / name)
    else:
        np.savez(tmp_path / name, c=np.frombuffer(weights("F64", 4000), np.complex128), e=np.empty(0))
    for path in tmp_path / name, compress_file(tmp_path / name).destination:
        result = run("bench", path, "-j", 1, "--json")
        assert result.exit_code == 0, result.stderr
        codecs = {codec["name"]: codec for codec in json.loads(result.stdout)["codecs"]}
        assert codecs["neuzip default"]["equal"]
        assert codecs["neuzip default"]["error"] is None


def test_bench_takes_the_files_of_a_directory_together(tmp_path: Path) -> None:
    for name in "a.npz", "b.npz":
        np.savez(tmp_path / name, w=np.frombuffer(weights("F32", 9000), np.float32))
    (tmp_path / "README.md").write_text("text")
    codecs = json.loads(run("bench", tmp_path, "-j", 1, "--json").stdout)["codecs"]
    assert {codec["name"] for codec in codecs} >= {"neuzip default", "zstd -1"}
    for codec in codecs:
        assert (codec["original_size"], codec["equal"], codec["error"]) == (72_000, True, None)


def test_what_is_too_small_is_shared(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", tiny=np.arange(3), big=np.frombuffer(weights("F32", 9000), np.float32))
    packed = compress_file(tmp_path / "s.npz").destination
    tensors = {tensor.name: tensor for tensor in inspect_file(packed).tensors}
    assert tensors["tiny"].coding == "shared" and tensors["big"].coding == "planes"


def test_files_without_tensors(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no tensors")
    packed = compress_file(tmp_path / "text").destination
    for path in tmp_path / "text", packed, tmp_path:
        with pytest.raises(InvalidArgument, match="tensors"):
            diff_files(path, path)
        result = run("inspect", path)
        assert result.exit_code == 1 and str(path) in result.stderr


def test_files_of_a_kind_without_tensors_are_passed_over(tmp_path: Path) -> None:
    root = tmp_path / "mixed"
    root.mkdir()
    as_npz(root / "m.npz")
    np.savez_compressed(root / "deflated.npz", a=np.arange(100_000))
    (root / "empty.gguf").write_bytes(gguf_file.build([]))
    for name in "deflated.npz", "empty.gguf":
        compress_file(root / name)
    (root / "folder").symlink_to(tmp_path, target_is_directory=True)
    files = json.loads(run("inspect", root, "--json").stdout)["files"]
    assert [Path(file["path"]).name for file in files] == ["m.npz"]
    assert diff_files(root, root / "m.npz").equal == len(TENSORS)
    packed = root / "deflated.npz.nz"
    data = bytearray(packed.read_bytes())
    data[len(data) // 2] ^= 1
    packed.write_bytes(data)
    with pytest.raises(CorruptFrame):
        diff_files(root, root)


def test_damage_is_named(tmp_path: Path) -> None:
    as_npz(tmp_path / "m.npz")
    packed = compress_file(tmp_path / "m.npz").destination
    whole = packed.read_bytes()
    for position in (len(whole) // 2, len(whole) - 3000, 200):
        data = bytearray(whole)
        data[position : position + 64] = bytes(64)
        packed.write_bytes(data)
        for work in inspect_file, lambda path: diff_files(path, tmp_path / "m.npz"):
            with pytest.raises(CorruptFrame) as caught:
                work(packed)
            assert caught.value.file == str(packed)


def test_names_are_unique(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save((torch.ones(9), torch.zeros(9), {"w": (torch.ones(3), torch.ones(4))}), tmp_path / "t.pt")
    assert [tensor.name for tensor in inspect_file(tmp_path / "t.pt").tensors] == ["", " (2)", "w", "w (2)"]
    assert "\n–  " in run("inspect", tmp_path / "t.pt").stdout
    assert diff_files(tmp_path / "t.pt", tmp_path / "t.pt").equal == 4
