"""The C library under sanitizers: damaged chunks, tables and lengths, failing allocations, threads.

The C++ programs in tests/sanitized are compiled together with csrc, with AddressSanitizer and
UndefinedBehaviorSanitizer or with ThreadSanitizer, and run.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from neuzip import _native

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
PROGRAMS = ROOT / "tests" / "sanitized"
ISAS = [name for name in _native.isa_names() if _native.isa_available(name)]
SANITIZERS = {
    "memory": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "threads": ["-fsanitize=thread"],
}
OPTIONS = {
    "ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the programs in tests/sanitized are built for Linux"
)


def isa_flags(source: Path) -> list[str]:
    """The flags of CMakeLists.txt for a file of csrc that is written for an instruction set."""
    isa = source.stem.rpartition("_")[2].upper()
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(rf"set\({isa}_FLAGS ([^)]*)\)", text)
    if found is None:
        return []
    avx2 = re.search(r"set\(AVX2_FLAGS ([^)]*)\)", text)
    assert avx2 is not None
    return found.group(1).replace("${AVX2_FLAGS}", avx2.group(1)).split()


def sources() -> list[Path]:
    """The files of csrc for this processor: all that are not of another instruction set."""
    others = {"avx2", "avx512", "neon"} - set(ISAS)
    return [path for path in sorted(CSRC.glob("*.cc")) if path.stem.rpartition("_")[2] not in others]


class Builder:
    """Compiles csrc once for each kind of sanitizer, and the programs as they are asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.objects: dict[str, list[Path]] = {}
        compilers = (os.environ.get("CXX", ""), "g++", "clang++", "c++")
        found = next((path for name in compilers if name and (path := shutil.which(name))), None)
        if found is None:
            pytest.skip("no C++ compiler")
        self.compiler = found
        generator = ROOT / "formats" / "generate_layouts.py"
        layouts = [sys.executable, generator, ROOT / "formats" / "floats.toml", directory / "layouts.inc"]
        subprocess.run(layouts, check=True)

    def program(self, name: str, kind: str) -> Path:
        if kind not in self.objects:
            (self.directory / kind).mkdir()
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                self.objects[kind] = list(pool.map(lambda path: self.object(path, kind), sources()))
        main = self.object(PROGRAMS / f"{name}.cc", kind)
        out = self.directory / kind / name
        self.run([self.compiler, *SANITIZERS[kind], main, *self.objects[kind], "-pthread", "-o", out])
        return out

    def object(self, source: Path, kind: str) -> Path:
        flags = ["-std=c++17", "-O1", "-g", "-fno-omit-frame-pointer", "-ffp-contract=off"]
        flags += [
            "-Wall",
            "-Wextra",
            f"-I{CSRC}",
            f"-I{self.directory}",
            *SANITIZERS[kind],
            *isa_flags(source),
        ]
        defines = [f"-DNEUZIP_HAVE_{isa.upper()}" for isa in ISAS]
        out = self.directory / kind / f"{source.stem}.o"
        self.run([self.compiler, *flags, *defines, "-c", source, "-o", out])
        return out

    @staticmethod
    def run(command: Iterable[str | Path]) -> None:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        if "cannot find -l" in done.stderr or "libclang_rt" in done.stderr:
            pytest.skip("the compiler comes without this sanitizer's library")
        assert done.returncode == 0, f"{' '.join(done.args)}\n{done.stderr}"


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    return Builder(tmp_path_factory.mktemp("sanitized"))


def output(program: Path) -> str:
    done = subprocess.run(
        [program], capture_output=True, text=True, timeout=300, env={**os.environ, **OPTIONS}
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run with this kernel's address space layout")
    assert done.returncode == 0, f"{program.name} exited with {done.returncode}\n{done.stderr[-6000:]}"
    return done.stdout


def test_damage(builder: Builder) -> None:
    """Every bit of small chunks and tables flipped, every length cut or wrong."""
    assert output(builder.program("damage", "memory")).split() == ISAS


def test_failing_allocations(builder: Builder) -> None:
    output(builder.program("memory", "memory"))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no ThreadSanitizer here")
def test_threads(builder: Builder) -> None:
    assert output(builder.program("threads", "threads")).split() == ISAS


@pytest.mark.parametrize("kind", ["memory", "threads"])
def test_fixed_width(builder: Builder, kind: str) -> None:
    """Buffers of exactly their sizes, several threads, and all instruction sets alike."""
    if kind == "threads" and platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("no ThreadSanitizer here")
    output(builder.program("fixed_codes", kind))
