"""Every kernel compiles for every architecture without a warning or a spill, and keeps to csrc/cuda/budget.toml."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
from cubin import ARCHITECTURES, SOURCES, Loop, Resources, all_compiled, loops

from neuzip.cuda import jobs

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


@pytest.mark.parametrize("kernel", ["nz_matvec_bf16", "nz_matvec_f16"])
def test_a_block_may_have_its_shared_memory(kernel: str) -> None:
    """CUDA refuses a launch with more than 48 KiB, static and dynamic together, that has not been asked for."""
    tiles = jobs.WARPS << (jobs.MATVEC_CHUNK_LOG2 + 1)
    assert BUDGET["kernels"][kernel]["shared"] + tiles <= 48 << 10


def test_budget_is_of_these_kernels_and_tight() -> None:
    """What nobody takes is not allowed: the most registers and shared memory of all architectures."""
    most: dict[str, dict[str, int]] = {}
    for compiled in all_compiled().values():
        for kernel, taken in compiled.resources().items():
            before = most.setdefault(kernel, {"registers": 0, "shared": 0})
            before["registers"] = max(before["registers"], taken.registers)
            before["shared"] = max(before["shared"], taken.shared)
    assert most == BUDGET["kernels"]


BATCH = 16
"""Steps of a turn of the loops that decode: kBatch of merge.cuh, for units of two bytes."""


def decodes(kind: str, loop: Loop) -> bool:
    """Known by what a turn does: stores, loads of the low plane's bytes, and those of a symbol's entry and a word."""
    if loop.steps != BATCH or loop.count(r"ST[GS]?\.(E\.)?U16") != BATCH:
        return False
    lows = loop.count(r"LDG\.E\.U8")
    loads = loop.count("LDS") // BATCH
    return (lows, loads) == {"rank": (16, 2), "byte": (16, 4), "joint": (12, 4)}[kind]


def decoding(found: Sequence[Loop]) -> dict[str, float]:
    """Instructions a step, by kind of table."""
    counted = {}
    for kind in BUDGET["decode"]:
        [loop] = [loop for loop in found if decodes(kind, loop)]
        counted[kind] = loop.step_instructions
    return counted


def encoding(found: Sequence[Loop]) -> dict[str, float]:
    """The loop that encodes a stream, once for each kind of symbol: plane 0, heads, a plane with its own table.

    It loads a symbol's frequency and divides by it; lanes are counted three times: those that write a word, before this
    and altogether, and those with a patch.
    """
    parts = {"LDS": 1, "MUFU": 1, "POPC": 3, r"STG?\.": 1}
    sizes = [
        len(loop.instructions)
        for loop in found
        if all(loop.count(name) == count for name, count in parts.items())
    ]
    assert len(sizes) == 3
    return {"step": max(sizes)}


def products(found: Sequence[Loop]) -> int:
    """Instructions for 128 weights times eight vectors, the kernel's most."""
    [loop] = [loop for loop in found if loop.count("FFMA") == 4 * 8]
    return len(loop.instructions)


def hot_loops(architecture: str) -> dict[str, dict[str, float]]:
    """As in budget.toml."""
    multiply = [loops("matvec.cu", architecture, f"nz_matvec_{dtype}") for dtype in ("bf16", "f16")]
    decoded = [decoding(each) for each in multiply]
    return {
        "decode": decoding(loops("decode.cu", architecture, "nz_decode_w2")),
        "encode": encoding(loops("encode.cu", architecture, "nz_encode_w2")),
        "matvec": {kind: max(each[kind] for each in decoded) for kind in decoded[0]}
        | {"products": max(products(each) for each in multiply)},
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hot_loops(architecture: str) -> None:
    for name, counted in hot_loops(architecture).items():
        print(
            f"\n{architecture} {name}: " + ", ".join(f"{kind} {count:g}" for kind, count in counted.items())
        )
        assert counted.keys() == BUDGET[name].keys()
        for kind, count in counted.items():
            assert count <= BUDGET[name][kind], f"{name} {kind}"


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_bf16_is_decoded_within_45_instructions(architecture: str) -> None:
    """Whatever its table: no kind searches, so that what is counted is all that a step takes."""
    counted = hot_loops(architecture)
    assert max(*counted["decode"].values(), *(counted["matvec"][kind] for kind in BUDGET["decode"])) <= 45


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
