"""What torch.save writes: found in, restored from archives byte for byte, and loaded without unpickling."""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import neuzip.torch  # noqa: E402
from neuzip.archive import Archive  # noqa: E402
from neuzip.checkpoint import compress_file, decompress_file, verify_file  # noqa: E402
from neuzip.errors import CorruptFrame, NeuzipError, TruncatedInput, UnsupportedFormat  # noqa: E402
from neuzip.kinds import Kind, find_parts  # noqa: E402
from neuzip.kinds.part import ViewSource  # noqa: E402

LAYOUTS = {"zip": True, "legacy": False}
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64),
]


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def saved(value: Any, layout: str = "zip", **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=LAYOUTS[layout], **options)
    return out.getvalue()


def random_tensor(dtype: torch.dtype, count: int = 4000) -> torch.Tensor:
    """Weights, of which some are NaNs with payloads."""
    size = count * dtype.itemsize
    if dtype is torch.bool:
        return torch.arange(count) % 3 == 0
    values = (torch.randn(size) * 0.02).to(dtype if dtype.is_floating_point else torch.float32)
    data = values.view(torch.uint8)[:size].clone()
    data[-dtype.itemsize :] = 255
    return data.view(dtype)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return (
            type(left) is type(right)
            and (left.dtype, left.shape, left.stride()) == (right.dtype, right.shape, right.stride())
            and left.requires_grad == right.requires_grad
            and octets(left) == octets(right)
        )
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


def octets(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def roundtrip(tmp_path: Path, data: bytes, name: str = "model.pt") -> Path:
    """Compresses and restores a file; returns the archive."""
    (tmp_path / name).write_bytes(data)
    packed = compress_file(tmp_path / name, remove=True, force=True).destination
    assert packed == tmp_path / f"{name}.nz"
    assert packed.stat().st_size <= 1.001 * len(data) + 200
    verify_file(packed)
    decompress_file(packed)
    assert hashlib.sha256((tmp_path / name).read_bytes()).digest() == hashlib.sha256(data).digest()
    return packed


def check_loads(tmp_path: Path, value: Any, layout: str) -> Any:
    """Loads a value compressed and plain, and compares both with it."""
    packed = roundtrip(tmp_path, saved(value, layout))
    for path in packed, tmp_path / "model.pt":
        loaded = neuzip.torch.load_file(path)
        assert same(value, loaded)
    return loaded


def tensors_in(data: bytes) -> dict[str, tuple[str, tuple[int, ...]]]:
    structure = find_parts(ViewSource(memoryview(data)))
    return {part.name: (part.type, part.shape) for part in structure.parts}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(tmp_path: Path, layout: str, dtype: torch.dtype) -> None:
    value = {"a": random_tensor(dtype), "b": random_tensor(dtype, 7), "e": torch.empty(0, 3, dtype=dtype)}
    value |= {"scalar": random_tensor(dtype, 1).reshape(())}
    check_loads(tmp_path, value, layout)
    assert tensors_in(saved(value, layout))["a"][1] == (4000,)


def test_nested_names_and_shapes(tmp_path: Path, layout: str) -> None:
    value = {
        "state": {0: {"exp_avg": torch.randn(30, 40).bfloat16(), "step": torch.tensor(3.0)}},
        "groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 1 << 70, -5, None, True, "ü/."]}],
        "a/b.c ü": torch.ones(20, 20, dtype=torch.float16),
        "": torch.zeros(3),
        3: [torch.full((5,), float("nan")), ({"x": torch.arange(1000)},)],
    }
    check_loads(tmp_path, value, layout)
    found = tensors_in(saved(value, layout))
    assert found["state.0.exp_avg"] == ("BF16", (30, 40))
    assert found["a/b.c ü"] == ("F16", (20, 20))
    assert found["3.1.x"] == ("I64", (1000,))
    for root in torch.randn(500), [torch.randn(3)], (), {}, "text", None:
        check_loads(tmp_path, root, layout)


def test_storages_are_shared_and_strided(tmp_path: Path, layout: str) -> None:
    base = torch.randn(100, 200)
    value = {"t": base.t(), "row": base[3], "whole": base, "steps": base[::2, 5::3], "again": base}
    value |= {"expanded": torch.randn(4, 1).expand(4, 1000), "tail": torch.randn(5000)[4990:]}
    loaded = check_loads(tmp_path, value, layout)
    assert len(saved(value, layout)) < 110_000
    assert loaded["again"] is loaded["whole"]
    loaded["row"][0] = 42
    assert loaded["whole"][3, 0] == loaded["t"][0, 3] == 42


def test_optimizers(tmp_path: Path, layout: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(40, 60), torch.nn.BatchNorm1d(60))
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        model(torch.randn(8, 40)).square().sum().backward()
        optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    loaded = check_loads(tmp_path, state, layout)
    assert type(loaded["model"]) is OrderedDict
    assert loaded["model"]._metadata == model.state_dict()._metadata
    optimizer.load_state_dict(loaded["optimizer"])
    model.load_state_dict(loaded["model"])
    check_loads(tmp_path, dict(model.named_parameters()), layout)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(tmp_path: Path, layout: str, protocol: int) -> None:
    value = {"w": torch.randn(1000), "n": [1, 300, 70000, 1 << 40, 1.5, "x" * 300]}
    packed = roundtrip(tmp_path, saved(value, layout, pickle_protocol=protocol))
    assert same(neuzip.torch.load_file(packed), value)


def test_tensors_are_coded_as_what_they_are(tmp_path: Path, layout: str) -> None:
    value = {f"layers.{i}": (torch.randn(256, 256) * 0.02).bfloat16() for i in range(4)}
    packed = roundtrip(tmp_path, saved(value, layout))
    assert packed.stat().st_size < 0.70 * (tmp_path / "model.pt").stat().st_size
    with Archive.open(packed) as archive:
        assert archive.kind == Kind.TORCH
        assert {segment.name for segment in archive.segments} - {""} == set(value)


class Bomb:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


@pytest.mark.parametrize(
    "value",
    [
        {"x": Bomb()},
        {"x": torch.nn.Linear(2, 2)},
        {"x": torch.float32},
        {"x": np.float32(1)},
        {"x": {1, 2}},
        {(1, 2): 3},
        torch.randn(3, dtype=torch.complex64).conj(),
        torch.sparse_coo_tensor(
            torch.zeros(1, 1, dtype=torch.int64), torch.ones(1), (2,), check_invariants=True
        ),
    ],
    ids=["call", "module", "dtype", "numpy", "set", "key", "conj", "sparse"],
)
def test_what_is_not_plain_is_refused_but_restored(
    tmp_path: Path, layout: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = roundtrip(tmp_path, saved(value, layout))
    for path in packed, tmp_path / "model.pt":
        with pytest.raises(UnsupportedFormat) as caught:
            neuzip.torch.load_file(path)
        assert caught.value.file == str(path)
    assert capsys.readouterr().out == ""


def test_deep_nesting(tmp_path: Path, layout: str) -> None:
    value: Any = torch.randn(1000)
    for _ in range(300):
        value = [value]
    packed = roundtrip(tmp_path, saved(value, layout))
    with pytest.raises(UnsupportedFormat, match="deep"):
        neuzip.torch.load_file(packed)


def test_other_files_are_no_torch_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(pickle.dumps({"a": 1}))
    compress_file(tmp_path / "a")
    (tmp_path / "t").write_bytes(b"text")
    compress_file(tmp_path / "t")
    for name in "a", "a.nz", "t.nz":
        with pytest.raises(UnsupportedFormat, match=r"torch\.save"):
            neuzip.torch.load_file(tmp_path / name)
    # A safetensors file whose header has 640 bytes begins as a pickle of protocol 2.
    text = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(640)
    (tmp_path / "s").write_bytes(struct.pack("<Q", 640) + text + bytes(4))
    assert neuzip.torch.load_file(tmp_path / "s")["x"] == 0


# Files that lie.


def rezip(data: bytes, change: Any, method: int = zipfile.ZIP_STORED) -> bytes:
    """The zip file with members changed: change(name, data) gives the new data, or None to drop it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
        for name in old.namelist():
            member = change(name, old.read(name))
            if member is not None:
                new.writestr(name, member)
    return out.getvalue()


def lies(value: dict[str, Any]) -> dict[str, bytes]:
    data = saved(value)
    pkl = next(name for name in zipfile.ZipFile(io.BytesIO(data)).namelist() if name.endswith("data.pkl"))

    def pickled(old: bytes, new: bytes) -> bytes:
        assert old in zipfile.ZipFile(io.BytesIO(data)).read(pkl)
        return rezip(data, lambda name, member: member.replace(old, new) if name == pkl else member)

    return {
        "stride": pickled(b"K\x00M\xe8\x03\x85q", b"K\x00M\xe9\x03\x85q"),
        "offset": pickled(b"K\x00M\xe8\x03\x85q", b"K\x01M\xe8\x03\x85q"),
        "negative": pickled(b"K\x00M\xe8\x03\x85q", b"J\xff\xff\xff\xffM\xe8\x03\x85q"),
        "count": pickled(b"cpuq\x06M\xe8\x03", b"cpuq\x06M\xe9\x03"),
        "dtype": pickled(b"FloatStorage", b"DoubleStorage"),
        "no_storage": rezip(data, lambda name, member: None if "/data/" in name else member),
        "short_storage": rezip(data, lambda name, member: member[:-4] if "/data/" in name else member),
        "no_pickle": rezip(data, lambda name, member: None if name == pkl else member),
        "deflated": rezip(data, lambda name, member: member, zipfile.ZIP_DEFLATED),
        "cut": data[:-1],
        "pickle_cut": rezip(data, lambda name, member: member[:-1] if name == pkl else member),
        "big_endian": rezip(data, lambda name, member: b"big" if name.endswith("byteorder") else member),
    }


LIES = lies({"w": torch.arange(1000.0)})


@pytest.mark.parametrize("name", LIES)
def test_files_that_lie(tmp_path: Path, name: str) -> None:
    packed = roundtrip(tmp_path, LIES[name])
    for path in packed, tmp_path / "model.pt":
        with pytest.raises((CorruptFrame, TruncatedInput, UnsupportedFormat)):
            neuzip.torch.load_file(path)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "model.pt"


SEEDS = [saved({"w": torch.randn(200), "n": [1, "x"]}, name) for name in LAYOUTS]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 400),
)
def test_damaged_files_are_read_or_refused(
    scratch: Path, seed: bytes, edits: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(seed[: len(seed) - cut] if cut < 40 else seed)
    for position, value in edits:
        data[position % len(data)] = value
    find_parts(ViewSource(memoryview(data)))  # never raises
    scratch.write_bytes(data)
    with contextlib.suppress(NeuzipError):
        neuzip.torch.load_file(scratch)
