"""nvCOMP as the coder of exponents: how it is called, and what becomes of weights.

On the stand-in device there is one for nvCOMP too.
"""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hardware import WANTED, Gpus
from standin import bits, nvcomp
from standin.driver import StandIn
from torch import nn

import neuzip.torch
from neuzip import InvalidArgument
from neuzip.cuda import nvcomp as ours
from neuzip.nn import CompressedTensor, compress_model, offload_model
from neuzip.nn.nvcomp import NvcompTensor, NvcompWeight
from neuzip.optim import fused


@pytest.fixture
def coder(gpu: Gpus, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpus]:
    if not WANTED:
        monkeypatch.setitem(sys.modules, "nvidia", nvcomp.ModuleType("nvidia"))
        monkeypatch.setitem(sys.modules, "nvidia.nvcomp", nvcomp.module())
    monkeypatch.setattr(ours, "_codecs", {})
    monkeypatch.setattr(ours, "SEGMENT", 1 << 12)
    nvcomp.streams.clear()
    yield gpu


def weight(dtype: torch.dtype, shape: tuple[int, ...] = (150, 70)) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)


DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip(dtype: torch.dtype, coder: Gpus) -> None:
    dense = weight(dtype)
    held = NvcompWeight.of(dense.to(coder.at(1)))
    assert held.device == coder.at(1)
    assert bits(held.dense()) == bits(dense)
    for first, stop in ((0, 3), (58, 59), (149, 150), (20, 140)):
        rows = torch.empty(stop - first, 70, dtype=dtype, device=coder.at(1))
        assert bits(held.rows(first, rows)) == bits(dense[first:stop])
    assert bits(held.copy().dense()) == bits(dense), "a copy's header is read from its bytes"


@pytest.mark.parametrize("shape", [(0, 3), (1,), (4096,), (4097,)])
def test_odd_sizes(shape: tuple[int, ...], coder: Gpus) -> None:
    dense = weight(torch.bfloat16, shape)
    assert bits(NvcompWeight.of(dense.to(coder.at(0))).dense()) == bits(dense)


def test_the_current_stream_is_used(coder: Gpus) -> None:
    dense = weight(torch.bfloat16)
    held = NvcompWeight.of(dense.to(coder.at(0)))
    torch.accelerator.synchronize()
    with torch.Stream(coder.at(0)):
        handle = coder.stream_handle(0)
        assert bits(held.dense()) == bits(dense)
    assert coder.launches[-1].stream == handle != coder.stream_handle(0)
    assert WANTED or nvcomp.streams == [0, handle]


def model() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(70, 90), nn.Tanh(), nn.Linear(90, 70)).to(torch.bfloat16)
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made


def test_a_model(coder: Gpus, tmp_path: Path) -> None:
    packed = compress_model(model().to(coder.at(0)), coder="nvcomp")
    assert isinstance(packed[0].weight, NvcompTensor)
    x = weight(torch.bfloat16, (4, 70))
    expected = model().to(coder.at(0))
    for made in (packed, expected):
        made(x.to(coder.at(0))).float().pow(2).sum().backward()
        torch.optim.AdamW(made.parameters()).step()
        made.zero_grad()
    assert isinstance(packed[0].weight, NvcompTensor)
    assert bits(packed[2].weight.dense()) == bits(expected[2].weight)
    assert bits(copy.deepcopy(packed)[2].weight.dense()) == bits(expected[2].weight)

    optimizer = fused(packed, torch.optim.AdamW)
    packed(x.to(coder.at(0))).float().pow(2).sum().backward()
    optimizer.step()
    assert isinstance(packed[0].weight, NvcompTensor)

    path = tmp_path / "model.safetensors"
    neuzip.torch.save_file(packed.state_dict(), path)
    value = packed[0].weight.dense()
    assert bits(neuzip.torch.load_file(path)["0.weight"]) == bits(value)
    assert b"NZNV" not in path.read_bytes()
    for there in (pickle.loads(pickle.dumps(packed[0].weight)), packed[0].weight.detach().to("cpu")):
        assert isinstance(there, CompressedTensor) and not isinstance(there, NvcompTensor)
        assert bits(there.dense()) == bits(value)
    with pytest.raises(InvalidArgument, match="offload"):
        offload_model(packed, coder.at(0))


def test_where_it_is_refused(coder: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgument, match="on a GPU"):
        compress_model(model(), coder="nvcomp")
    with pytest.raises(InvalidArgument, match="coder is"):
        compress_model(model(), coder="zip")
    monkeypatch.setitem(sys.modules, "nvidia.nvcomp", None)
    monkeypatch.setattr(ours, "_codecs", {})
    with pytest.raises(InvalidArgument, match="pip install nvidia-nvcomp"):
        compress_model(model().to(coder.at(0)), coder="nvcomp")


def test_its_scratch_memory_is_torchs(standin: StandIn, coder: Gpus) -> None:
    NvcompWeight.of(weight(torch.bfloat16).to(coder.at(0)))
    memory = sys.modules["nvidia.nvcomp"].allocator(1000, None)
    assert memory.ptr and memory._memory.device.type == standin.device_type
