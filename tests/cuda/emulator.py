"""The emulator of csrc/cuda/emulator: its build, and its C interface.

``load()`` builds the shared library, once for a process and only what has changed, in build/emulator, and opens it;
``Emulator.launch`` runs a kernel to its end.
"""

from __future__ import annotations

import ctypes
import enum
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CASES = Path(__file__).resolve().parent / "kernels"
"""Kernels of the emulator's own tests, compiled with those of csrc/cuda."""


class Kind(enum.IntEnum):
    """NzEmulatorFault."""

    DIVERGENCE = 1
    DEADLOCK = 2
    ENDLESS = 3
    MISUSE = 4


class EmulatorError(Exception):
    """What a kernel, or its launch, did wrong."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(f"{kind.name.lower()}: {message}")
        self.kind = kind


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("poison", ctypes.c_uint64),
        ("steps", ctypes.c_uint64),
    )


class Emulator:
    """The library at a path."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.nz_emulator_error.restype = ctypes.c_char_p
        self._library.nz_emulator_kernel.restype = ctypes.c_char_p

    def kernels(self) -> set[str]:
        """The names of all kernels."""
        names = set()
        while name := self._library.nz_emulator_kernel(len(names)):
            names.add(name.decode())
        return names

    def launch(
        self,
        kernel: str,
        grid: int | tuple[int, int, int],
        block: int | tuple[int, int, int],
        arguments: Sequence[np.ndarray | np.generic],
        *,
        shared: int = 0,
        seed: int = 0,
        poison: int = 0,
        steps: int = 0,
    ) -> None:
        """Runs a kernel. arguments: arrays, whose addresses are passed, and NumPy scalars. Raises EmulatorError."""
        values = [
            np.uint64(value.ctypes.data) if isinstance(value, np.ndarray) else value for value in arguments
        ]
        cells = [np.array(value) for value in values]
        addresses = (ctypes.c_void_p * len(cells))(*[cell.ctypes.data for cell in cells])
        sizes = (ctypes.c_uint64 * len(cells))(*[cell.nbytes for cell in cells])
        how = _Launch(_three(grid), _three(block), shared, seed, poison, steps)
        kind = self._library.nz_emulator_launch(
            kernel.encode(), ctypes.byref(how), addresses, sizes, len(cells)
        )
        if kind:
            raise EmulatorError(Kind(kind), self._library.nz_emulator_error().decode())


def _three(sizes: int | tuple[int, int, int]) -> tuple[int, int, int]:
    return (sizes, 1, 1) if isinstance(sizes, int) else sizes


def build(name: str, *options: str, kernels: Path | None = None) -> Path:
    """Builds the library and cuda_replay in build/``name``, and returns their directory. Skips without CMake.

    kernels: a directory to take the place of csrc/cuda.
    """
    cmake = shutil.which(
        "cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if cmake is None:
        unavailable("no CMake")
    directory = ROOT / "build" / name
    definitions = {
        "NEUZIP_BUILD_EMULATOR": "ON",
        "NEUZIP_WERROR": "OFF" if kernels else "ON",  # a mutant may have an unused variable
        "NEUZIP_KERNELS": kernels or ROOT / "csrc" / "cuda",
        "NEUZIP_MORE_KERNELS": CASES / "*.cu",
        "Python_EXECUTABLE": sys.executable,
    }
    configure = [
        cmake,
        "-S",
        ROOT,
        "-B",
        directory,
        *options,
        *(f"-D{k}={v}" for k, v in definitions.items()),
    ]
    compile_ = [cmake, "--build", directory, "--parallel", "2", "--target", "cuda_replay"]
    for command in (configure, compile_):
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        if "cannot find -l" in done.stderr + done.stdout:
            unavailable("the compiler comes without this sanitizer's library")
        assert done.returncode == 0, f"{' '.join(done.args)}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return directory / "csrc" / "cuda" / "emulator"


_QUICK = ("-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1 -g1")


@cache
def replay(kind: str = "plain") -> Path:
    """cuda_replay: plain, under AddressSanitizer and UndefinedBehaviorSanitizer (memory), or ThreadSanitizer."""
    if kind == "plain":
        return build("emulator") / "cuda_replay"
    sanitizers = {"memory": "address,undefined", "threads": "thread"}[kind]
    return build(f"emulator-{kind}", *_QUICK, f"-DNEUZIP_SANITIZE={sanitizers}") / "cuda_replay"


@cache
def load() -> Emulator:
    """The library, without sanitizers, in this process."""
    return Emulator(build("emulator") / "cuda_emulator.so")


def unavailable(reason: str) -> NoReturn:
    """Skips a test that needs a tool, where the tool is optional."""
    if os.environ.get("NEUZIP_REQUIRE_CROSS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
