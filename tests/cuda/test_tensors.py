"""Tensors to and from frames on the device itself: the CPU's bytes, both ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hardware import Gpus
from standin import bits

import neuzip.torch as neuzip_torch
from neuzip import CorruptFrame, InvalidArgument, container, container_writer
from neuzip.codec import Coding, EncodeRun, Options
from neuzip.cuda import encoding, packing
from neuzip.cuda.encoding import DeviceEncoder, encode_many
from neuzip.piecewise import PiecewiseEncoder
from neuzip.torch import dtype_of, memory

CHUNK = 1 << 10


def weights(count: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, generator=generator) * 0.02).to(dtype)


def noise(count: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Every bit pattern, NaNs with payloads and both zeros among them."""
    data = np.random.default_rng(seed).integers(0, 256, count * dtype.itemsize, np.uint8)
    return torch.from_numpy(data).view(dtype)


CASES: dict[str, Callable[[], torch.Tensor]] = {
    "bf16": lambda: weights(70_007, torch.bfloat16).view(7, -1),
    "fp16": lambda: weights(5000, torch.float16),
    "fp32": lambda: weights(3001, torch.float32),
    "fp64": lambda: weights(2000, torch.float64),
    "fp8": lambda: weights(4000, torch.float8_e4m3fn),
    "complex": lambda: torch.complex(weights(1500, torch.float32), weights(1500, torch.float32, 1)),
    "noise": lambda: noise(3000, torch.bfloat16),
    "tiny": lambda: weights(3, torch.bfloat16),
    "empty": lambda: torch.empty(0, 5, dtype=torch.float16),
    "scalar": lambda: torch.tensor(-0.0),
    "int64": lambda: torch.arange(3000),
    "bool": lambda: torch.arange(3000) % 3 == 0,
}


@pytest.mark.parametrize("level", ["default", "max"])
@pytest.mark.parametrize("case", CASES)
def test_a_tensor_of_the_device(case: str, level: str, gpu: Gpus) -> None:
    tensor = CASES[case]()
    there = tensor.to(gpu.at(1))
    frame = neuzip_torch.compress(there, level)
    assert frame == neuzip_torch.compress(tensor, level)
    back = neuzip_torch.decompress(frame, device=gpu.at(1))
    assert back.device == there.device and back.shape == tensor.shape and back.dtype == tensor.dtype
    assert bits(back) == bits(tensor)
    held = torch.frombuffer(bytearray(frame), dtype=torch.uint8).to(gpu.at(1))
    out = torch.empty_like(there)
    assert neuzip_torch.decompress(held, out) is out and bits(out) == bits(tensor)
    if case in ("bf16", "fp16", "fp32", "fp64", "fp8", "complex", "noise"):
        names = {launch.kernel.rsplit("_w", 1)[0] for launch in gpu.launches}
        assert names == {
            "nz_sample",
            "nz_checksum",
            "nz_encode",
            "nz_place",
            "nz_compact",
            "nz_decode",
            "nz_verify",
        }
    assert {launch.index for launch in gpu.launches} <= {gpu.at(1).index}


def test_views_are_encoded_as_they_are(gpu: Gpus) -> None:
    tensor = weights(6000, torch.bfloat16).view(60, 100)
    there = tensor.to(gpu.at(0))
    for view in (lambda t: t.t(), lambda t: t[3:40], lambda t: t[:, ::2], lambda t: t.view(-1)[1:4001]):
        assert neuzip_torch.compress(view(there)) == neuzip_torch.compress(view(tensor))


def test_many_tensors_in_batches(gpu: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several widths, in slots for a few chunks only, so that a tensor is encoded in several goes."""
    options = Options(chunk_log2=10, level="max")
    monkeypatch.setattr(packing, "SLOT_BYTES", 3 * packing.slot_bytes(2, 10))
    tensors = [
        weights(count, dtype, count) for count in (5000, 1500) for dtype in (torch.bfloat16, torch.float32)
    ]
    tensors.append(torch.arange(700))
    items = [(each, dtype_of(each.dtype), each.shape) for each in tensors]
    expected = [
        neuzip_torch.frames.encode(memory(each), dtype, shape, options) for each, dtype, shape in items
    ]
    found = encode_many([(each.to(gpu.at(0)), dtype, shape) for each, dtype, shape in items], options)
    assert [bits(frame) for frame in found] == expected
    assert sum(launch.kernel.startswith("nz_encode") for launch in gpu.launches) > 4


def test_pieces(gpu: Gpus) -> None:
    tensor = torch.cat(
        [weights(3 * CHUNK, torch.bfloat16), noise(2 * CHUNK, torch.bfloat16), weights(77, torch.bfloat16)]
    )
    dtype, options = dtype_of(tensor.dtype), Options(chunk_log2=10)
    ours = DeviceEncoder(dtype, tensor.shape, options, gpu.at(0))
    theirs = PiecewiseEncoder(dtype, tensor.shape, options)
    for piece in tensor.split(2 * CHUNK):
        ours.add(piece.to(gpu.at(0)))
        theirs.add(memory(piece))
    assert bits(ours.finish()) == theirs.finish().tobytes()


def test_no_pieces(gpu: Gpus) -> None:
    ours = DeviceEncoder(dtype_of(torch.float32), (0,), Options(), gpu.at(1))
    frame = ours.finish()
    assert frame.device == gpu.at(1)
    assert bits(frame) == PiecewiseEncoder(dtype_of(torch.float32), (0,), Options()).finish().tobytes()


def test_strided_tensors_are_not_taken(gpu: Gpus) -> None:
    tensor = weights(64, torch.bfloat16).view(8, 8).t().to(gpu.at(0)).t()
    with pytest.raises(InvalidArgument, match="contiguous"):
        encode_many([(tensor.t(), dtype_of(tensor.dtype), tensor.shape)], Options())


def only_without_planes(encode_runs: Callable[..., None]) -> Callable[..., None]:
    """The CPU's encoder, which must not be asked for what the device encodes."""

    def checked(runs: Sequence[EncodeRun], *arguments: Any) -> None:
        assert all(run.plan.coding is not Coding.PLANES for run in runs)
        encode_runs(runs, *arguments)

    return checked


@pytest.mark.parametrize("level", ["default", "max"])
def test_a_file(level: str, gpu: Gpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoded by the device, and byte for byte the one that the CPU writes, tensors of several batches included."""
    for module in (container, container_writer, encoding):
        monkeypatch.setattr(module, "BATCH_BYTES", 1 << 16)
    for module in (container_writer, encoding):
        monkeypatch.setattr(module, "PLAN_BYTES", 1 << 20)
    tensors = {name: make() for name, make in CASES.items() if name != "complex"}
    tensors["large"] = torch.cat([weights(1 << 19, torch.bfloat16), noise(1 << 19, torch.bfloat16)])
    expected, path = tmp_path / "expected.safetensors", tmp_path / "model.safetensors"
    neuzip_torch.save_file(tensors, expected, level=level)
    there = {name: each.to(gpu.at(0)) for name, each in tensors.items()}
    with monkeypatch.context() as patched:
        patched.setattr(
            neuzip_torch.frames, "encode_runs", only_without_planes(neuzip_torch.frames.encode_runs)
        )
        neuzip_torch.save_file(there, path, level=level)
    assert path.read_bytes() == expected.read_bytes()
    loaded = neuzip_torch.load_file(path, device=gpu.at(1))
    for name, tensor in tensors.items():
        assert loaded[name].device == gpu.at(1) and bits(loaded[name]) == bits(tensor)


def damaged(frame: bytes, at: int) -> bytes:
    changed = bytearray(frame)
    changed[at] ^= 0x40
    return bytes(changed)


def test_damage_is_told_with_tensor_and_chunk(gpu: Gpus, tmp_path: Path) -> None:
    tensors = {"good": weights(1000, torch.float32), "layer.7.weight": weights(200_000, torch.bfloat16)}
    path = tmp_path / "model.safetensors"
    neuzip_torch.save_file(tensors, path)
    frame = neuzip_torch.compress(tensors["layer.7.weight"])
    header = neuzip_torch.frames.read_header(frame)
    data = path.read_bytes()
    at = data.index(frame[:4096])
    middle = (header.offsets[2] + header.offsets[3]) // 2
    path.write_bytes(data[:at] + damaged(frame, middle) + data[at + len(frame) :])
    with pytest.raises(CorruptFrame) as raised:
        neuzip_torch.load_file(path, device=gpu.at(0))
    assert raised.value.tensor == "layer.7.weight" and raised.value.chunk == 2
    assert str(path) in str(raised.value)


def test_damage_of_uncompressed_tensors_is_told(gpu: Gpus, tmp_path: Path) -> None:
    tensors = {
        "steps": torch.arange(40, dtype=torch.int64),
        "layer.7.weight": weights(20_000, torch.bfloat16),
    }
    path = tmp_path / "model.safetensors"
    neuzip_torch.save_file(tensors, path)
    data = path.read_bytes()
    path.write_bytes(damaged(data, data.index(bits(tensors["steps"])) + 9))
    with pytest.raises(CorruptFrame) as raised:
        neuzip_torch.load_file(path, device=gpu.at(0))
    assert raised.value.tensor == "steps" and str(path) in str(raised.value)


def test_every_kind_of_damage_is_flagged(gpu: Gpus) -> None:
    """The device refuses whatever the CPU refuses, and what it accepts has the CPU's bytes."""
    tensor = weights(2000, torch.bfloat16)
    frame = neuzip_torch.compress(tensor)
    header = neuzip_torch.frames.read_header(frame)
    places = range(header.offsets[0], header.offsets[-1], 97)
    refused = 0
    for at in places:
        bad = damaged(frame, at)
        try:
            expected = bits(neuzip_torch.decompress(bad))
        except CorruptFrame:
            with pytest.raises(CorruptFrame):
                neuzip_torch.decompress(bad, device=gpu.at(0))
            refused += 1
        else:
            assert bits(neuzip_torch.decompress(bad, device=gpu.at(0))) == expected
    assert refused == len(places)
