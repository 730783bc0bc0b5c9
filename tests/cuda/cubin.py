"""Kernels compiled without a GPU: what the assembler says of them, and how many instructions their hot loops have."""

from __future__ import annotations

import ctypes
import hashlib
import re
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from emulator import ROOT, unavailable

SOURCES = ROOT / "csrc" / "cuda"
ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120")
_PACKAGES = Path(sysconfig.get_path("purelib"), "nvidia")


@dataclass(frozen=True)
class Resources:
    """What a kernel takes. shared: bytes of static shared memory. local: bytes spilled, or of a stack."""

    registers: int
    shared: int
    local: int


@dataclass(frozen=True)
class Compiled:
    """A source compiled for an architecture."""

    cubin: bytes
    log: str

    def resources(self) -> dict[str, Resources]:
        """By kernel, from the assembler's remarks."""
        found = {}
        for part in re.split(r"Compiling entry function '", self.log)[1:]:
            registers = re.search(r"Used (\d+) registers", part)
            stack = re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
            )
            assert registers, part
            assert stack, part
            shared = re.search(r"(\d+) bytes smem", part)
            local = sum(int(number) for number in stack.groups())
            found[part.partition("'")[0]] = Resources(
                int(registers[1]), int(shared[1]) if shared else 0, local
            )
        return found


def _nvrtc_path() -> Path:
    found = sorted(_PACKAGES.glob("cuda_nvrtc/lib/libnvrtc.so.12"))
    if not found:
        unavailable("nvidia-cuda-nvrtc-cu12 is not installed")
    return found[0]


def _includes(source: Path) -> list[Path]:
    """A source and all that it includes."""
    found = [source]
    for path in found:  # grows
        names = re.findall(r'^#include "([\w.]+)"', path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        found += [SOURCES / name for name in names if SOURCES / name not in found]
    return found


def _kept(source: Path, architecture: str) -> Compiled:
    """As ``nvrtc``, but for what build/cubin has of the same sources by the same compiler."""
    state = hashlib.sha256(
        f"{_nvrtc_path()} {_nvrtc_path().stat().st_size} {source.name} {architecture}".encode()
    )
    for path in _includes(source):
        state.update(path.read_bytes())
    directory = ROOT / "build" / "cubin"
    cubin, log = (directory / f"{state.hexdigest()[:32]}.{ending}" for ending in ("cubin", "log"))
    if not log.exists():
        compiled = nvrtc(source, architecture)
        directory.mkdir(parents=True, exist_ok=True)
        cubin.write_bytes(compiled.cubin)
        log.write_text(compiled.log, encoding="utf-8")
    return Compiled(cubin.read_bytes(), log.read_text(encoding="utf-8"))


def nvrtc(source: Path, architecture: str) -> Compiled:
    """Compiles with NVRTC, as CuPy does on first use."""
    library = ctypes.CDLL(str(_nvrtc_path()))
    program = ctypes.c_void_p()
    name = source.name.encode()
    assert not library.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), name, 0, None, None)
    options = [f"-arch={architecture}", f"-I{SOURCES}", "-std=c++17", "--ptxas-options=-v"]
    array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    status = library.nvrtcCompileProgram(program, len(options), array)
    log = _text(library, program, "ProgramLog").rstrip(b"\0").decode()
    assert status == 0, log
    return Compiled(_text(library, program, "CUBIN"), log)


def _text(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    assert not library[f"nvrtcGet{what}Size"](program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    assert not library[f"nvrtcGet{what}"](program, buffer)
    return buffer.raw


@cache
def all_compiled() -> dict[tuple[str, str], Compiled]:
    """Every source for every architecture, by file name and architecture."""
    _nvrtc_path()
    # The longest first: there are few processors.
    sources = sorted(SOURCES.glob("*.cu"), key=lambda path: path.name not in ("decode.cu", "encode.cu"))
    work = [(source, architecture) for source in sources for architecture in ARCHITECTURES]
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda each: _kept(*each), work)
        return {(source.name, arch): each for (source, arch), each in zip(work, done, strict=True)}


@dataclass(frozen=True)
class Loop:
    """A loop of a kernel: its instructions in order, but for those of loops inside it."""

    instructions: tuple[str, ...]

    def count(self, pattern: str) -> int:
        """Instructions whose name begins like this, predicates aside."""
        return sum(re.match(r"(@!?U?P\d+ )?" + pattern, each) is not None for each in self.instructions)

    @property
    def steps(self) -> int:
        """Symbols that a lane decodes in a turn: each may need a word."""
        return self.count(r"LDS\.(U\.)?U16")

    @property
    def step_instructions(self) -> float:
        """Warp instructions for 32 symbols."""
        return len(self.instructions) / self.steps


@cache
def loops(source: str, architecture: str, kernel: str) -> list[Loop]:
    """The loops of a kernel, by NVIDIA's disassembler."""
    text = _disassembled(source, architecture)
    parts = re.split(r"^\.text\.(\w+):$", text, flags=re.MULTILINE)
    return _loops(parts[parts.index(kernel) + 1])


@cache
def _disassembled(source: str, architecture: str) -> str:
    found = sorted(_PACKAGES.glob("cu*/bin/nvdisasm"))
    if not found:
        unavailable("nvidia-cuda-nvdisasm is not installed")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(all_compiled()[source, architecture].cubin)
        file.flush()
        command = [found[-1], "--print-code", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _loops(code: str) -> list[Loop]:
    """From each label to each branch back to it."""
    code = code.partition(".section")[0]
    instructions: list[str] = []
    labels = {}
    for line in code.splitlines():
        if label := re.match(r"\s*\.(L_\w+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            instructions.append(instruction[1])
    spans = []
    for end, instruction in enumerate(instructions):
        branch = re.search(r"BRA.*`\(\.(L_\w+)\)", instruction)
        if branch and labels.get(branch[1], end + 1) <= end:
            spans.append((labels[branch[1]], end))
    return [_without_inner(instructions, span, spans) for span in spans]


def _without_inner(
    instructions: Sequence[str], span: tuple[int, int], spans: Sequence[tuple[int, int]]
) -> Loop:
    kept = set(range(span[0], span[1] + 1))
    for start, end in spans:
        if (start, end) != span and span[0] <= start and end <= span[1]:
            kept.difference_update(range(start, end + 1))
    return Loop(tuple(instructions[at] for at in sorted(kept)))
