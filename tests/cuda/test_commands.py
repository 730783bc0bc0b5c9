"""`neuzip doctor --gpu` and `neuzip bench --gpu`, with the stand-in and without any GPU."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner, Result
from standin import dfloat11 as fake_dfloat11
from standin import nvcomp as fake_nvcomp
from standin.driver import StandIn

import neuzip.torch
from neuzip.cli import gpu_peers, gpu_trials
from neuzip.cli.main import program
from neuzip.cuda import nvcomp, self_test, trust

HERE = Path(__file__).resolve().parent


def run(*arguments: object) -> Result:
    return CliRunner().invoke(program, [str(argument) for argument in arguments])


def in_children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    """Lets every Python process begin with a script."""
    (tmp_path / "sitecustomize.py").write_text(script)
    search = [str(tmp_path), str(HERE), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(search))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_doctor_tests_the_device(
    standin_driver: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In processes of their own, as on a GPU; the verdict is kept."""
    script = (
        "from pathlib import Path\n"
        "from standin.driver import StandIn\n"
        "from neuzip.cuda import driver\n"
        f"driver.install(StandIn(devices=1, kernels=Path({str(standin_driver.kernels)!r})))\n"
    )
    in_children(monkeypatch, tmp_path, script)
    done = run("doctor", "--gpu")
    assert done.exit_code == 0, done.output
    assert "Stand-in (sm_90, driver emulator) passed its self-test: " in done.output
    assert "frames as on the CPU" in done.output
    [kept] = (tmp_path / "cache" / "neuzip").iterdir()
    assert json.loads(kept.read_text())["trusted"] is True
    assert "passed its self-test" in run("doctor").output, "from what was kept"


@pytest.mark.parametrize(
    ("kernel", "argument", "words"),
    [
        ("nz_decode_w4", 0, "decoded to other bytes"),
        ("nz_verify", 4, "a good frame was refused"),
        ("nz_sample", 2, "encoded to other bytes"),
        ("nz_matvec_sum_f16", 0, "products with a torch.float16 matrix"),
    ],
)
def test_the_self_test_notices(
    kernel: str, argument: int, words: str, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that does something else."""
    launch = StandIn.launch

    def wrong(self: StandIn, which: object, index: int, grid: int, block: int, arguments, shared: int = 0):
        name = which[1]
        if name == kernel and argument == 0:
            return  # as if it had written nothing
        launch(self, which, index, grid, block, arguments, shared)
        if name == kernel:
            arguments[argument].fill_(1)

    monkeypatch.setattr(StandIn, "launch", wrong)
    # What is not asked for here takes its time.
    if kernel.startswith("nz_matvec"):
        monkeypatch.setattr(self_test, "_encode", lambda cases, device: None)
    monkeypatch.setattr(self_test, "_COUNTS", ((3 << 10, 10),))
    found = self_test.run(0)
    assert not found.trusted and words in found.reason, found


def test_doctor_without_a_gpu() -> None:
    done = run("doctor", "--gpu")
    assert done.exit_code == 1
    assert "cuda         not used  PyTorch" in done.output and "built without CUDA" in done.output


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a": (torch.randn(60, 100, generator=generator) * 0.02).to(torch.bfloat16),
        "b": torch.randn(1000, generator=generator),
        "ids": torch.arange(5),
    }
    neuzip.torch.save_file(tensors, path)
    return path


def test_bench(standin: StandIn, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_trials, "SECONDS", 0)
    monkeypatch.setitem(sys.modules, "nvidia.nvcomp", fake_nvcomp.module())
    monkeypatch.setattr(nvcomp, "_codecs", {})
    done = run("bench", "--gpu", file)
    assert done.exit_code == 0, done.output
    assert "Stand-in (sm_90, emulator)" in done.output
    table = [line for line in done.output.splitlines() if line.startswith("|")]
    assert len({len(line) for line in table}) == 1, "columns are aligned"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    found = {(row[0], row[1]) for row in rows}
    assert found == {
        ("decode", "neuzip default"),
        ("decode", "and compare checksums"),
        ("encode", "neuzip default"),
        ("decode", "neuzip max"),
        ("encode", "neuzip max"),
        ("host to GPU", "plain copy"),
        ("host to GPU", "compressed, decoded there"),
        *((f"60 × 100 by {n}", "cuBLAS on plain weights") for n in (1, 8)),
        *((f"60 × 100 by {n}", "decode, then cuBLAS") for n in (1, 8)),
        *((f"60 × 100 by {n}", "multiply while decoding") for n in (1, 8)),
        ("decode", "nvCOMP ANS"),
        ("encode", "nvCOMP ANS"),
    }
    assert all(row[3].endswith("/s") for row in rows)
    assert "not measured: DFloat11: dfloat11 is not installed: pip install dfloat11" in done.output


def test_bench_as_json_and_without_nvcomp(
    standin: StandIn, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_trials, "SECONDS", 0)
    monkeypatch.setitem(sys.modules, "nvidia.nvcomp", None)
    monkeypatch.setattr(nvcomp, "_codecs", {})
    monkeypatch.setattr(gpu_trials.Trials, "_products", lambda self: iter(()))
    monkeypatch.setattr(gpu_trials, "DFloat11", Peer)
    done = run("bench", "--gpu", "--json", file)
    document = json.loads(done.stdout)
    assert document["gpu"] == "Stand-in" and document["size"] == 16000
    assert all(row["seconds"] > 0 for row in document["rows"])
    assert document["rows"][-1]["how"] == "a peer" and document["rows"][-1]["size"] == 20
    assert any(remark.startswith("nvCOMP: ") for remark in document["remarks"])


class Peer:
    name, most = "a peer", 10

    def prepare(self, tensor: torch.Tensor):
        assert tensor.shape == (10,) and tensor.dtype == torch.bfloat16
        return tensor.clone, "to 70 %"


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("count", [1, 4096, 4097, 10000])
def test_dfloat11(index: int, count: int, standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    modules, kernel = fake_dfloat11.modules()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    tensor = torch.randn(count).to(torch.bfloat16).to(f"standin:{index}")
    work, note = gpu_peers.DFloat11().prepare(tensor)
    stream = torch.Stream(torch.device("standin", index))
    with stream:
        work()
    assert kernel.calls == [(index, 0), (index, stream.stream_id)], "the device and stream that are current"
    assert note.startswith("to ") and note.endswith(f" %, {count} elements")
    kernel.wrong = True
    with pytest.raises(gpu_peers.Unavailable, match="gave other bits back"):
        gpu_peers.DFloat11().prepare(tensor)


def test_bench_with_dfloat11(standin: StandIn, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules, kernel = fake_dfloat11.modules()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(gpu_trials, "SECONDS", 0)
    for rows in ("_coding", "_transfer", "_products", "_nvcomp"):
        monkeypatch.setattr(gpu_trials.Trials, rows, lambda *self: iter(()))
    done = run("bench", "--gpu", "--json", file)
    [row] = json.loads(done.stdout)["rows"]
    assert row["how"] == "DFloat11" and row["size"] == 12000 and row["seconds"] > 0
    assert len(kernel.calls) > 3, "decoded to compare, then to measure"
    assert "a code table" in done.stderr, "what it prints is no part of the table"


def test_a_peer_that_fails_ends_only_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("dfloat11.dfloat11_utils")
    for name in ("dfloat11", "dfloat11.dfloat11", "cupy"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(gpu_peers.Unavailable, match="failed: AttributeError"):
        gpu_peers.DFloat11().prepare(torch.zeros(4, dtype=torch.bfloat16))


def test_bench_without_a_gpu(file: Path) -> None:
    done = run("bench", "--gpu", file)
    assert done.exit_code == 1
    assert "there is no GPU to measure: PyTorch" in done.output and "built without CUDA" in done.output


def test_bench_of_a_gpu_that_failed(standin: StandIn, file: Path) -> None:
    trust._verdicts[(standin, 0)] = trust.Verdict(False, "a good frame was refused")
    done = run("bench", "--gpu", file)
    assert done.exit_code == 1 and "no GPU to measure: a good frame was refused" in done.output


def test_bench_of_a_file_without_floats(standin: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "ids.safetensors"
    neuzip.torch.save_file({"ids": torch.arange(5)}, path)
    done = run("bench", "--gpu", path)
    assert done.exit_code == 1 and "no float tensors" in done.output
