"""Every instruction set's loops against the scalar ones, and every build's encodings against each other."""

import subprocess
import sys
from pathlib import Path

import pytest
from compiled import BUILDS, NATIVE_ISAS, ROOT, Builder

HARNESS = ROOT / "tests" / "isa"
PARTS = {"equality": [*sorted(HARNESS.glob("check_*.cc")), HARNESS / "tables.cc"], "roundtrip": []}
NOT_THIS_PROCESSOR = 77
CASES = [
    *(("native", isa) for isa in ("scalar", *NATIVE_ISAS)),
    *(("memory", isa) for isa in ("scalar", *NATIVE_ISAS)),
    ("simde", "avx512"),
    ("aarch64", "scalar"),
    ("aarch64", "neon"),
]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the programs in tests/isa are written for Linux"
)


def output(builder: Builder, build: str, program: str, isa: str) -> str:
    """What a program prints. Skips the test if it is for another processor."""
    path: Path = builder.program(build, HARNESS / f"{program}.cc", *PARTS[program])
    command = [*BUILDS[build].runner, str(path), isa]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode == NOT_THIS_PROCESSOR:
        pytest.skip(f"this processor does not run {isa}")
    assert done.returncode == 0, f"{program} {isa} exited with {done.returncode}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.parametrize(("build", "isa"), CASES)
def test_loops_equal_the_scalar_ones(builder: Builder, build: str, isa: str) -> None:
    output(builder, build, "equality", isa)


@pytest.mark.parametrize(("build", "isa"), CASES)
def test_encodings_are_identical(builder: Builder, build: str, isa: str) -> None:
    expected = output(builder, "native", "roundtrip", "scalar").splitlines()
    assert len(expected) > 200
    assert output(builder, build, "roundtrip", isa).splitlines() == expected
