"""The torch device "standin", of which there are two: device.cc, compiled when it is first needed."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

TYPE = "standin"
COUNT = 2

_SOURCE = Path(__file__).with_name("device.cc")
_BUILD = Path(__file__).resolve().parents[3] / "build" / "standin"
_TORCH = Path(torch.__file__).parent


@cache
def load() -> ctypes.CDLL:
    """Makes the device known to torch, for the rest of the process, and returns its library."""
    path = _compiled()
    torch.ops.load_library(str(path))
    torch.utils.rename_privateuse1_backend(TYPE)
    module = ModuleType(TYPE)
    module.device_count = lambda: COUNT  # type: ignore[attr-defined]
    module.is_available = lambda: True  # type: ignore[attr-defined]
    module.current_device = torch.accelerator.current_device_index  # type: ignore[attr-defined]
    module.device = lambda which: torch.accelerator.device_index(torch.device(which).index)  # type: ignore[attr-defined]
    torch._register_device_module(TYPE, module)
    library = ctypes.CDLL(str(path))
    library.standin_reach.argtypes = [ctypes.c_int32, ctypes.c_int64]
    library.standin_reads.restype = ctypes.c_int64
    return library


def _compiled() -> Path:
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O0", "-shared", "-fPIC", str(_SOURCE)]
    include = _TORCH / "include"
    command += [f"-isystem{include}", f"-isystem{include / 'torch' / 'csrc' / 'api' / 'include'}"]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    command += [f"-L{_TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]
    key = "\0".join([_SOURCE.read_text(encoding="utf-8"), torch.__version__, *command])
    path = _BUILD / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        _BUILD.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_BUILD) as scratch:
            made = Path(scratch) / "device.so"
            subprocess.run([*command, "-o", str(made)], check=True)
            made.replace(path)
    return path
