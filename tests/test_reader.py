"""safe_open: its methods, its slices, and how little they decode."""

from __future__ import annotations

import errno
import itertools
import mmap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import neuzip
import neuzip.numpy as nn
from neuzip import frame
from neuzip.errors import InvalidArgument, StorageError

torch = pytest.importorskip("torch")

ROWS, COLUMNS = 700, 1000  # 11 chunks of 65536 units, and rows that lie across chunks


@cache
def arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "weight": generator.normal(0, 0.02, (ROWS, COLUMNS)).astype(np.float32),
        "cube": generator.normal(0, 0.02, (5, 6, 7)).astype(np.float16),
        "counts": np.arange(300_000).reshape(300, 1000),
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 4), np.float32),
        "flags": generator.random((30, 40)) < 0.5,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    safetensors.numpy.save_file(arrays(), folder / "plain.safetensors", {"format": "pt"})
    neuzip.compress_file(folder / "plain.safetensors", folder / "compressed.safetensors")
    return folder


@pytest.fixture(params=["plain", "compressed"])
def path(request: pytest.FixtureRequest, folder: Path) -> Path:
    return folder / f"{request.param}.safetensors"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Numbers of the chunks decoded."""
    chunks: list[int] = []
    original = frame.decode_chunks

    def decode_chunks(header: frame.Header, data: Any, first: int, count: int, *rest: Any) -> None:
        chunks.extend(range(first, first + count))
        original(header, data, first, count, *rest)

    def refuse(*_: Any) -> None:
        raise AssertionError("a whole frame was decoded")

    monkeypatch.setattr(frame, "decode_chunks", decode_chunks)
    monkeypatch.setattr(frame, "decode_many", refuse)
    yield chunks
    assert len(set(chunks)) == len(chunks)


# --- the file ---------------------------------------------------------------------------------------------


def odd_model() -> dict[str, np.ndarray]:
    """Tensors whose bytes begin anywhere in a file, more than one piece of shared memory, and one with its own."""
    generator = np.random.default_rng(1)
    sizes = {
        "bytes": 1,
        "few": 63,
        "line": 64,
        "more": 1001,
        "some": 70_001,
        "half": 1 << 20,
        "most": (4 << 20) - 1,
    }
    model = {name: generator.integers(0, 256, size).astype(np.uint8) for name, size in sizes.items()}
    for number in range(18):
        model[f"{number}.weight"] = generator.normal(0, 0.02, 250_001 + number).astype(np.float32)
        model[f"{number}.odd"] = generator.integers(0, 2, 1 + 2 * number).astype(bool)
    model["own"] = generator.normal(0, 0.02, 1 << 20).astype(np.float32)
    return model | {"empty": np.zeros((3, 0), np.float16), "scalar": np.array(2.5, np.float32)}


@pytest.mark.parametrize("framework", ["np", "pt"])
@pytest.mark.parametrize("kind", ["plain", "compressed"])
def test_tensors_that_share_memory_do_not_share_bytes(tmp_path: Path, framework: str, kind: str) -> None:
    model = odd_model()
    safetensors.numpy.save_file(model, tmp_path / "plain.safetensors")
    neuzip.compress_file(tmp_path / "plain.safetensors", tmp_path / "compressed.safetensors")
    with neuzip.safe_open(tmp_path / f"{kind}.safetensors", framework) as file:
        found = file.get_tensors()
    (tmp_path / f"{kind}.safetensors").unlink()
    assert found.keys() == model.keys()
    areas = []
    for name, tensor in found.items():
        array = tensor.numpy() if framework == "pt" else tensor
        assert array.dtype == model[name].dtype and array.shape == model[name].shape
        assert array.flags.c_contiguous and array.flags.writeable
        if array.size:
            start = array.__array_interface__["data"][0]
            areas.append((start, start + array.nbytes))
            # What torch gives its tensors; the last bits of a product can depend on it.
            assert start % 64 == 0 or (framework == "np" and name == "own"), name
        if framework == "pt":
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
    areas.sort()
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(areas))
    for name, tensor in found.items():  # each is intact when those before it have been overwritten
        array = tensor.numpy() if framework == "pt" else tensor
        assert array.tobytes() == model[name].tobytes(), name
        array.reshape(-1).view(np.uint8)[:] = 255


def test_no_memory_is_said_as_elsewhere(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with neuzip.safe_open(path, "np") as file:
        monkeypatch.setattr(mmap, "mmap", refuse)
        with pytest.raises(MemoryError):
            file.get_tensors()


@pytest.mark.parametrize("framework", ["np", "pt"])
def test_it_reads_as_safetensors_does(path: Path, folder: Path, framework: str) -> None:
    with (
        neuzip.safe_open(path, framework=framework) as ours,
        safetensors.safe_open(folder / "plain.safetensors", framework=framework) as theirs,
    ):
        assert ours.keys() == theirs.keys()
        assert ours.offset_keys() == theirs.offset_keys()
        assert ours.metadata() == theirs.metadata()
        assert list(ours.get_tensors()) == ours.offset_keys()
        for key in theirs.offset_keys():
            expected = np.asarray(theirs.get_tensor(key))
            for tensor in (ours.get_tensor(key), ours.get_tensors()[key], ours.get_slice(key)[...]):
                found = np.asarray(tensor)
                assert type(tensor) is type(theirs.get_tensor(key))
                assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
                assert found.tobytes() == expected.tobytes()
            assert ours.get_slice(key).get_shape() == theirs.get_slice(key).get_shape()
            assert ours.get_slice(key).get_dtype() == theirs.get_slice(key).get_dtype()


def test_the_default_framework_is_torch(path: Path) -> None:
    assert isinstance(neuzip.safe_open(path).get_tensor("cube"), torch.Tensor)


def test_no_metadata_is_none(tmp_path: Path) -> None:
    nn.save_file({"a": np.zeros(1000)}, tmp_path / "a.safetensors")
    with neuzip.safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.metadata() is None


def test_a_closed_file_says_so(path: Path) -> None:
    with neuzip.safe_open(path, "np") as file:
        view = file.get_slice("cube")
    for use in (
        file.keys,
        file.offset_keys,
        file.metadata,
        file.get_tensors,
        lambda: file.get_tensor("cube"),
    ):
        with pytest.raises(InvalidArgument, match="closed"):
            use()
    with pytest.raises(InvalidArgument, match="closed"):
        view[0]
    file.__exit__(None, None, None)


def test_an_unknown_tensor_is_named(path: Path) -> None:
    with neuzip.safe_open(path, "np") as file:
        for use in (file.get_tensor, file.get_slice):
            with pytest.raises(InvalidArgument, match="'nothing'") as caught:
                use("nothing")
            assert caught.value.file == str(path)


def test_bad_arguments(path: Path, tmp_path: Path) -> None:
    for arguments in (("tf",), ("np", "cuda"), ("pt", "typewriter")):
        with pytest.raises(InvalidArgument):
            neuzip.safe_open(path, *arguments)
    with pytest.raises(InvalidArgument, match="backend"):
        neuzip.safe_open(path, "np", backend="telepathy")
    with pytest.raises(InvalidArgument, match="threads"):
        neuzip.safe_open(path, "np", threads=0)
    with pytest.raises(FileNotFoundError) as caught:
        neuzip.safe_open(tmp_path / "missing", "np")
    assert isinstance(caught.value, StorageError) and caught.value.file == str(tmp_path / "missing")
    with pytest.raises(InvalidArgument):
        neuzip.safe_open(tmp_path, "np")
    for backend in ("mmap", "pread"):
        neuzip.safe_open(path, "np", backend=backend)


def test_torch_devices(path: Path) -> None:
    with neuzip.safe_open(path, device="meta") as file:
        assert file.get_tensor("cube").is_meta
        assert file.get_slice("cube")[1:2].is_meta
        assert all(tensor.is_meta for tensor in file.get_tensors().values())


# --- slices -----------------------------------------------------------------------------------------------

INDEXES = [
    0, -1, 4, np.int64(2), (0, 0, 0), (1, 2), (0, ...), (..., 0), (..., 1, 1, 1), (0, 0, 0, ...), (), ...,
    (...,), slice(None), slice(1, 3), slice(1, 5, 2), slice(-2, None), slice(-100, 2), slice(2, 100),
    slice(6, 7), slice(5, 5), slice(3, 1), (slice(None), slice(0, 0)), (slice(1, 2), 1), (slice(None), 2),
    (1, slice(None, None, 3)), (slice(4, 5), slice(2, 4)), (2, slice(1, 2), slice(3, 6, 2)),
    (slice(None), slice(None), slice(2, 5)), None, (None, 1), (slice(None), None, 1), True, False,
    [0, 2], [-1], np.array([1, 2]), [True, False, True, False, True], (0, [1, 2]), (slice(1, 3), [0, 0, 5]),
    (0, slice(None), [1, 2]), (slice(1, 4), 0, [1, 2]), ([0, 1], slice(1, 3), 2),
]  # fmt: skip
REFUSED = [
    5,
    -6,
    (0, 0, 0, 0),
    1.5,
    "a",
    slice(None, None, 0),
    (slice(None), 6),
    slice("a", None),
    (0, 6),
    [7],
    (0, [7]),
]


def same_outcome(ours: Any, theirs: Any, index: Any) -> None:
    """Both objects answer an index alike, or raise the same type of error."""
    try:
        expected = theirs[index]
    except (IndexError, ValueError, TypeError) as error:
        with pytest.raises(type(error)):
            ours[index]
        return
    found = ours[index]
    assert isinstance(found, np.ndarray | torch.Tensor)
    found, expected = np.asarray(found), np.asarray(expected)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("name", ["cube", "scalar", "empty"])
def test_slices_are_those_of_safetensors(path: Path, folder: Path, name: str) -> None:
    with (
        neuzip.safe_open(path, framework="pt") as ours,
        safetensors.safe_open(folder / "plain.safetensors", framework="pt") as theirs,
    ):
        for index in INDEXES + REFUSED:
            same_outcome(ours.get_slice(name), theirs.get_slice(name), index)


@pytest.mark.parametrize("name", ["cube", "scalar", "empty"])
def test_slices_of_arrays_are_those_of_numpy(path: Path, folder: Path, name: str) -> None:
    """safetensors slices arrays itself and knows no lists and no negative bounds; else it does as numpy."""
    array, compared = arrays()[name], 0
    with (
        neuzip.safe_open(path, framework="np") as ours,
        safetensors.safe_open(folder / "plain.safetensors", framework="np") as theirs,
    ):
        for index in INDEXES + REFUSED:
            same_outcome(ours.get_slice(name), array, index)
            try:
                expected = theirs.get_slice(name)[index]
            except (safetensors.SafetensorError, OverflowError, SystemError, TypeError):
                continue
            if not isinstance(index, bool):
                found = ours.get_slice(name)[index]
                assert type(found) is type(expected)
                assert (found.shape, found.tobytes()) == (expected.shape, expected.tobytes())
                compared += 1
    assert compared >= {"cube": 20, "scalar": 3, "empty": 1}[name]


def test_numpy_steps_backwards(path: Path) -> None:
    cube = arrays()["cube"]
    with neuzip.safe_open(path, "np") as file:
        for index in (
            slice(None, None, -1),
            slice(4, 0, -2),
            slice(0, None, -1),
            (2, slice(5, 1, -3)),
            slice(3, 3, -1),
        ):
            same_outcome(file.get_slice("cube"), cube, index)


bounds = st.none() | st.integers(-9, 9)
slices = st.builds(slice, bounds, bounds, st.none() | st.integers(1, 4))
items = st.integers(-7, 6) | slices | st.none() | st.just(...)


@settings(max_examples=300, deadline=None)
@given(index=items | st.lists(items, max_size=5).map(tuple))
def test_any_index(folder: Path, index: Any) -> None:
    cube = arrays()["cube"]
    for name in ("plain", "compressed"):
        with neuzip.safe_open(folder / f"{name}.safetensors", "np") as file:
            same_outcome(file.get_slice("cube"), cube, index)
        with neuzip.safe_open(folder / f"{name}.safetensors", "pt") as file:
            same_outcome(file.get_slice("cube"), torch.from_numpy(cube), index)


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(0, ROWS),
    stop=st.integers(0, ROWS),
    step=st.integers(1, 90),
    column=st.integers(0, COLUMNS - 1),
)
def test_rows_across_chunks(folder: Path, start: int, stop: int, step: int, column: int) -> None:
    weight, path = arrays()["weight"], folder / "compressed.safetensors"
    with neuzip.safe_open(path, "np") as file:
        view = file.get_slice("weight")
        for index in (
            slice(start, stop),
            slice(start, stop, step),
            (min(start, ROWS - 1), slice(column, None)),
        ):
            same_outcome(view, weight, index)


def chunks_of(start: int, stop: int) -> list[int]:
    """Chunks of elements start … stop of `weight`."""
    return list(range(start // 65536, -(-stop // 65536)))


@pytest.mark.parametrize("framework", ["np", "pt"])
@pytest.mark.parametrize(
    ("index", "start", "stop"),
    [
        (0, 0, COLUMNS),
        (-1, (ROWS - 1) * COLUMNS, ROWS * COLUMNS),
        (65, 65 * COLUMNS, 66 * COLUMNS),  # lies across two chunks
        (slice(0, 65), 0, 65 * COLUMNS),
        (slice(100, 500), 100 * COLUMNS, 500 * COLUMNS),
        (slice(100, 500, 7), 100 * COLUMNS, 499 * COLUMNS + COLUMNS),
        ((65, slice(0, 100)), 65 * COLUMNS, 65 * COLUMNS + 100),
        ((65, 999), 66 * COLUMNS - 1, 66 * COLUMNS),
        ((slice(3, 4), slice(10, 20)), 3 * COLUMNS + 10, 3 * COLUMNS + 20),
        ((slice(100, 200), 5), 100 * COLUMNS, 200 * COLUMNS),
        (slice(5, 5), 0, 0),
        (slice(None), 0, ROWS * COLUMNS),
    ],
)
def test_only_the_chunks_touched_are_decoded(
    folder: Path, decoded: list[int], framework: str, index: Any, start: int, stop: int
) -> None:
    with neuzip.safe_open(folder / "compressed.safetensors", framework) as file:
        found = file.get_slice("weight")[index]
    assert np.array_equal(np.asarray(found), arrays()["weight"][index])
    assert sorted(decoded) == chunks_of(start, stop)


def test_a_bad_index_decodes_nothing(folder: Path, decoded: list[int]) -> None:
    with neuzip.safe_open(folder / "compressed.safetensors", "np") as file:
        for index in (ROWS, (0, COLUMNS), (0, 0, 0), slice(None, None, 0)):
            with pytest.raises((IndexError, ValueError)):
                file.get_slice("weight")[index]
    assert decoded == []


@pytest.mark.parametrize("framework", ["np", "pt"])
def test_slices_keep_no_more_memory_than_they_need(path: Path, framework: str) -> None:
    with neuzip.safe_open(path, framework) as file:
        for index in (
            slice(100, 500),
            (slice(None), 3),
            (5, slice(None, None, 2)),
            slice(None, None, 50),
            (None, 5),
        ):
            found = file.get_slice("weight")[index]
            if framework == "pt":
                assert found.is_contiguous() and found.untyped_storage().nbytes() == found.nbytes
            else:
                owner = found if found.base is None else found.base
                assert found.flags.c_contiguous and found.flags.writeable and owner.nbytes == found.nbytes


def test_slices_of_packed_floats_count_bytes_as_torch_does(tmp_path: Path) -> None:
    nt = pytest.importorskip("neuzip.torch")
    data = torch.arange(200 * 1000, dtype=torch.int32).to(torch.uint8).reshape(200, 1000)
    nt.save_file({"packed": data.view(torch.float4_e2m1fn_x2)}, tmp_path / "a.safetensors")
    with neuzip.safe_open(tmp_path / "a.safetensors") as file:
        view = file.get_slice("packed")
        assert view.get_shape() == [200, 2000] and view.get_dtype() == "F4"
        for index in (3, slice(70, 190), (slice(2, 9), slice(5, 700, 3)), (..., 0)):
            found = view[index]
            assert found.dtype == torch.float4_e2m1fn_x2
            assert torch.equal(found.view(torch.uint8), data[index])


def test_nans_in_slices_keep_their_bits(tmp_path: Path) -> None:
    bits = np.random.default_rng(1).integers(0, 1 << 16, (300, 400), np.uint16) | 0x7C01
    nn.save_file({"nan": bits.view(np.float16)}, tmp_path / "a.safetensors")
    for framework in ("np", "pt"):
        with neuzip.safe_open(tmp_path / "a.safetensors", framework) as file:
            for index in (slice(3, 290), (slice(None), slice(1, None, 2))):
                found = np.ascontiguousarray(np.asarray(file.get_slice("nan")[index]))
                assert np.array_equal(found.view(np.uint16), bits[index])
