"""neuzip.numpy: the functions of safetensors.numpy, and frames of single arrays."""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import neuzip
import neuzip.numpy as nn
from neuzip.errors import CorruptFrame, InvalidArgument, TruncatedInput, UnsupportedFormat
from neuzip.layouts import DTYPES
from neuzip.safetensors_header import LENGTH

NATIVE = {
    row.name: np.dtype(getattr(np, row.numpy, None) or getattr(ml_dtypes, row.numpy))
    for row in DTYPES.values()
    if row.numpy is not None
}
SAVED = [name for name in NATIVE if name not in ("C128", "F4")]
SHAPES = [(), (0,), (1,), (3,), (0, 5), (7, 11), (129, 65), (3, 2, 5, 1), (70_000,)]


def random_array(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Any bits at all, but bools that are bools and 4-bit floats of 4 bits."""
    array = np.empty(shape, NATIVE[name])
    data = np.random.default_rng(seed).integers(0, 256, array.nbytes, np.uint8)
    data &= {"BOOL": 1, "F4": 15}.get(name, 255)
    array.reshape(-1).view(np.uint8)[:] = data
    return array


def assert_same(left: np.ndarray, right: np.ndarray) -> None:
    assert (left.dtype, left.shape) == (right.dtype, right.shape)
    assert left.tobytes() == right.tobytes()


def weights(*shape: int, dtype: type = ml_dtypes.bfloat16) -> np.ndarray:
    return np.random.default_rng(math.prod(shape)).normal(0, 0.02, shape).astype(dtype)


# --- frames -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["default", "max"])
@pytest.mark.parametrize("name", NATIVE)
def test_every_dtype_and_shape_comes_back(name: str, level: str) -> None:
    for shape in SHAPES:
        if name == "F4" and math.prod(shape) % 2:
            continue
        array = random_array(name, shape)
        before = array.tobytes()
        frame = nn.compress(array, level=level)
        assert array.tobytes() == before
        assert_same(nn.decompress(frame), array)
        assert len(frame) <= array.nbytes * 1.001 + 256


def test_packed_floats_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    nt = pytest.importorskip("neuzip.torch")
    array = random_array("F4", (6, 8))
    packed = nt.decompress(nn.compress(array))
    assert packed.dtype == torch.float4_e2m1fn_x2 and packed.shape == (6, 4)
    data = packed.view(torch.uint8).numpy()
    assert np.array_equal(data & 15, array.view(np.uint8)[:, 0::2])
    assert np.array_equal(data >> 4, array.view(np.uint8)[:, 1::2])
    assert nt.compress(packed) == nn.compress(array)
    with pytest.raises(InvalidArgument, match="bytes"):
        nn.compress(array[:1, :3])


def test_strides_and_byte_order_do_not_matter() -> None:
    array = weights(64, 48, dtype=np.float32)
    for view in (array.T, array[:, ::3], array[::-1, 2:5], np.asfortranarray(array), array.astype(">f4")):
        expected = np.ascontiguousarray(view, dtype="<f4")
        assert_same(nn.decompress(nn.compress(view)), expected)
        assert nn.compress(view) == nn.compress(expected)
    assert_same(nn.decompress(nn.compress(np.float32(2.5))), np.array(2.5, np.float32))


def test_out_is_decoded_into() -> None:
    for name in ("BF16", "F4"):
        array = random_array(name, (300, 70))
        out = np.zeros((302, 70), NATIVE[name])
        part = out[1:301]
        assert nn.decompress(nn.compress(array), out=part) is part
        assert_same(out[1:301], array)
        assert not out[0].any() and not out[301].any()


def test_an_out_that_does_not_fit_is_refused() -> None:
    frame = nn.compress(np.ones((4, 8), np.float32))
    constant = np.zeros((4, 8), np.float32)
    constant.flags.writeable = False
    bad = (np.zeros((8, 4), np.float32), np.zeros((4, 8), np.int32), np.zeros((8, 4), np.float32).T)
    for out in (*bad, constant, [0.0] * 32, np.zeros((4, 8), ">f4")):
        with pytest.raises(InvalidArgument, match="out"):
            nn.decompress(frame, out=out)


def test_damaged_frames_are_refused() -> None:
    frame = nn.compress(weights(100, 100))
    with pytest.raises(TruncatedInput):
        nn.decompress(frame[:-8])
    with pytest.raises(CorruptFrame):
        nn.decompress(frame[:-100] + bytes([frame[-100] ^ 1]) + frame[-99:])
    with pytest.raises(UnsupportedFormat):
        nn.decompress(b"no frame" * 100)


def test_threads_do_not_change_the_bytes() -> None:
    array = weights(600, 700, dtype=np.float16)
    assert nn.compress(array, threads=1) == nn.compress(array, threads=2)
    assert_same(nn.decompress(nn.compress(array), threads=1), nn.decompress(nn.compress(array), threads=2))


@pytest.mark.parametrize(
    "array",
    [
        [1.0],
        np.array(["text"]),
        np.array([None]),
        np.zeros(3, "M8[s]"),
        np.zeros(3, [("a", "<f4")]),
        np.zeros(3, ml_dtypes.int4),
    ],
)
def test_what_cannot_be_stored(array: object) -> None:
    with pytest.raises(InvalidArgument):
        nn.compress(array)
    with pytest.raises(InvalidArgument, match="'a'"):
        nn.save({"a": array})


# --- files ------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
shapes = st.lists(st.integers(0, 40), max_size=3).map(tuple)


@st.composite
def array_dicts(draw: st.DrawFn) -> dict[str, np.ndarray]:
    keys = draw(st.lists(texts.filter(lambda text: text != "__metadata__"), unique=True))
    return {
        key: random_array(draw(st.sampled_from(SAVED)), draw(shapes), seed) for seed, key in enumerate(keys)
    }


metadatas = st.none() | st.dictionaries(
    texts.filter(lambda text: not text.startswith("neuzip.")), texts, max_size=1
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrays=array_dicts(), metadata=metadatas)
def test_saved_files_are_those_of_safetensors(
    arrays: dict[str, np.ndarray], metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    ours, theirs, restored = (
        tmp_path / name for name in ("a.nz.safetensors", "b.safetensors", "c.safetensors")
    )
    nn.save_file(arrays, ours, metadata)
    metadata = metadata if arrays or metadata else None  # of nothing at all, safetensors makes no JSON
    safetensors.numpy.save_file(arrays, theirs, metadata)
    neuzip.decompress_file(ours, restored, force=True)
    assert restored.read_bytes() == theirs.read_bytes()
    assert nn.save(arrays, metadata) == ours.read_bytes()
    for loaded in (nn.load_file(ours), nn.load_file(theirs), nn.load(theirs.read_bytes())):
        assert loaded.keys() == arrays.keys()
        for key, array in loaded.items():
            assert_same(array, arrays[key])


def test_packed_floats_in_files(tmp_path: Path) -> None:
    arrays = {"packed": random_array("F4", (130, 64)), "one": random_array("F4", (2,))}
    path, restored = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    nn.save_file(arrays, path)
    neuzip.decompress_file(path, restored)
    for file in (path, restored):
        loaded = nn.load_file(file)
        for key, array in arrays.items():
            assert_same(loaded[key], array)
    with neuzip.safe_open(path, "np") as file:
        view = file.get_slice("packed")
        assert view.get_shape() == [130, 64]
        for index in (3, (3, 5), slice(1, 7, 2), (..., slice(1, 4))):
            assert view[index].tobytes() == arrays["packed"][index].tobytes()


def test_arrays_out_of_c_order_are_saved_as_they_read(tmp_path: Path) -> None:
    arrays = {
        "transposed": weights(30, 40).T,
        "stepped": weights(10, 10)[::2, ::-1],
        "big": np.arange(9).astype(">i8"),
    }
    loaded = nn.load(nn.save(arrays))
    for key, array in arrays.items():
        assert_same(loaded[key], np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")))


def test_loaded_arrays_are_writable_and_outlive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for save in (nn.save_file, safetensors.numpy.save_file):
        save({"a": weights(50, 50, dtype=np.float32)}, path)
        array = nn.load_file(path)["a"]
        path.unlink()
        array[:] = 1
        assert array.flags.owndata or isinstance(array.base, bytearray)


def test_threads_and_levels_of_files(tmp_path: Path) -> None:
    arrays = {f"layer.{i}": weights(200, 100 + i) for i in range(20)}
    contents = {}
    for threads in (1, 2):
        for level in ("default", "max"):
            path = tmp_path / f"{threads}.{level}.safetensors"
            nn.save_file(arrays, path, level=level, threads=threads)
            contents[threads, level] = path.read_bytes()
    assert contents[1, "default"] == contents[2, "default"] != contents[1, "max"] == contents[2, "max"]


def test_what_a_file_cannot_hold() -> None:
    for arrays in ([np.zeros(1)], {"a": np.zeros(1, np.complex128)}, {"__metadata__": np.zeros(1)}):
        with pytest.raises(InvalidArgument):
            nn.save(arrays)
    with pytest.raises(TypeError):
        nn.save({1: np.zeros(1)})
    with pytest.raises(TypeError):
        nn.save({"a": np.zeros(1)}, {"a": 1})


def test_a_dtype_that_numpy_lacks_is_named(tmp_path: Path) -> None:
    text = b'{"odd":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}    '
    path = tmp_path / "odd.safetensors"
    path.write_bytes(LENGTH.pack(len(text)) + text + b"abc")
    with pytest.raises(InvalidArgument, match="F6_E2M3") as caught:
        nn.load_file(path)
    assert (caught.value.file, caught.value.tensor) == (str(path), "odd")


def test_devices(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    nn.save_file({"a": np.zeros(3)}, path)
    assert nn.load_file(path, device="cpu").keys() == {"a"}
    with pytest.raises(InvalidArgument, match="cuda"):
        nn.load_file(path, device="cuda")
