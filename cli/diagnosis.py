"""What `neuzip doctor` finds out. It starts no GPU; what is absent or broken is an answer, not a failure."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distributions, version
from importlib.util import find_spec
from pathlib import Path

TORCH_SECONDS = 60  # importing PyTorch from a cold network disk is slow; a hang is not an answer either
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


def diagnose() -> Diagnosis:
    library, instruction_sets = examine_library()
    torch = examine_torch()
    return Diagnosis(
        version=own_version(),
        python=platform.python_version(),
        platform=platform.platform(),
        threads=examine_threads(),
        library=library,
        instruction_sets=instruction_sets,
        backends=list(examine_backends(library.used)),
        packages=[torch, *examine_packages()],
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
        from neuzip import _native
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
    return Finding("library", True, f"{_native.LIBRARY_PATH}, ABI {_native.ABI_VERSION}"), found


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


def examine_torch() -> Finding:
    """Imports PyTorch in a process of its own: a broken installation may crash or hang."""
    if find_spec("torch") is None:
        return Finding("torch", False, "not installed; only neuzip.torch needs it")
    # -P: a torch.py in the working directory is not PyTorch.
    command = [
        sys.executable,
        "-P",
        "-c",
        "import torch; print(torch.__version__, torch.version.cuda or 'none')",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TORCH_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Finding("torch", False, f"installed, but importing it took more than {TORCH_SECONDS} s")
    except OSError as error:
        return Finding("torch", False, f"installed, but not tried: {error.strerror}")
    words = done.stdout.split()
    if done.returncode != 0 or len(words) != 2:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Finding("torch", False, f"installed, but importing it fails: {lines[-1]}")
    cuda = "built without CUDA" if words[1] == "none" else f"built for CUDA {words[1]}"
    return Finding("torch", True, f"{words[0]}, {cuda}")


def examine_packages() -> Iterator[Finding]:
    """CUDA's parts. None is used by this version: there is no CUDA backend to use them."""
    yield Finding("CUDA driver", False, describe_driver())
    installed = {(found.name or "").lower(): found.version for found in distributions()}
    for subject, pattern in GPU_PACKAGES.items():
        found = sorted(
            f"{package} {installed[package]}" for package in installed if re.fullmatch(pattern, package)
        )
        detail = ", ".join(found) if found else "not installed"
        yield Finding(subject, False, detail)


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


def examine_backends(library: bool) -> Iterator[Finding]:
    yield Finding(
        "cpu", library, "compresses and decompresses" if library else "the library cannot be loaded"
    )
    yield Finding("cuda", False, "this version decodes on the CPU, then copies")
