"""neuzip.torch: the functions of safetensors.torch, and frames of single tensors."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import neuzip
import neuzip.torch as nt
from neuzip.errors import CorruptFrame, InvalidArgument, StorageError, TruncatedInput
from neuzip.layouts import DTYPES

torch = pytest.importorskip("torch")

NAMES = [row.torch for row in DTYPES.values() if row.torch is not None and hasattr(torch, row.torch)]
SAVED = [name for name in NAMES if name != "complex128"]
SHAPES = [(), (0,), (1,), (3,), (0, 5), (7, 11), (129, 65), (3, 2, 5, 1), (70_000,)]
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def random_tensor(name: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Any bits at all, NaNs with payloads and signed zeros among them, but bools that are bools."""
    dtype = getattr(torch, name)
    tensor = torch.empty(shape, dtype=dtype)
    data = np.random.default_rng(seed).integers(0, 256, tensor.nbytes, np.uint8)
    if name == "bool":
        data &= 1
    raw(tensor)[:] = data
    return tensor


def raw(tensor: torch.Tensor) -> np.ndarray:
    """A contiguous tensor's memory."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()


def assert_same(left: torch.Tensor, right: torch.Tensor) -> None:
    assert (left.dtype, left.shape) == (right.dtype, right.shape)
    assert raw(left).tobytes() == raw(right.contiguous()).tobytes()


def weights(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(math.prod(shape))
    return (torch.randn(*shape, generator=generator) * 0.02).to(dtype)


# --- frames -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["default", "max"])
@pytest.mark.parametrize("name", NAMES)
def test_every_dtype_and_shape_comes_back(name: str, level: str) -> None:
    for shape in SHAPES:
        if name.endswith("_x2") and not shape:
            continue  # half a dimension
        tensor = random_tensor(name, shape)
        before = raw(tensor).tobytes()
        frame = nt.compress(tensor, level=level)
        assert raw(tensor).tobytes() == before
        assert_same(nt.decompress(frame), tensor)
        assert len(frame) <= tensor.nbytes * 1.001 + 256


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32", "float64"])
def test_special_values(name: str) -> None:
    values = torch.tensor(
        [math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, -1e-40], dtype=torch.float64
    )
    tensor = values.to(getattr(torch, name)).repeat(1000)
    integers = tensor.view(INTEGERS[tensor.itemsize])
    integers[::8] |= 5  # a payload
    assert tensor.isnan().any()
    result = nt.decompress(nt.compress(tensor))
    assert torch.equal(result.view(INTEGERS[tensor.itemsize]), integers)


def test_strides_do_not_matter() -> None:
    tensor = weights(64, 48)
    for view in (tensor.t(), tensor[:, ::3], tensor[5:], tensor[0].expand(7, 48), tensor.t()[1:, 2:5]):
        assert_same(nt.decompress(nt.compress(view)), view.contiguous())
        assert nt.compress(view) == nt.compress(view.contiguous())


def test_gradients_and_parameters() -> None:
    parameter = torch.nn.Parameter(weights(33, 9, dtype=torch.float32))
    result = nt.decompress(nt.compress(parameter))
    assert_same(result, parameter.detach())
    assert not result.requires_grad and parameter.requires_grad


def test_lazy_conjugates_and_negatives_are_stored_as_what_they_mean() -> None:
    tensor = torch.view_as_complex(weights(100, 2, dtype=torch.float32))
    negative = torch._neg_view(weights(300, 7))
    for view in (tensor.conj(), tensor.conj().imag, tensor.conj()[::2], negative):
        assert view.is_conj() or view.is_neg()
        assert_same(nt.decompress(nt.compress(view)), view.resolve_conj().resolve_neg().contiguous())


def test_out_is_decoded_into() -> None:
    tensor = weights(300, 700)
    frame = nt.compress(tensor)
    out = torch.zeros(300, 700, dtype=torch.bfloat16)
    address = out.data_ptr()
    assert nt.decompress(frame, out=out) is out
    assert out.data_ptr() == address
    assert_same(out, tensor)
    part = torch.zeros(302, 700, dtype=torch.bfloat16)
    assert_same(nt.decompress(frame, out=part[1:301]), tensor)
    assert_same(part[1:301], tensor)
    assert not part[0].any() and not part[301].any()
    parameter = torch.nn.Parameter(torch.zeros(300, 700, dtype=torch.bfloat16))
    assert nt.decompress(frame, out=parameter) is parameter
    assert_same(parameter.detach(), tensor)


@pytest.mark.parametrize(
    "out",
    [
        torch.zeros(8, 4),
        torch.zeros(4, 8, dtype=torch.int32),
        torch.zeros(8, 4).t(),
        torch.zeros(32),
        torch.empty(4, 8, device="meta"),
        torch._neg_view(torch.zeros(4, 8)),
        torch.zeros(4, 8).to_sparse(),
    ],
)
def test_an_out_that_does_not_fit_is_refused(out: torch.Tensor) -> None:
    with pytest.raises(InvalidArgument, match="out"):
        nt.decompress(nt.compress(torch.ones(4, 8)), out=out)


def test_frames_of_any_bytes_like_kind() -> None:
    tensor = weights(100, 100)
    frame = nt.compress(tensor)
    as_tensor = torch.frombuffer(bytearray(frame), dtype=torch.uint8)
    for kind in (frame, bytearray(frame), memoryview(frame), np.frombuffer(frame, np.uint8), as_tensor):
        assert_same(nt.decompress(kind), tensor)


def test_damaged_frames_are_refused() -> None:
    frame = nt.compress(weights(100, 100))
    with pytest.raises(TruncatedInput):
        nt.decompress(frame[:-8])
    with pytest.raises(CorruptFrame):
        nt.decompress(frame[:-100] + bytes([frame[-100] ^ 1]) + frame[-99:])


def test_threads_do_not_change_the_bytes() -> None:
    tensor = weights(600, 700, dtype=torch.float32)
    assert nt.compress(tensor, threads=1) == nt.compress(tensor, threads=2)
    assert_same(nt.decompress(nt.compress(tensor), threads=1), nt.decompress(nt.compress(tensor), threads=2))


@pytest.mark.parametrize(
    "tensor",
    [
        np.zeros(3),
        torch.zeros(3).to_sparse(),
        torch.empty(3, device="meta"),
        torch.zeros(3, dtype=torch.bits8),
    ],
)
def test_what_cannot_be_compressed(tensor: object) -> None:
    with pytest.raises(InvalidArgument):
        nt.compress(tensor)


def test_bad_options_are_refused() -> None:
    for options in ({"level": "best"}, {"threads": 0}):
        with pytest.raises(InvalidArgument):
            nt.compress(torch.zeros(3), **options)


# --- files ------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
shapes = st.lists(st.integers(0, 40), max_size=3).map(tuple)


@st.composite
def state_dicts(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    tensors = {}
    for seed, key in enumerate(
        draw(st.lists(texts.filter(lambda text: text != "__metadata__"), unique=True))
    ):
        name, shape = draw(st.sampled_from(SAVED)), draw(shapes)
        if not (name.endswith("_x2") and not shape):
            tensors[key] = random_tensor(name, shape, seed)
    return tensors


# safetensors' order of several metadata items is random, so only one can be compared.
metadatas = st.none() | st.dictionaries(
    texts.filter(lambda text: not text.startswith("neuzip.")), texts, max_size=1
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors=state_dicts(), metadata=metadatas)
def test_saved_files_are_those_of_safetensors(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    ours, theirs, restored = (
        tmp_path / name for name in ("a.nz.safetensors", "b.safetensors", "c.safetensors")
    )
    before = {key: raw(tensor).tobytes() for key, tensor in tensors.items()}
    nt.save_file(tensors, ours, metadata)
    assert {key: raw(tensor).tobytes() for key, tensor in tensors.items()} == before
    metadata = metadata if tensors or metadata else None  # of nothing at all, safetensors makes no JSON
    safetensors.torch.save_file(tensors, theirs, metadata)
    neuzip.decompress_file(ours, restored, force=True)
    assert restored.read_bytes() == theirs.read_bytes()
    assert nt.save(tensors, metadata) == ours.read_bytes()
    for loaded in (nt.load_file(ours), nt.load_file(theirs), nt.load(ours.read_bytes())):
        assert list(loaded) == list(nt.load(theirs.read_bytes()))
        assert loaded.keys() == tensors.keys()
        for key, tensor in loaded.items():
            assert_same(tensor, tensors[key])


def test_many_metadata_items_keep_their_order(tmp_path: Path) -> None:
    metadata = {key: f"value {key}" for key in "qwertyuiopåß"}
    tensors = {"weight": weights(100, 100)}
    first, second = nt.save(tensors, metadata), nt.save(tensors, metadata)
    assert first == second
    path = tmp_path / "a.safetensors"
    path.write_bytes(first)
    with neuzip.safe_open(path) as file:
        assert list(file.metadata().items()) == list(metadata.items())
    neuzip.decompress_file(path, tmp_path / "b.safetensors")
    assert len((tmp_path / "b.safetensors").read_bytes()) == len(safetensors.torch.save(tensors, metadata))
    with safetensors.safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert file.metadata() == metadata


def test_stock_safetensors_opens_what_we_save(tmp_path: Path) -> None:
    tensors = {
        "weight": weights(300, 300),
        "scale": torch.tensor(2.0),
        "bytes": torch.arange(256).to(torch.uint8),
    }
    path = tmp_path / "model.nz.safetensors"
    nt.save_file(tensors, path, {"format": "pt"})
    stock = safetensors.torch.load_file(path)
    assert stock["weight"].dtype == torch.uint8 and stock["weight"].ndim == 1
    assert stock["weight"].nbytes < tensors["weight"].nbytes * 0.8
    assert_same(nt.decompress(stock["weight"]), tensors["weight"])
    assert_same(stock["scale"], tensors["scale"])


def test_loaded_tensors_own_writable_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for save in (nt.save_file, safetensors.torch.save_file):
        save({"weight": weights(50, 50), "bias": weights(50, dtype=torch.float32)}, path)
        loaded = nt.load_file(path)
        for tensor in loaded.values():
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
            tensor.zero_()
        path.unlink()
        assert not loaded["weight"].any()


def test_threads_and_levels_of_files(tmp_path: Path) -> None:
    tensors = {f"layer.{i}": weights(200, 100 + i) for i in range(20)}
    contents = {}
    for threads in (1, 2):
        for level in ("default", "max"):
            path = tmp_path / f"{threads}.{level}.safetensors"
            nt.save_file(tensors, path, level=level, threads=threads)
            contents[threads, level] = path.read_bytes()
            for key, tensor in nt.load_file(path, threads=threads).items():
                assert_same(tensor, tensors[key])
    assert contents[1, "default"] == contents[2, "default"] != contents[1, "max"] == contents[2, "max"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    nt.save_file({"a": torch.ones(3)}, path)
    before = path.read_bytes()
    with pytest.raises(InvalidArgument):
        nt.save_file({"a": torch.ones(3, 2).t()}, path)
    assert path.read_bytes() == before
    nt.save_file({"a": torch.zeros(3)}, path)
    assert_same(nt.load_file(path)["a"], torch.zeros(3))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode


def test_unwritable_destinations(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "a.safetensors", tmp_path):
        with pytest.raises((StorageError, InvalidArgument)):
            nt.save_file({"a": torch.ones(3)}, path)


SHARED = torch.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ([torch.zeros(1)], None),
        ({"a": np.zeros(1)}, None),
        ({"a": None}, None),
        ({1: torch.zeros(1)}, None),
        ({"a": torch.zeros(2, 3).t()}, None),
        ({"a": torch.zeros(3).to_sparse()}, None),
        ({"a": SHARED, "b": SHARED}, None),
        ({"a": SHARED, "b": SHARED[1:]}, None),
        ({"a": SHARED[:2], "b": SHARED[1:]}, None),
        ({"a": SHARED, "b": SHARED.detach().view(torch.int32)}, None),
        ({"a": torch.zeros(1)}, {"a": 1}),
        ({"a": torch.zeros(1)}, {1: "a"}),
    ],
)
def test_what_safetensors_refuses_is_refused_with_the_same_error(tensors: object, metadata: object) -> None:
    with pytest.raises(Exception) as theirs:
        safetensors.torch.save(tensors, metadata)
    with pytest.raises(theirs.type):
        nt.save(tensors, metadata)


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.zeros(1, dtype=torch.complex128)},
        {"a": torch.empty(1, device="meta")},
        {"__metadata__": torch.zeros(1)},
    ],
)
def test_what_safetensors_cannot_hold(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(InvalidArgument):
        nt.save(tensors)


def test_reserved_metadata_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="reserved"):
        nt.save({"a": torch.zeros(1)}, {"neuzip.version": "1"})


def test_neighbours_in_one_storage_are_saved() -> None:
    tensors = {"a": SHARED[:1], "b": SHARED[1:], "empty": SHARED[1:1]}
    loaded = nt.load(nt.save(tensors))
    for key, tensor in tensors.items():
        assert_same(loaded[key], tensor)


def test_loading_refuses_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.safetensors"):
        nt.load_file(tmp_path / "missing.safetensors")
    content = nt.save({"a": weights(100, 100)})
    for bad in (b"", b"abc", content[:-1], content + b"\0", bytes(20)):
        with pytest.raises((CorruptFrame, TruncatedInput)):
            nt.load(bad)


def test_an_error_names_file_and_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.nz.safetensors"
    content = bytearray(nt.save({"good": weights(100, 101), "spoilt": weights(100, 100)}))
    content[-1000] ^= 64
    path.write_bytes(content)
    with pytest.raises(CorruptFrame) as caught:
        nt.load_file(path)
    assert (caught.value.file, caught.value.tensor) == (str(path), "spoilt")


def test_devices(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    nt.save_file({"a": weights(10, 10)}, path)
    assert nt.load_file(path, device="meta")["a"].is_meta
    assert nt.load_file(path, torch.device("cpu"))["a"].device.type == "cpu"
    with pytest.raises(InvalidArgument, match="device"):
        nt.load_file(path, device="typewriter")


# Of ru_maxrss a process inherits what its parent had.
PEAK = """
import sys, torch, neuzip.torch

def peak():
    status = open("/proc/self/status").read()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10
"""

SAVING = """
tensors = {str(i): torch.empty(1 << 24, dtype=torch.bfloat16).uniform_() for i in range(12)}
before = peak()
neuzip.torch.save_file(tensors, sys.argv[1])
print(peak() - before)
"""

LOADING = """
before = peak()
for path in sys.argv[1:]:
    state = neuzip.torch.load_file(path)
    del state
print(peak() - before)
"""


def growth(script: str, *arguments: object) -> int:
    command = [sys.executable, "-c", PEAK + script, *map(str, arguments)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_saving_holds_no_second_copy(tmp_path: Path) -> None:
    assert growth(SAVING, tmp_path / "large.safetensors") < 12 * (2 << 24) * 0.6


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_loading_what_torch_saved_holds_no_second_copy(tmp_path: Path) -> None:
    path = tmp_path / "large.pt"
    torch.save({str(i): torch.rand(1 << 20).bfloat16().repeat(96) for i in range(2)}, path)
    assert growth(LOADING, path, neuzip.compress_file(path).destination) < 2 * 96 * (2 << 20) * 1.4
