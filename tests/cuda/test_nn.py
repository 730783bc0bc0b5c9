"""Models on the device: what they compute, train and save is what plain ones do there, to the bit."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from hardware import Gpus
from standin import bits, dense
from standin.driver import StandIn
from torch import nn

import neuzip.cuda
import neuzip.torch
from neuzip import CorruptFrame
from neuzip.cuda import matvec, prefetch
from neuzip.nn import (
    CompressedTensor,
    compress_model,
    compress_model_fixed_width,
    compress_model_lossy,
    decompress_model,
    load_model,
    offload_model,
    rechunk_model,
)
from neuzip.optim import fused

IDS = torch.tensor([[1, 2, 299], [7, 7, 0]])


def model(seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    made = nn.Sequential(nn.Embedding(300, 64), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 300)).to(dtype)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made


def train(
    made: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, steps: int = 2
) -> list[bytes]:
    for step in range(steps):
        loss = made((IDS + step).clamp(max=299).to(device)).float().pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [bits(dense(parameter)) for parameter in made.parameters()]


def on(made: nn.Module, device: torch.device) -> bytes:
    """What a model that is moved to a device computes there."""
    return bits(made.to(device)(IDS.to(device)))


def everything_there(made: nn.Module, device: torch.device) -> bool:
    return all(parameter.device == device for parameter in made.parameters())


@pytest.mark.parametrize("piece_bytes", [1 << 28, 2048])
def test_forward_and_backward(piece_bytes: int, gpu: Gpus) -> None:
    plain = model().to(gpu.at(1))
    packed = compress_model(model(), piece_bytes=piece_bytes).to(gpu.at(1))
    assert everything_there(packed, gpu.at(1))
    outputs = [made(IDS.to(gpu.at(1))) for made in (plain, packed)]
    for output in outputs:
        output.float().pow(2).sum().backward()
    if piece_bytes > 1 << 20:
        assert bits(outputs[0]) == bits(outputs[1])
        for one, other in zip(plain.parameters(), packed.parameters(), strict=True):
            assert other.grad.device == gpu.at(1) and bits(one.grad) == bits(other.grad)
    else:  # sums over pieces are rounded otherwise, as on the CPU
        assert torch.allclose(*outputs, rtol=2**-6)
    neuzip.cuda.check()


def test_nothing_waits_and_nothing_is_left(gpu: Gpus) -> None:
    """Once headers are known, neither forward nor backward waits for the device."""
    packed = compress_model(model()).to(gpu.at(0))
    ids = IDS.to(gpu.at(0))
    packed(ids).float().sum().backward()
    neuzip.cuda.check()
    with gpu.no_waiting():
        packed(ids).float().sum().backward()
    neuzip.cuda.check()


def test_ordinary_and_fused_optimizers(gpu: Gpus) -> None:
    plain = model().to(gpu.at(0))
    expected = train(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2), gpu.at(0))
    ordinary = compress_model(model()).to(gpu.at(0))
    assert train(ordinary, torch.optim.AdamW(ordinary.parameters(), lr=1e-2), gpu.at(0)) == expected
    ours = compress_model(model()).to(gpu.at(1))
    optimizer = fused(ours, torch.optim.AdamW, lr=1e-2)
    assert train(ours, optimizer, gpu.at(1)) == expected
    states = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert all(value.device == gpu.at(1) for value in states)
    assert any(isinstance(value, CompressedTensor) for value in states)
    assert {launch.index for launch in gpu.launches} == {gpu.at(0).index, gpu.at(1).index}


def test_fused_in_pieces(gpu: Gpus) -> None:
    """Of a weight of two pieces: the bits of the ordinary optimizer on that device."""
    weight = torch.randn(300, 256, generator=torch.Generator().manual_seed(1)) * 0.1
    values = []
    for packed in (False, True):
        layer = nn.Linear(256, 300, bias=False)
        with torch.no_grad():
            layer.weight.copy_(weight)
        layer = (compress_model(layer) if packed else layer).to(gpu.at(0))
        choose = partial(fused, layer, piece_bytes=1) if packed else partial(call, layer.parameters())
        optimizer = choose(torch.optim.AdamW, lr=0.1)
        for _ in range(2):
            layer(weight[:4].to(gpu.at(0))).pow(2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        values.append(bits(dense(layer.weight)))
        neuzip.cuda.check()
    assert values[0] == values[1]
    encoded = [launch for launch in gpu.launches if launch.kernel.startswith("nz_encode")]
    assert len(encoded) == 2 * 3 * 2, "two steps of three tensors in two pieces"


def call(parameters: Any, optimizer: type[torch.optim.Optimizer], **options: Any) -> torch.optim.Optimizer:
    return optimizer(parameters, **options)


def test_copies(gpu: Gpus) -> None:
    packed = compress_model(model()).to(gpu.at(0))
    twin = copy.deepcopy(packed)
    with torch.no_grad():
        twin[1].weight.mul_(2)
    assert bits(dense(packed[1].weight)) == bits(model()[1].weight)
    assert bits(dense(twin[1].weight)) == bits(model()[1].weight * 2)
    there = packed.state_dict()["1.weight"]
    back = pickle.loads(pickle.dumps(there))
    assert isinstance(back, CompressedTensor) and back.device == there.device
    assert bits(dense(back)) == bits(dense(there))
    assert bits(packed[1].weight[3:5]) == bits(model()[1].weight[3:5])
    packed.load_state_dict(model(seed=5).state_dict())
    assert bits(dense(packed[3].weight)) == bits(model(seed=5)[3].weight)
    assert bits(decompress_model(packed)[3].weight) == bits(model(seed=5)[3].weight)


def test_loading_and_saving(gpu: Gpus, tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    neuzip.torch.save_file(model(seed=3).state_dict(), path)
    with torch.device("meta"):
        empty = model_of_shape()
    loaded = load_model(empty, path, device=gpu.at(1))
    assert everything_there(loaded, gpu.at(1))
    assert bits(loaded(IDS.to(gpu.at(1)))) == bits(model(seed=3).to(gpu.at(1))(IDS.to(gpu.at(1))))
    again = tmp_path / "again.safetensors"
    neuzip.torch.save_file(loaded.state_dict(), again)
    assert again.read_bytes() == path.read_bytes()


def model_of_shape() -> nn.Sequential:
    return nn.Sequential(nn.Embedding(300, 64), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 300))


def test_lossy(gpu: Gpus) -> None:
    packed = compress_model_lossy(model(), mantissa_bits=3, block_size=100)
    expected = on(decompress_model(copy.deepcopy(packed)), gpu.at(0))
    assert on(packed, gpu.at(0)) == expected


def test_fixed_width(gpu: Gpus) -> None:
    """Codes of a fixed width are the CPU's; a device, or what is offloaded from one, has frames."""
    packed = compress_model_fixed_width(model())
    expected = on(model(), gpu.at(0))
    assert on(copy.deepcopy(packed), gpu.at(0)) == expected
    assert bits(offload_model(packed, gpu.at(0))(IDS.to(gpu.at(0)))) == expected


def test_embedding_of_many_chunks(gpu: Gpus) -> None:
    """Only the chunks that the rows asked for lie in are decoded, and the host never learns which."""
    table = torch.randn(5000, 100, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    layer = compress_model(nn.Embedding.from_pretrained(table, freeze=False)).to(gpu.at(0))
    ids = torch.tensor([4999, 0, 655, 656, 655])  # a row that lies in two chunks, and the last of all
    layer(ids.to(gpu.at(0)))
    gpu.launches.clear()
    assert bits(layer(ids[:3].to(gpu.at(0)))) == bits(table[ids[:3]])
    assert len(layer.weight.weight.frame.__dict__["_neuzip_placed"].verified) == 8
    neuzip.cuda.check()


def test_an_embedding_asked_for_a_row_too_many(standin: StandIn) -> None:
    """torch's own assertion, which on a GPU is raised by whoever waits next, and ends the device's work for good."""
    layer = compress_model(nn.Embedding(5000, 100)).to(standin.at(0))
    with pytest.raises(RuntimeError):
        layer(torch.tensor([5000], device=standin.at(0)))


def test_damage_in_a_layer_is_told_by_name(gpu: Gpus) -> None:
    packed = compress_model(model())
    frame = packed[3].weight.weight.frame
    frame[frame.numel() // 2] ^= 16
    packed = packed.to(gpu.at(0))
    with pytest.raises(CorruptFrame) as raised:  # by the next layer, if the device is done already
        packed(IDS.to(gpu.at(0)))
        neuzip.cuda.check()
    assert raised.value.tensor == "3.weight" and raised.value.chunk == 0


def test_damage_is_told_by_name_on_the_cpu_too() -> None:
    packed = compress_model(model())
    frame = packed[3].weight.weight.frame
    frame[frame.numel() // 2] ^= 16
    with pytest.raises(CorruptFrame) as raised:
        packed(IDS)
    assert raised.value.tensor == "3.weight"


def test_offloaded(gpu: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes stay in host memory and come over a stream of their own, the next layer's ahead of it."""
    packed = offload_model(compress_model(model()), gpu.at(1))
    assert everything_there(packed, gpu.at(1))
    held = [p.weight for p in packed.parameters() if isinstance(p, CompressedTensor)]
    assert all(weight.frame.is_pinned() for weight in held)
    ids = IDS.to(gpu.at(1))
    for _ in range(3):
        output = packed(ids)
        output.float().pow(2).mean().backward()
    assert bits(output) == on(model(), gpu.at(1))
    assert {stream for _, stream in gpu.kept} == {0}, "used on the current stream"
    sent: list[torch.Tensor] = []
    send = prefetch.Prefetcher._send
    monkeypatch.setattr(
        prefetch.Prefetcher, "_send", lambda self, host: sent.append(host) or send(self, host)
    )
    gpu.kept.clear()
    with gpu.no_waiting():
        packed(ids).float().pow(2).mean().backward()
    # Embedding, two layers, and the way back: each is there when it is asked for, and the next one on its way.
    assert len(gpu.kept) == 5 and len(sent) == 5
    assert all(launch.stream == 0 for launch in gpu.launches)
    packed.zero_grad()
    expected = model().to(gpu.at(1))
    assert train(packed, fused(packed, torch.optim.AdamW), gpu.at(1)) == train(
        expected, torch.optim.AdamW(expected.parameters()), gpu.at(1)
    )
    assert all(weight.frame.is_pinned() for weight in held)
    twin = copy.deepcopy(packed)
    assert twin[1].weight.weight.frame.is_pinned() and twin[1].weight.device == gpu.at(1)
    if gpu.count() > 1:
        back = packed.to(gpu.at(0))
        assert everything_there(back, gpu.at(0)) and back[1].weight.weight.target is None
    with pytest.raises(neuzip.InvalidArgument):
        offload_model(packed, "cpu")


def test_offloaded_lossy(gpu: Gpus) -> None:
    packed = compress_model_lossy(model(), mantissa_bits=2)
    expected = on(decompress_model(copy.deepcopy(packed)), gpu.at(0))
    assert bits(offload_model(packed, gpu.at(0))(IDS.to(gpu.at(0)))) == expected
    assert bits(packed(IDS.to(gpu.at(0)))) == expected


def test_fused_product(gpu: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows are multiplied while the matrix is decoded, once its checksums have been compared."""
    monkeypatch.setattr(matvec, "FUSED_ROWS", ((0, 0), (4000, 8)))
    for dtype in (torch.bfloat16, torch.float16):
        layer = nn.Linear(96, 300, dtype=dtype)
        with torch.no_grad():
            layer.weight.copy_(model(1)[3].weight)
        exact = layer.weight.detach().double()
        packed = rechunk_model(compress_model(layer), chunk_log2=10).to(gpu.at(0))
        assert packed.weight.weight.chunk_log2 == 10 and bits(dense(packed.weight)) == bits(exact.to(dtype))
        for batch in ((1, 1), (8,), (2, 4), (9,)):
            x = torch.randn(*batch, 96, generator=torch.Generator().manual_seed(3)).to(dtype)
            expected = x.double() @ exact.t() + packed.bias.detach().cpu().double()
            packed(x.to(gpu.at(0)))  # compares checksums
            gpu.launches.clear()
            found = packed(x.to(gpu.at(0)))
            names = {launch.kernel for launch in gpu.launches}
            assert any("matvec" in name for name in names) == (x.numel() <= 8 * 96), names
            assert found.shape == expected.shape and found.dtype == dtype
            assert torch.allclose(found.cpu().double(), expected, rtol=2e-2, atol=2e-2)
        neuzip.cuda.check()


def test_fused_product_of_a_damaged_matrix(gpu: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matvec, "FUSED_ROWS", ((0, 8),))
    packed = rechunk_model(compress_model(model()), chunk_log2=10).to(gpu.at(0))
    x = torch.randn(96).to(torch.bfloat16).to(gpu.at(0))
    packed[3](x)
    neuzip.cuda.check()
    frame = packed[3].weight.weight.frame
    held = frame.__dict__["_neuzip_placed"]
    changed = frame.cpu()
    changed[held.header.offsets[2] : held.header.offsets[2] + 8] ^= 0xFF
    frame.data.copy_(changed)
    with pytest.raises(CorruptFrame) as raised:  # by the product itself, if the device is done already
        assert packed[3](x).isnan().any()
        neuzip.cuda.check()
    assert raised.value.tensor == "3.weight" and raised.value.chunk == 2


def test_layers_on_two_devices(gpu: Gpus) -> None:
    """As a device map spreads them: each layer's work is done where the layer is, whatever device is current."""
    expected, packed = model(), compress_model(model())
    outputs = []
    for made in (expected, packed):
        for number, layer in enumerate(made):
            layer.to(gpu.at(number % 2))
        with torch.accelerator.device_index(gpu.at(1).index):
            x = IDS
            for number, layer in enumerate(made):
                x = layer(x.to(gpu.at(number % 2)))
        x.float().pow(2).sum().backward()
        outputs.append(bits(x))
    assert outputs[0] == outputs[1]
    for one, other in zip(expected.parameters(), packed.parameters(), strict=True):
        assert bits(one.grad) == bits(other.grad)
    assert {launch.index for launch in gpu.launches} == {gpu.at(0).index, gpu.at(1).index}


def test_streams(gpu: Gpus) -> None:
    """Kernels go to the stream that is torch's current one."""
    packed = compress_model(model()).to(gpu.at(0))
    ids = IDS.to(gpu.at(0))
    packed(ids)
    gpu.launches.clear()
    torch.accelerator.synchronize()
    with torch.Stream(gpu.at(0)):
        handle = gpu.stream_handle(0)
        packed(ids)
    torch.accelerator.synchronize()
    assert {launch.stream for launch in gpu.launches} == {handle} != {gpu.stream_handle(0)}


def test_untrusted_devices_are_served_by_the_cpu(gpu: Gpus) -> None:
    from neuzip.cuda import trust

    trust._verdicts[(gpu, 0)] = trust.Verdict(False, "other bytes")
    with pytest.warns(RuntimeWarning, match="other bytes"):
        packed = compress_model(model()).to(gpu.at(0))
        expected = on(model(), gpu.at(0))
        assert bits(packed(IDS.to(gpu.at(0)))) == expected
        optimizer = fused(packed, torch.optim.AdamW)
        plain = model().to(gpu.at(0))
        assert train(packed, optimizer, gpu.at(0)) == train(
            plain, torch.optim.AdamW(plain.parameters()), gpu.at(0)
        )
        offloaded = offload_model(compress_model(model()), gpu.at(0))
        assert bits(offloaded(IDS.to(gpu.at(0)))) == expected
    assert not gpu.launches
