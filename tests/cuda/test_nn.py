"""Models on the device: what they compute, train and save is what they do on the CPU, to the bit."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from standin import bits
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


def train(made: nn.Module, optimizer: torch.optim.Optimizer, device: str, steps: int = 2) -> list[bytes]:
    for step in range(steps):
        loss = made((IDS + step).clamp(max=299).to(device)).float().pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [bits(dense(parameter)) for parameter in made.parameters()]


def dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.dense() if isinstance(tensor, CompressedTensor) else tensor


def everything_there(made: nn.Module, device: str) -> bool:
    return all(parameter.device == torch.device(device) for parameter in made.parameters())


@pytest.mark.parametrize("piece_bytes", [1 << 28, 2048])
def test_forward_and_backward(piece_bytes: int, standin: StandIn) -> None:
    plain = model()
    packed = compress_model(model(), piece_bytes=piece_bytes).to("standin:1")
    assert everything_there(packed, "standin:1")
    outputs = plain(IDS), packed(IDS.to("standin:1"))
    for output in outputs:
        output.float().pow(2).sum().backward()
    if piece_bytes > 1 << 20:
        assert bits(outputs[0]) == bits(outputs[1])
        for one, other in zip(plain.parameters(), packed.parameters(), strict=True):
            assert other.grad.device.index == 1 and bits(one.grad) == bits(other.grad)
    else:  # sums over pieces are rounded otherwise, as on the CPU
        assert torch.allclose(outputs[0], outputs[1].cpu())
    neuzip.cuda.check()


def test_nothing_waits_and_nothing_is_left(standin: StandIn) -> None:
    """Once headers are known, neither forward nor backward waits for the device."""
    packed = compress_model(model()).to("standin")
    ids = IDS.to("standin")
    packed(ids).float().sum().backward()
    neuzip.cuda.check()
    standin.waits = 0
    before = reached(standin)
    packed(ids).float().sum().backward()
    assert standin.waits == 0 and reached(standin) == before
    neuzip.cuda.check()


def reached(standin: StandIn) -> int:
    """How often something was copied to the host by waiting for it."""
    return int(standin.library.standin_reads())


def test_ordinary_and_fused_optimizers(standin: StandIn) -> None:
    plain = model()
    expected = train(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2), "cpu")
    ordinary = compress_model(model()).to("standin")
    assert train(ordinary, torch.optim.AdamW(ordinary.parameters(), lr=1e-2), "standin") == expected
    ours = compress_model(model()).to("standin:1")
    optimizer = fused(ours, torch.optim.AdamW, lr=1e-2)
    assert train(ours, optimizer, "standin:1") == expected
    states = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert all(value.device == torch.device("standin", 1) for value in states)
    assert any(isinstance(value, CompressedTensor) for value in states)
    assert {launch.index for launch in standin.launches} == {0, 1}


def test_fused_in_pieces(standin: StandIn) -> None:
    """Of a weight of two pieces: the bits of the ordinary optimizer on that device."""
    weight = torch.randn(300, 256, generator=torch.Generator().manual_seed(1)) * 0.1
    values = []
    for packed in (False, True):
        layer = nn.Linear(256, 300, bias=False)
        with torch.no_grad():
            layer.weight.copy_(weight)
        layer = (compress_model(layer) if packed else layer).to("standin")
        choose = partial(fused, layer, piece_bytes=1) if packed else partial(call, layer.parameters())
        optimizer = choose(torch.optim.AdamW, lr=0.1)
        for _ in range(2):
            layer(weight[:4].to("standin")).pow(2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        values.append(bits(dense(layer.weight)))
        neuzip.cuda.check()
    assert values[0] == values[1]
    encoded = [launch for launch in standin.launches if launch.kernel.startswith("nz_encode")]
    assert len(encoded) == 2 * 3 * 2, "two steps of three tensors in two pieces"


def call(parameters: Any, optimizer: type[torch.optim.Optimizer], **options: Any) -> torch.optim.Optimizer:
    return optimizer(parameters, **options)


def test_copies(standin: StandIn) -> None:
    packed = compress_model(model()).to("standin")
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


def test_loading_and_saving(standin: StandIn, tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    neuzip.torch.save_file(model(seed=3).state_dict(), path)
    with torch.device("meta"):
        empty = model_of_shape()
    loaded = load_model(empty, path, device="standin:1")
    assert everything_there(loaded, "standin:1")
    assert bits(loaded(IDS.to("standin:1"))) == bits(model(seed=3)(IDS))
    again = tmp_path / "again.safetensors"
    neuzip.torch.save_file(loaded.state_dict(), again)
    assert again.read_bytes() == path.read_bytes()


def model_of_shape() -> nn.Sequential:
    return nn.Sequential(nn.Embedding(300, 64), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 300))


def test_lossy(standin: StandIn) -> None:
    packed = compress_model_lossy(model(), mantissa_bits=3, block_size=100)
    expected = bits(packed(IDS).detach())
    packed = packed.to("standin")
    assert bits(packed(IDS.to("standin"))) == expected


def test_fixed_width(standin: StandIn) -> None:
    """Codes of a fixed width are the CPU's; a device, or what is offloaded from one, has frames."""
    packed = compress_model_fixed_width(model())
    expected = bits(packed(IDS).detach())
    there = copy.deepcopy(packed).to("standin")
    assert bits(there(IDS.to("standin"))) == expected
    assert bits(offload_model(packed, "standin")(IDS.to("standin"))) == expected


def test_embedding_of_many_chunks(standin: StandIn) -> None:
    """Only the chunks that the rows asked for lie in are decoded, and the host never learns which."""
    table = torch.randn(5000, 100, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    layer = compress_model(nn.Embedding.from_pretrained(table, freeze=False)).to("standin")
    ids = torch.tensor([4999, 0, 655, 656, 655])  # a row that lies in two chunks, and the last of all
    layer(ids.to("standin"))
    standin.launches.clear()
    assert bits(layer(ids[:3].to("standin"))) == bits(table[ids[:3]])
    assert len(layer.weight.weight.frame.__dict__["_neuzip_placed"].verified) == 8
    neuzip.cuda.check()
    with pytest.raises(RuntimeError):  # torch's own assertion, on a GPU raised by whoever waits next
        layer(torch.tensor([5000], device="standin"))


def test_damage_in_a_layer_is_told_by_name(standin: StandIn) -> None:
    packed = compress_model(model())
    frame = packed[3].weight.weight.frame
    frame[frame.numel() // 2] ^= 16
    packed = packed.to("standin")
    packed(IDS.to("standin"))
    with pytest.raises(CorruptFrame) as raised:
        neuzip.cuda.check()
    assert raised.value.tensor == "3.weight" and raised.value.chunk == 0


def test_damage_is_told_by_name_on_the_cpu_too() -> None:
    packed = compress_model(model())
    frame = packed[3].weight.weight.frame
    frame[frame.numel() // 2] ^= 16
    with pytest.raises(CorruptFrame) as raised:
        packed(IDS)
    assert raised.value.tensor == "3.weight"


def test_offloaded(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes stay in host memory and come over a stream of their own, the next layer's ahead of it."""
    packed = offload_model(compress_model(model()), "standin:1")
    assert everything_there(packed, "standin:1")
    held = [p.weight for p in packed.parameters() if isinstance(p, CompressedTensor)]
    assert all(weight.frame.is_pinned() for weight in held)
    ids = IDS.to("standin:1")
    for _ in range(3):
        output = packed(ids)
        output.float().pow(2).mean().backward()
    assert bits(output) == bits(model()(IDS))
    assert {stream for _, stream in standin.kept} == {0}, "used on the current stream"
    sent: list[torch.Tensor] = []
    send = prefetch.Prefetcher._send
    monkeypatch.setattr(
        prefetch.Prefetcher, "_send", lambda self, host: sent.append(host) or send(self, host)
    )
    standin.kept.clear()
    standin.waits, before = 0, reached(standin)
    packed(ids).float().pow(2).mean().backward()
    assert standin.waits == 0 and reached(standin) == before
    # Embedding, two layers, and the way back: each is there when it is asked for, and the next one on its way.
    assert len(standin.kept) == 5 and len(sent) == 5
    assert all(launch.stream == 0 for launch in standin.launches)
    packed.zero_grad()
    expected = model()
    assert train(packed, fused(packed, torch.optim.AdamW), "standin:1") == train(
        expected, torch.optim.AdamW(expected.parameters()), "cpu"
    )
    assert all(weight.frame.is_pinned() for weight in held)
    twin = copy.deepcopy(packed)
    assert twin[1].weight.weight.frame.is_pinned() and twin[1].weight.device.index == 1
    back = packed.to("standin:0")
    assert everything_there(back, "standin:0") and back[1].weight.weight.target is None
    with pytest.raises(neuzip.InvalidArgument):
        offload_model(packed, "cpu")


def test_offloaded_lossy(standin: StandIn) -> None:
    packed = compress_model_lossy(model(), mantissa_bits=2)
    expected = bits(packed(IDS).detach())
    assert bits(offload_model(packed, "standin")(IDS.to("standin"))) == expected
    assert bits(packed(IDS.to("standin"))) == expected


def test_fused_product(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows are multiplied while the matrix is decoded, once its checksums have been compared."""
    monkeypatch.setattr(matvec, "FUSED_ROWS", ((0, 0), (4000, 8)))
    for dtype in (torch.bfloat16, torch.float16):
        layer = nn.Linear(96, 300, dtype=dtype)
        with torch.no_grad():
            layer.weight.copy_(model(1)[3].weight)
        exact = layer.weight.detach().double()
        packed = rechunk_model(compress_model(layer), chunk_log2=10).to("standin")
        assert packed.weight.weight.chunk_log2 == 10 and bits(dense(packed.weight)) == bits(exact.to(dtype))
        for batch in ((1, 1), (8,), (2, 4), (9,)):
            x = torch.randn(*batch, 96, generator=torch.Generator().manual_seed(3)).to(dtype)
            expected = x.double() @ exact.t() + packed.bias.detach().cpu().double()
            packed(x.to("standin"))  # compares checksums
            standin.launches.clear()
            found = packed(x.to("standin"))
            names = {launch.kernel for launch in standin.launches}
            assert any("matvec" in name for name in names) == (x.numel() <= 8 * 96), names
            assert found.shape == expected.shape and found.dtype == dtype
            assert torch.allclose(found.cpu().double(), expected, rtol=2e-2, atol=2e-2)
        neuzip.cuda.check()


def test_fused_product_of_a_damaged_matrix(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matvec, "FUSED_ROWS", ((0, 8),))
    packed = rechunk_model(compress_model(model()), chunk_log2=10).to("standin")
    x = torch.randn(96).to(torch.bfloat16).to("standin")
    packed[3](x)
    neuzip.cuda.check()
    frame = packed[3].weight.weight.frame
    held = frame.__dict__["_neuzip_placed"]
    changed = frame.cpu()
    changed[held.header.offsets[2] : held.header.offsets[2] + 8] ^= 0xFF
    frame.data.copy_(changed)
    assert packed[3](x).isnan().any()
    with pytest.raises(CorruptFrame) as raised:
        neuzip.cuda.check()
    assert raised.value.tensor == "3.weight" and raised.value.chunk == 2


def test_layers_on_two_devices(standin: StandIn) -> None:
    """As a device map spreads them: each layer's work is done where the layer is, whatever device is current."""
    packed = compress_model(model())
    for number, layer in enumerate(packed):
        layer.to(f"standin:{number % 2}")
    with torch.accelerator.device_index(1):
        x = IDS
        for number, layer in enumerate(packed):
            x = layer(x.to(f"standin:{number % 2}"))
    x.float().pow(2).sum().backward()
    expected = model()
    output = expected(IDS)
    output.float().pow(2).sum().backward()
    assert bits(x) == bits(output)
    for one, other in zip(expected.parameters(), packed.parameters(), strict=True):
        assert bits(one.grad) == bits(other.grad)
    assert {launch.index for launch in standin.launches} == {0, 1}


def test_streams(standin: StandIn) -> None:
    """Kernels go to the stream that is torch's current one."""
    packed = compress_model(model()).to("standin")
    ids = IDS.to("standin")
    packed(ids)
    standin.launches.clear()
    stream = torch.Stream(torch.device("standin", 0))
    with stream:
        packed(ids)
    assert {launch.stream for launch in standin.launches} == {stream.stream_id}


def test_untrusted_devices_are_served_by_the_cpu(standin: StandIn) -> None:
    from neuzip.cuda import trust

    trust._verdicts[(standin, 0)] = trust.Verdict(False, "other bytes")
    with pytest.warns(RuntimeWarning, match="other bytes"):
        packed = compress_model(model()).to("standin")
        assert bits(packed(IDS.to("standin"))) == bits(model()(IDS))
        optimizer = fused(packed, torch.optim.AdamW)
        expected = model()
        assert train(packed, optimizer, "standin") == train(
            expected, torch.optim.AdamW(expected.parameters()), "cpu"
        )
        offloaded = offload_model(compress_model(model()), "standin")
        assert bits(offloaded(IDS.to("standin"))) == bits(model()(IDS))
    assert not standin.launches
