"""What only a GPU can show: real sizes, real streams, torch's own kernels and libraries around ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hardware import Gpus
from standin import bits, dense
from torch import nn

import neuzip.cuda
import neuzip.torch as neuzip_torch
from neuzip import checkpoint
from neuzip.codec import Options
from neuzip.cuda.decoding import decode, whole
from neuzip.cuda.encoding import encode_many
from neuzip.cuda.placed import placed
from neuzip.nn import compress_model
from neuzip.optim import fused
from neuzip.torch import dtype_of


def weights(gpu: Gpus, *shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator(gpu.at(0)).manual_seed(seed)
    made = torch.empty(*shape, dtype=dtype, device=gpu.at(0))
    return made.normal_(0, 0.02, generator=generator)


@pytest.mark.parametrize("level", ["default", "max"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_frames_of_millions(level: str, dtype: torch.dtype, gpu: Gpus) -> None:
    """Both coders, each on the other's frames; with a tail, and with NaNs, zeros and noise among the weights."""
    tensor = weights(gpu, 5_000_011, dtype=dtype)
    words = tensor.view(torch.uint8)
    words[1 << 20 : 1 << 21].random_(0, 256)
    words[3 << 20 : 3 << 21] = 0
    frame = neuzip_torch.compress(tensor, level)
    assert frame == neuzip_torch.compress(tensor.cpu(), level)
    assert bits(neuzip_torch.decompress(frame, device=gpu.at(0))) == bits(tensor)
    assert bits(neuzip_torch.decompress(frame)) == bits(tensor)


def test_more_than_four_gigabytes(gpu: Gpus) -> None:
    """Offsets beyond 32 bits, of bytes and of units: what comes back is compared on the device."""
    tensor = weights(gpu, (1 << 32) + 12_345)
    [frame] = encode_many([(tensor, dtype_of(tensor.dtype), tensor.shape)], Options())
    assert 0.6 < frame.numel() / tensor.nbytes < 0.7 and frame.numel() > 1 << 32
    out = torch.empty_like(tensor)
    decode([whole(frame, placed(frame), out)]).check()
    assert torch.equal(out.view(torch.int16), tensor.view(torch.int16))
    first = (1 << 32) - 70_000
    header = placed(frame).header
    chunk = first // (1 << header.chunk_log2)
    there = frame[header.offsets[chunk] : header.offsets[chunk + 1]]
    assert there.any(), "the chunk around unit 2^32"


def test_streams_at_once(gpu: Gpus) -> None:
    """Decodes on several streams, each behind products that keep the GPU busy, and torch reusing their memory."""
    tensors = [weights(gpu, 700_001 + 64 * n, seed=n) for n in range(6)]
    items = [(tensor, dtype_of(tensor.dtype), tensor.shape) for tensor in tensors]
    frames = encode_many(items, Options(chunk_log2=12))
    load = weights(gpu, 4096, 4096)
    streams = [torch.cuda.Stream() for _ in tensors]
    torch.cuda.synchronize()
    pending, sums = [], []
    for turn in range(20):
        for number, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                if turn % 3 == 0:
                    load @ load
                frame, tensor = frames[number], tensors[number]
                out = torch.empty_like(tensor)
                pending.append(decode([whole(frame, placed(frame), out)]))
                sums.append((out.view(torch.int16) != tensor.view(torch.int16)).sum())
                del out  # the stream's next one may have its memory
    torch.cuda.synchronize()
    for each in pending:
        each.check()
    assert not any(int(each) for each in sums)


def test_a_file_of_real_size(gpu: Gpus, tmp_path: Path) -> None:
    """Compressed by the CPU and loaded there; saved from there, it is the CPU's file to the byte."""
    tensors = {f"model.layers.{n}.weight": weights(gpu, 2048, 5632, seed=n) for n in range(8)}
    tensors["model.embed.weight"] = weights(gpu, 32_000, 1024, dtype=torch.float16)
    tensors["steps"] = torch.arange(1000, device=gpu.at(0))
    host = {name: tensor.cpu() for name, tensor in tensors.items()}
    for level in ("default", "max"):
        expected, saved = tmp_path / "expected.safetensors", tmp_path / "saved.safetensors"
        neuzip_torch.save_file(host, expected, level=level)
        neuzip_torch.save_file(tensors, saved, level=level)
        assert saved.read_bytes() == expected.read_bytes()
        loaded = neuzip_torch.load_file(expected, device=str(gpu.at(0)))
        assert all(bits(loaded[name]) == bits(tensor) for name, tensor in host.items())
    checkpoint.verify_file(saved)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def blocks(dtype: torch.dtype, width: int = 512, count: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(1000, width), *(Block(width) for _ in range(count))).to(dtype)


def train(
    made: nn.Module, optimizer: torch.optim.Optimizer, ids: torch.Tensor, autocast: bool
) -> list[float]:
    losses = []
    scaler = torch.amp.GradScaler("cuda", enabled=autocast)
    for _ in range(4):
        with torch.autocast("cuda", torch.float16, enabled=autocast):
            loss = made(ids).float().pow(2).mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def weight_bits(made: nn.Module) -> list[bytes]:
    return [bits(dense(parameter)) for parameter in made.parameters()]


@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("in_backward", [True, False])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_training(
    kind: type[torch.optim.Optimizer],
    in_backward: bool,
    dtype: torch.dtype,
    foreach: bool | None,
    gpu: Gpus,
) -> None:
    """A model of millions: every loss and every weight is that of plain training with torch's kernels."""
    ids = torch.randint(0, 1000, (8, 64), generator=torch.Generator().manual_seed(1)).to(gpu.at(0))
    plain, packed = blocks(dtype).to(gpu.at(0)), compress_model(blocks(dtype)).to(gpu.at(0))
    expected = train(plain, kind(plain.parameters(), lr=1e-2, foreach=foreach), ids, autocast=False)
    optimizer = fused(packed, kind, lr=1e-2, foreach=foreach, in_backward=in_backward)
    found = train(packed, optimizer, ids, autocast=False)
    assert found == expected and weight_bits(packed) == weight_bits(plain)
    neuzip.cuda.check()


def test_autocast_and_scaling(gpu: Gpus) -> None:
    ids = torch.randint(0, 1000, (8, 64), generator=torch.Generator().manual_seed(1)).to(gpu.at(0))
    plain = blocks(torch.float32).to(gpu.at(0))
    packed = compress_model(blocks(torch.float32)).to(gpu.at(0))
    expected = train(plain, torch.optim.AdamW(plain.parameters(), lr=1e-3, foreach=False), ids, autocast=True)
    found = train(packed, torch.optim.AdamW(packed.parameters(), lr=1e-3, foreach=False), ids, autocast=True)
    assert found == expected and weight_bits(packed) == weight_bits(plain)


def test_memory(gpu: Gpus) -> None:
    """After forward there is no dense weight, and during it one at a time."""
    before = torch.cuda.memory_allocated()
    packed = compress_model(blocks(torch.bfloat16, 2048, 6)).to(gpu.at(0))
    dense = sum(parameter.numel() * 2 for parameter in packed.parameters())
    ids = torch.zeros(1, 4, dtype=torch.int64, device=gpu.at(0))
    with torch.no_grad():
        packed(ids)
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        packed(ids)
    assert held - before < 0.7 * dense
    assert torch.cuda.max_memory_allocated() - held < 1.3 * 2048 * 8192 * 2
    assert torch.cuda.memory_allocated() - held < 1 << 20


def test_compiled(gpu: Gpus) -> None:
    packed, plain = (
        made.to(gpu.at(0)) for made in (compress_model(blocks(torch.bfloat16)), blocks(torch.bfloat16))
    )
    ids = torch.randint(0, 1000, (2, 8), generator=torch.Generator().manual_seed(1)).to(gpu.at(0))
    with torch.no_grad():
        found, expected = torch.compile(packed)(ids), torch.compile(plain)(ids)
    assert torch.allclose(found.float(), expected.float(), rtol=2**-5, atol=2**-5)


def test_generation(gpu: Gpus) -> None:
    pytest.importorskip("transformers")
    from tiny_llama import tiny_llama

    plain, packed = tiny_llama(256, 704), compress_model(tiny_llama(256, 704))
    packed.load_state_dict(plain.state_dict())
    ids = torch.tensor([[1, 5, 9, 300]], device=gpu.at(0))
    found, expected = (
        made.to(gpu.at(0)).generate(
            ids, max_new_tokens=20, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        for made in (packed, plain)
    )
    assert found.sequences.tolist() == expected.sequences.tolist()
    assert all(bits(a) == bits(b) for a, b in zip(found.logits, expected.logits, strict=True))


def test_the_self_test(gpu: Gpus) -> None:
    """In a process of its own, as on first use."""
    command = [sys.executable, "-m", "neuzip.cuda.self_test", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and '"trusted": true' in done.stdout, done.stdout + done.stderr[-2000:]


def test_every_bit_pattern(gpu: Gpus) -> None:
    """All 65,536 of a bf16, in frames of both levels."""
    words = np.arange(1 << 16, dtype=np.uint16)
    tensor = torch.from_numpy(words.view(np.int16)).view(torch.bfloat16)
    many = torch.cat([tensor, weights(gpu, 1 << 18).cpu()])
    for level in ("default", "max"):
        frame = neuzip_torch.compress(many.to(gpu.at(0)), level)
        assert frame == neuzip_torch.compress(many, level)
        assert bits(neuzip_torch.decompress(frame, device=gpu.at(0))) == bits(many)
