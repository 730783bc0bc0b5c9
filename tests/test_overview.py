"""What reports add up: planes, layers, exponents, ranks and duplicates."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from safetensors_file import build, model

from neuzip import compress_file, frame
from neuzip.cli import overview
from neuzip.cli.overview import by_layer, by_plane, by_power, duplicates, layer_name, natural, ranked, window
from neuzip.container import Container
from neuzip.histogram import exponent_bias
from neuzip.inspection import inspect_file
from neuzip.layouts import DTYPES


def rows_of(path: Path) -> list[overview.Row]:
    return overview.tensor_rows(path, [inspect_file(path)])


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(build(model(units=80_000)))
    return path


@pytest.mark.parametrize("level", ["default", "max"])
def test_planes_and_headers_are_all_of_a_frame(plain: Path, level: str) -> None:
    rng = np.random.default_rng(0)
    halves = rng.normal(0, 1, 150_001).astype(np.float16)
    more = {
        "half in 32": halves.astype(np.float32),  # constant and local planes
        "grid": rng.choice(np.linspace(-1, 1, 40), 200_000).astype(np.float64),
        "strays": np.where(np.arange(140_000) % 999, 1.5, 2.0 ** (np.arange(140_000) % 60)).astype(
            np.float32
        ),
        "tiny": halves[:200].astype(ml_dtypes.bfloat16),
    }
    path = plain.with_name("more.safetensors")
    save_file(more, path)
    seen: Counter[str] = Counter()
    for source in (plain, path):
        packed = compress_file(source, level=level).destination
        assert packed is not None
        with Container.open(packed) as container:
            for tensor in inspect_file(packed).tensors:
                if tensor.coding != "planes":
                    assert tensor.plane_sizes == ()
                    continue
                header = frame.read_header(container.data(tensor.name))
                width = len(tensor.plane_sizes)
                sections = header.offsets[-1] - header.header_size - 8 * width * header.chunk_count
                padding = sections - sum(tensor.plane_sizes)
                assert 0 <= padding < 4 * width * header.chunk_count, tensor.name
                assert all(size >= 0 for size in tensor.plane_sizes)
                for modes, size in zip(tensor.planes, tensor.plane_sizes, strict=True):
                    seen.update(modes)
                    assert size > 0 or set(modes) == {"constant"}
    assert {"raw", "constant", "byte", "local"} <= seen.keys()
    assert {"joint", "six"} <= seen.keys() if level == "max" else "rank" in seen


def test_checksums_do_not_depend_on_compression(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = compress_file(plain).destination
    assert packed is not None
    monkeypatch.setattr("neuzip.inspection.BATCH_BYTES", 1 << 20)  # chunks are at most that
    left, right = (rows_of(path) for path in (plain, packed))
    assert [row.tensor.checksum for row in left] == [row.tensor.checksum for row in right]
    assert len({row.tensor.checksum for row in left}) == len(left)


@pytest.mark.parametrize("name", [name for name in DTYPES if name.startswith(("F", "BF", "C"))])
def test_one_is_two_to_the_power_of_zero(name: str) -> None:
    dtype = DTYPES[name]
    if dtype.numpy is None:
        return
    scalar = np.dtype(getattr(ml_dtypes, dtype.numpy, None) or dtype.numpy)
    code = int.from_bytes(np.ones(1, scalar)[:1].real.tobytes(), "little")
    bits = {"F8_E8M0": (8, 0), "F4": (2, 1)}.get(name)
    if bits is None:
        info = ml_dtypes.finfo(scalar)
        bits = info.nexp, info.nmant
    assert exponent_bias(dtype) == code >> bits[1] & (1 << bits[0]) - 1


def test_powers_of_two(tmp_path: Path) -> None:
    values = np.array([0, -0.0, 1e-40, 0.25, 0.3, 0.5, -1.9, 4.0] * 10, np.float32)
    path = tmp_path / "m.safetensors"
    save_file({"a": values, "b": values.astype(ml_dtypes.bfloat16), "c": np.arange(9)}, path)
    found = by_power(rows_of(path))
    assert found.keys() == {"F32", "BF16"}
    assert found["F32"] == {None: 30, -2: 20, -1: 10, 0: 10, 2: 10}


def test_the_window_leaves_out_what_is_far_away() -> None:
    counts: Counter[int | None] = Counter({None: 10**9, -90: 3, -5: 10**5, -4: 10**6, -3: 10**4, 60: 1})
    assert window(counts, 48) == range(-5, -2)
    assert window(counts, 2) == range(-5, -3)
    assert window(Counter({None: 5}), 48) == range(0)
    assert window(Counter({7: 1}), 48) == range(7, 8)


def test_tensors_of_one_name_are_known_by_their_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    values = np.arange(8, dtype=np.float32)
    for name in "m-1-of-2.safetensors", "copy.safetensors":
        save_file({"h.3.w": values}, tmp_path / name)
    save_file({"h.4.w": values}, tmp_path / "m-2-of-2.safetensors")
    save_file({"h.3.w": values}, tmp_path / "sub" / "m.safetensors")
    np.save(tmp_path / "array.npy", values)
    paths = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    rows = overview.tensor_rows(tmp_path, [inspect_file(path) for path in paths])
    assert [(row.name, row.layer) for row in rows] == [
        ("array.npy", "array.npy"),
        ("copy.safetensors: h.3.w", "copy.safetensors: h.3"),
        ("m-1-of-2.safetensors: h.3.w", "m-1-of-2.safetensors: h.3"),
        ("h.4.w", "h.4"),
        ("sub/h.3.w", "sub/h.3"),
    ]


def test_layers(tmp_path: Path) -> None:
    names = [f"model.layers.{n}.{part}.weight" for n in (10, 9, 1) for part in ("up", "down")]
    tensors = {name: np.ones(100 * (number + 1), np.float32) for number, name in enumerate(names)}
    path = tmp_path / "m.safetensors"
    save_file(tensors | {"lm_head.weight": np.ones(1, np.float32), "x": np.ones(1, np.int64)}, path)
    rows = rows_of(path)
    found = by_layer(rows, 99)
    expected = ["lm_head", "model.layers.1", "model.layers.9", "model.layers.10", "x"]
    assert [layer.name for layer in found] == expected
    assert sum(layer.original for layer in found) == sum(row.tensor.original_size for row in rows)
    few = by_layer(rows, 2)
    assert [layer.name for layer in few] == ["model.layers.1", "model.layers.9", "3 smaller ones"]
    assert sum(layer.held for layer in few) == pytest.approx(sum(layer.held for layer in found))
    assert few[-1].powers == found[0].powers + found[3].powers + found[4].powers


def test_names_of_layers() -> None:
    assert layer_name("model.layers.3.mlp.up.weight") == "model.layers.3"
    assert layer_name("h.0.w") == "h.0"
    assert layer_name("0.weight") == "0"
    assert layer_name("lm_head.weight") == "lm_head"
    assert layer_name("bert.pooler.dense.bias") == "bert.pooler.dense"
    assert layer_name("experts.w1") == "experts"
    assert layer_name("") == ""
    assert sorted(["a.10", "a.9", "a.²", "a." + "1" * 9999, "a"], key=natural)[:2] == ["a", "a.9"]


def test_sums_of_planes(plain: Path) -> None:
    rows = rows_of(plain)
    found = by_plane(rows)
    assert "I32" not in found
    assert [size for size, _ in found["F32"]] == [80_000] * 4
    row = next(row for row in rows if row.tensor.dtype == "F32")
    assert sum(size for _, size in found["F32"]) == pytest.approx(row.tensor.bound_size)
    assert found["F32"][0][1] < 40_000 == found["F32"][1][1] / 2


def test_ranks_and_duplicates(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 1, 5000).astype(np.float32)
    tensors = {
        "noise": np.frombuffer(rng.bytes(8000), np.uint8),
        "weights": weights,
        "again": weights,
        "reshaped": weights.reshape(50, 100),
        "almost": np.append(weights[:-1], np.float32(9)),
        "zeros": np.zeros(5000, np.float32),
        "small": weights[:10],
        "small too": weights[:10],
        "empty": np.zeros(0, np.float32),
        "empty too": np.zeros(0, np.float32),
    }
    path = tmp_path / "m.safetensors"
    save_file(tensors, path)
    packed = compress_file(path).destination
    assert packed is not None
    for file in (path, packed):
        rows = rows_of(file)
        groups = [sorted(row.name for row in group) for group in duplicates(rows)]
        assert groups == [["again", "reshaped", "weights"], ["small", "small too"]]
        names = [row.name for row in ranked(rows)]
        assert names[0] == "zeros" and names[-1] == "noise"
        assert "small" not in names and "empty" not in names
