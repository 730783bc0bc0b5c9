"""Launches of kernels in a process of its own: what cuda_replay (csrc/cuda/emulator/replay.cc) reads and runs."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


class ReplayError(AssertionError):
    """A run that did not come to its end: a fault that the emulator reports, a sanitizer's report, a crash."""


@dataclass(frozen=True)
class Buffer:
    """A buffer of a script: its number."""

    number: int


@dataclass
class _Contents:
    data: bytes
    misalignment: int
    kept: bool


@dataclass
class Script:
    """Buffers in device memory, and launches that use them."""

    _buffers: list[_Contents] = field(default_factory=list)
    _pointers: list[tuple[int, int, int, int]] = field(default_factory=list)
    _launches: list[bytes] = field(default_factory=list)

    def buffer(self, data: bytes | np.ndarray, misalignment: int = 0, kept: bool = False) -> Buffer:
        """Memory of exactly these bytes, ``misalignment`` behind a multiple of 64. kept: its end is a result."""
        self._buffers.append(
            _Contents(bytes(memoryview(data).cast("B")) if len(data) else b"", misalignment, kept)
        )
        return Buffer(len(self._buffers) - 1)

    def point(self, buffer: Buffer, offset: int, to: Buffer, to_offset: int = 0) -> None:
        """Puts the address of a place in ``to`` at an offset of a buffer."""
        self._pointers.append((buffer.number, offset, to.number, to_offset))

    def launch(
        self, kernel: str, grid: int, block: int, arguments: Sequence[Buffer | np.generic], shared: int = 0
    ) -> None:
        """Adds a launch."""
        name = kernel.encode()
        words = [grid, 1, 1, block, 1, 1, shared, len(arguments)]
        for argument in arguments:
            if isinstance(argument, Buffer):
                words += [0, argument.number]
            else:
                words += [argument.nbytes, int.from_bytes(argument.tobytes(), "little")]
        self._launches.append(_numbers(len(name)) + _padded(name) + _numbers(*words))

    def run(self, program: Path, seeds: Sequence[int] = (0,), timeout: float = 600) -> list[list[bytes]]:
        """Runs all launches for each seed. Returns what the kept buffers then hold. Raises ReplayError."""
        with tempfile.TemporaryDirectory() as directory:
            script, results = Path(directory, "script"), Path(directory, "results")
            script.write_bytes(self._bytes())
            command = [program, script, results, *map(str, seeds)]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=timeout, env={**os.environ, **OPTIONS}
                )
            except subprocess.TimeoutExpired as error:
                raise ReplayError(f"no end after {timeout} s") from error
            if done.returncode:
                raise ReplayError(f"exit code {done.returncode}\n{done.stderr[-6000:]}")
            return self._split(results.read_bytes(), len(seeds))

    def _bytes(self) -> bytes:
        parts = [_numbers(len(self._buffers))]
        for buffer in self._buffers:
            parts += [_numbers(len(buffer.data), buffer.misalignment, buffer.kept), _padded(buffer.data)]
        parts.append(_numbers(len(self._pointers)))
        parts += [_numbers(*pointer) for pointer in self._pointers]
        return b"".join([*parts, _numbers(len(self._launches)), *self._launches])

    def _split(self, data: bytes, runs: int) -> list[list[bytes]]:
        found, at = [], 0
        for _ in range(runs):
            found.append([])
            for buffer in self._buffers:
                if buffer.kept:
                    found[-1].append(data[at : at + len(buffer.data)])
                    at += len(buffer.data)
        assert at == len(data)
        return found


def _numbers(*values: int) -> bytes:
    return np.array(values, np.uint64).tobytes()


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)
