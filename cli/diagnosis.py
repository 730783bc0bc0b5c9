"""What `neuzip doctor` finds out. What is absent or broken is an answer, not a failure."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distributions, version
from importlib.util import find_spec
from pathlib import Path

SECONDS = 60  # importing PyTorch from a cold network disk is slow; a hang is not an answer either
TEST_SECONDS = 600  # the self-tests of all devices, each of which has a limit of its own
X86 = ("x86_64", "AMD64", "amd64")
ARM = ("aarch64", "arm64", "ARM64")
# Flags of /proc/cpuinfo that csrc/dispatch.cc asks for.
AVX2_FLAGS = ("avx2", "bmi1", "bmi2", "popcnt")
AVX512_FLAGS = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vbmi", "avx512_vbmi2")
FLAGS = {"avx2": AVX2_FLAGS, "avx512": (*AVX2_FLAGS, *AVX512_FLAGS)}
# Distributions that matter to decoding on a GPU.
GPU_PACKAGES = {"cupy": r"cupy(-cuda.*|-rocm.*)?", "nvcomp": r"nvidia-nvcomp.*"}


@dataclass(frozen=True)
class Finding:
    """One line: what, whether it is used, and what it is or why it is not used."""

    name: str
    used: bool
    detail: str


@dataclass(frozen=True)
class Diagnosis:
    """All findings. `library` is unused where it cannot be loaded, and nothing works then."""

    version: str
    python: str
    platform: str
    threads: Finding
    library: Finding
    instruction_sets: list[Finding] = field(default_factory=list)
    backends: list[Finding] = field(default_factory=list)
    packages: list[Finding] = field(default_factory=list)


def diagnose(test_gpu: bool = False) -> Diagnosis:
    """All findings. test_gpu: run the self-test of each CUDA device, whatever was found before."""
    library, instruction_sets = examine_library()
    torch = examine_torch()
    devices = examine_cuda(test_gpu)
    return Diagnosis(
        version=own_version(),
        python=platform.python_version(),
        platform=platform.platform(),
        threads=examine_threads(),
        library=library,
        instruction_sets=instruction_sets,
        backends=[examine_cpu(library.used), *devices],
        packages=[torch, *examine_packages(any(device.used for device in devices))],
    )


def own_version() -> str:
    try:
        return version("neuzip-codec")
    except PackageNotFoundError:
        return "unknown: not installed as a distribution"


def examine_threads() -> Finding:
    processors = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else processors
    return Finding("threads", True, f"{usable} by default, of {processors} processors")


def examine_library() -> tuple[Finding, list[Finding]]:
    try:
        from neuzip import _abi, _native
    except (ImportError, OSError, AttributeError) as error:  # AttributeError: a symbol is missing
        return Finding("library", False, str(error)), []
    current = _native.isa_current()
    found = []
    for name in _native.isa_names():
        if name == current:
            detail = "the best this processor runs"
        elif _native.isa_available(name):
            detail = f"available, but {current} is faster"
        else:
            detail = why_unavailable(name)
        found.append(Finding(name, name == current, detail))
    return Finding("library", True, f"{_native.LIBRARY_PATH}, ABI {_abi.ABI_VERSION}"), found


def why_unavailable(name: str) -> str:
    """Why an instruction set cannot be used here."""
    machine = platform.machine()
    family = ARM if name == "neon" else X86
    if machine not in family:
        return f"for {family[0]} processors; this is {machine}"
    flags = processor_flags()
    missing = [flag for flag in FLAGS.get(name, ()) if flag not in flags]
    if missing and flags:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return f"the processor lacks {missing[0]}{others}"
    return "not in this build of the library" if flags else "not in this build, or not in this processor"


def processor_flags() -> set[str]:
    """Feature flags of the first processor; empty where the system does not list them."""
    try:
        listing = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    found = re.search(r"^flags\s*:(.*)$", listing, re.MULTILINE)
    return set(found[1].split()) if found else set()


@dataclass(frozen=True)
class Answer:
    """What a child process has printed, or how it has failed."""

    output: str
    failure: str | None = None


def ask_python(arguments: Sequence[str], seconds: int = SECONDS) -> Answer:
    """Runs Python in a process of its own: a broken installation may crash or hang."""
    # -P: a torch.py in the working directory is not PyTorch.
    command = [sys.executable, "-P", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return Answer("", f"took more than {seconds} s")
    except OSError as error:
        return Answer("", f"could not be tried: {error.strerror}")
    if done.returncode != 0:
        code = done.returncode
        ending = f"exit code {code}" if code > 0 else f"signal {-code}"
        return Answer("", f"fails: {(done.stderr.strip().splitlines() or [ending])[-1]}")
    return Answer(done.stdout)


def examine_torch() -> Finding:
    if find_spec("torch") is None:
        return Finding("torch", False, "not installed; only neuzip.torch needs it")
    answer = ask_python(["-c", "import torch; print(torch.__version__, torch.version.cuda or 'none')"])
    if answer.failure is not None:
        return Finding("torch", False, f"installed, but importing it {answer.failure}")
    words = answer.output.split()
    if len(words) != 2:
        return Finding("torch", False, f"installed, but its version is {answer.output!r}")
    cuda = "built without CUDA" if words[1] == "none" else f"built for CUDA {words[1]}"
    return Finding("torch", True, f"{words[0]}, {cuda}")


def examine_cuda(test: bool) -> list[Finding]:
    """The CUDA devices. test: run each one's self-test, whatever was found before."""
    if test:
        answer = ask_python(["-m", "neuzip.cuda.probe", "--test"], TEST_SECONDS)
    else:
        answer = ask_python(["-m", "neuzip.cuda.probe"])
    if answer.failure is not None:
        return [Finding("cuda", False, f"asking about it {answer.failure}")]
    return [Finding(**device) for device in json.loads(answer.output.splitlines()[-1])]


def examine_packages(cuda: bool) -> Iterator[Finding]:
    """CUDA's parts. cuda: whether a device uses them."""
    yield Finding("CUDA driver", cuda, describe_driver())
    installed = {(found.name or "").lower(): found.version for found in distributions()}
    for subject, pattern in GPU_PACKAGES.items():
        found = sorted(
            f"{package} {installed[package]}" for package in installed if re.fullmatch(pattern, package)
        )
        detail = ", ".join(found) if found else "not installed"
        yield Finding(subject, cuda and bool(found), detail)


def describe_driver() -> str:
    """The NVIDIA driver as the kernel lists it; no library of it is loaded."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "no NVIDIA driver is loaded" if sys.platform == "linux" else "looked for on Linux only"
    number = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    try:
        devices = len(list(Path("/proc/driver/nvidia/gpus").iterdir()))
    except OSError:
        devices = 0
    return f"NVIDIA driver {number[0] if number else 'of unknown version'}, devices: {devices}"


def examine_cpu(library: bool) -> Finding:
    return Finding(
        "cpu", library, "compresses and decompresses" if library else "the library cannot be loaded"
    )
