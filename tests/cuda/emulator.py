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
from collections.abc import Sequence
from functools import cache
from pathlib import Path

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


def build(name: str = "emulator", *options: str, targets: Sequence[str] = ("cuda_emulator",)) -> Path:
    """Builds targets in build/``name`` and returns the directory they are in. Skips without CMake or a compiler."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("no CMake")
    directory = ROOT / "build" / name
    configure = [
        cmake,
        f"-S{ROOT}",
        f"-B{directory}",
        "-DNEUZIP_BUILD_EMULATOR=ON",
        "-DNEUZIP_WERROR=ON",
        f"-DNEUZIP_EMULATED_KERNELS={CASES}/*.cu",
        *options,
    ]
    compile_ = [cmake, "--build", str(directory), f"--parallel={os.cpu_count()}", "--target", *targets]
    for command in (configure, compile_):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return directory / "csrc" / "cuda" / "emulator"


@cache
def load() -> Emulator:
    """The emulator without sanitizers."""
    return Emulator(build() / "cuda_emulator.so")
