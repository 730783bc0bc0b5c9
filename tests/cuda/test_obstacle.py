"""Each reason why CUDA is off is told, and none of them makes an import fail or hang."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from neuzip.cli import diagnosis
from neuzip.cuda.obstacle import find_obstacle


def module(name: str, **attributes: Any) -> ModuleType:
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    vars(made).update(attributes)
    return made


def raising(error: Exception) -> Callable[..., Any]:
    def function(*arguments: Any) -> Any:
        raise error

    return function


def torch(cuda: str | None = "12.8", hip: str | None = None, **functions: Any) -> ModuleType:
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "get_device_capability": lambda index: (9, 0),
        "get_device_name": lambda index: "NVIDIA GeForce GTX 1080",
        **functions,
    }
    version = SimpleNamespace(cuda=cuda, hip=hip)
    return module("torch", __version__="2.9.0", version=version, cuda=SimpleNamespace(**answers))


def cupy(count: Callable[[], int] = lambda: 2, nvrtc: Callable[[], Any] = lambda: (12, 9)) -> ModuleType:
    cuda = SimpleNamespace(
        runtime=SimpleNamespace(getDeviceCount=count), nvrtc=SimpleNamespace(getVersion=nvrtc)
    )
    return module("cupy", cuda=cuda)


BROKEN = RuntimeError("cudaErrorInitializationError: initialization error\nmore of it")
CASES = {
    "PyTorch is not installed": (None, cupy(), 0),
    "built without CUDA": (torch(cuda=None), cupy(), 0),
    "built for ROCm": (torch(cuda=None, hip="6.4"), cupy(), 0),
    "CuPy is not installed: pip install 'neuzip-codec[cuda12]'": (torch(), None, 0),
    "driver is missing, too old or broken": (torch(is_available=lambda: False), cupy(), 0),
    "there is no device 2: torch sees 2": (torch(), cupy(), 2),
    "GTX 1080 has compute capability 6.1, and the kernels need 7.5": (
        torch(get_device_capability=lambda index: (6, 1)),
        cupy(),
        0,
    ),
    "CUDA fails: cudaErrorInitializationError: initialization error": (
        torch(is_available=raising(BROKEN)),
        cupy(),
        0,
    ),
    "CUDA fails: cudaErrorInsufficientDriver": (
        torch(),
        cupy(count=raising(RuntimeError("cudaErrorInsufficientDriver"))),
        0,
    ),
    "CuPy does not see device 1": (torch(), cupy(count=lambda: 1), 1),
    "CUDA fails: libnvrtc.so.12": (torch(), cupy(nvrtc=raising(RuntimeError("libnvrtc.so.12"))), 0),
}


@pytest.mark.parametrize("reason", CASES)
def test_the_reason_is_told(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", CASES[reason][0])
    monkeypatch.setitem(sys.modules, "cupy", CASES[reason][1])
    found = find_obstacle(CASES[reason][2])
    assert found is not None and reason in found
    assert "\n" not in found


def test_nothing_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch(get_device_capability=lambda index: (7, 5)))
    monkeypatch.setitem(sys.modules, "cupy", cupy())
    assert find_obstacle(1) is None


@pytest.mark.parametrize("error", ["ImportError('libcublas.so.12')", "OSError('torn file')"])
@pytest.mark.parametrize("name", ["torch", "cupy"])
def test_a_package_that_cannot_be_imported(name: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "cupy.py").write_text("")
    (tmp_path / "torch.py").write_text(
        "from types import SimpleNamespace as N; version = N(cuda='12.8'); __version__ = '2.9.0'"
    )
    (tmp_path / f"{name}.py").write_text(f"raise {error}")
    answer = run("from neuzip.cuda.obstacle import find_obstacle; print(find_obstacle())", tmp_path)
    title = {"torch": "PyTorch", "cupy": "CuPy"}[name]
    assert f"{title} is installed, but importing it fails: " in answer
    assert error.split("'")[1] in answer


def run(code: str, path: Path | None = None, **environment: str) -> str:
    paths = [str(path)] if path is not None else []
    search = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": search, **environment},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_importing_asks_nothing_of_cuda(tmp_path: Path) -> None:
    """With a driver's library that is no library: whoever loads it fails."""
    (tmp_path / "libcuda.so.1").write_text("torn")
    code = (
        "import sys, neuzip, neuzip.torch, neuzip.nn, neuzip.optim, neuzip.cuda, neuzip.cuda.trust\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('cupy', 'nvidia')])"
    )
    assert run(code, LD_LIBRARY_PATH=str(tmp_path)) == "[]"


def test_without_torch_the_package_says_so() -> None:
    code = "import sys; sys.modules['torch'] = None; import neuzip.cuda; print(neuzip.cuda.why_off())"
    assert run(code).startswith("PyTorch is not installed")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import os; is_available = os.abort", "fails: signal 6"),
        ("def is_available(): raise SystemExit('torn')", "fails: torn"),
    ],
)
def test_doctor_outlives_a_driver(script: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "cupy.py").write_text("")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "from types import SimpleNamespace as N; version = N(cuda='12.8'); __version__ = '2.9.0'\n"
        "from torch import cuda\nclass Tensor: pass\nclass device: pass\n"
    )
    (tmp_path / "torch" / "cuda.py").write_text(script)
    code = "from neuzip.cli import diagnosis; [found] = diagnosis.examine_cuda(False); print(found)"
    assert words in run(code, tmp_path)


def test_doctor_ends_a_hang() -> None:
    answer = diagnosis.ask_python(["-c", "import time; time.sleep(60)"], seconds=1)
    assert answer.failure == "took more than 1 s"
