"""The C library under sanitizers: damaged chunks, tables and lengths, failing allocations, threads."""

import os
import platform
import subprocess
import sys

import pytest
from compiled import ROOT, Builder

from neuzip import _native

PROGRAMS = ROOT / "tests" / "sanitized"
ISAS = [name for name in _native.isa_names() if _native.isa_available(name)]
OPTIONS = {
    "ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the programs in tests/sanitized are built for Linux"
)


def output(builder: Builder, name: str, build: str) -> str:
    program = builder.program(build, PROGRAMS / f"{name}.cc")
    done = subprocess.run(
        [program], capture_output=True, text=True, timeout=300, env={**os.environ, **OPTIONS}
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run with this kernel's address space layout")
    assert done.returncode == 0, f"{program.name} exited with {done.returncode}\n{done.stderr[-6000:]}"
    return done.stdout


def test_damage(builder: Builder) -> None:
    """Every bit of small chunks and tables flipped, every length cut or wrong."""
    assert output(builder, "damage", "memory").split() == ISAS


def test_failing_allocations(builder: Builder) -> None:
    output(builder, "memory", "memory")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no ThreadSanitizer here")
def test_threads(builder: Builder) -> None:
    assert output(builder, "threads", "threads").split() == ISAS


@pytest.mark.parametrize("build", ["memory", "threads"])
def test_fixed_width(builder: Builder, build: str) -> None:
    """Buffers of exactly their sizes, several threads, and all instruction sets alike."""
    if build == "threads" and platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("no ThreadSanitizer here")
    output(builder, "fixed_codes", build)
