"""Every kernel compiles for every architecture without a warning or a spill, and keeps to csrc/cuda/budget.toml."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from cubin import ARCHITECTURES, SOURCES, Loop, Resources, all_compiled, disassemble

BUDGET = tomllib.loads((SOURCES / "budget.toml").read_text(encoding="utf-8"))
FILES = sorted(path.name for path in SOURCES.glob("*.cu"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", FILES)
def test_resources(name: str, architecture: str) -> None:
    compiled = all_compiled()[name, architecture]
    assert "warning" not in compiled.log, compiled.log
    check(compiled.resources())


def check(found: dict[str, Resources]) -> None:
    assert found
    for kernel, taken in found.items():
        allowed = BUDGET["kernels"][kernel]
        assert taken.local == 0, f"{kernel} spills"
        assert taken.registers <= allowed["registers"], kernel
        assert taken.shared <= allowed["shared"], kernel


def test_budget_is_of_these_kernels_and_tight() -> None:
    """What nobody takes is not allowed: the most registers and shared memory of all architectures."""
    most: dict[str, dict[str, int]] = {}
    for compiled in all_compiled().values():
        for kernel, taken in compiled.resources().items():
            before = most.setdefault(kernel, {"registers": 0, "shared": 0})
            before["registers"] = max(before["registers"], taken.registers)
            before["shared"] = max(before["shared"], taken.shared)
    assert most == BUDGET["kernels"]


def hot_loops(architecture: str) -> dict[str, float]:
    """Instructions a step of the loops that decode bf16, by kind of table, and of those that encode it."""
    loops = disassemble(all_compiled()["decode.cu", architecture].cubin)["nz_decode_w2"]
    return {
        kind: min(loop.step_instructions for loop in loops if is_hot(loop, kind)) for kind in BUDGET["decode"]
    }


BATCH = 8
"""Steps of a turn of the loops: kBatch of merge.cuh."""


def is_hot(loop: Loop, kind: str) -> bool:
    """Known by what a turn does: stores, loads of the low plane's bytes, and loads from the table for each symbol."""
    if loop.steps != BATCH or loop.count(r"STG?\.E") != BATCH:
        return False
    lows = loop.count(r"LDG\.E\.U8")
    loads = loop.count("LDS") // BATCH
    return (lows, loads) == {"rank": (8, 1), "byte": (8, 3), "joint": (6, 3)}[kind]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hot_loops(architecture: str) -> None:
    counted = hot_loops(architecture)
    print(f"\n{architecture}: " + ", ".join(f"{kind} {count:.2f}" for kind, count in counted.items()))
    for kind, count in counted.items():
        assert count <= BUDGET["decode"][kind], kind


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", FILES)
def test_nvcc(name: str, architecture: str, tmp_path: Path) -> None:
    """Where there is one."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    options = ["-std=c++17", f"-arch={architecture}", "-cubin", "-Xptxas=-v", "-Werror=all-warnings"]
    command = [nvcc, *options, str(SOURCES / name), "-o", str(tmp_path / "kernel.cubin")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert spills
    assert {number for pair in spills for number in pair} == {"0"}
