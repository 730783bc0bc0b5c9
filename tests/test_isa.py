"""Every instruction set's loops against the scalar ones, and every build's encodings against each other.

The C++ programs in tests/isa are compiled for this machine, again with sanitizers, for AVX-512 without such a
processor (through SIMDe), and for aarch64 (run by QEMU). What needs tools that are not installed is skipped,
unless NEUZIP_REQUIRE_CROSS=1 says that they must be.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
HARNESS = ROOT / "tests" / "isa"
X86 = platform.machine().lower() in ("x86_64", "amd64")
NOT_THIS_PROCESSOR = 77

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the programs in tests/isa are written for Linux"
)


@dataclass(frozen=True)
class Build:
    """One way of compiling the library and the programs that test it."""

    name: str
    compilers: tuple[str, ...]
    isas: tuple[str, ...]  # instruction sets compiled in, beside scalar
    flags: tuple[str, ...] = ()
    runner: tuple[str, ...] = ()
    simde: bool = False
    shares: str = ""  # build whose objects serve for files that know nothing of instruction sets


NATIVE_COMPILERS = (os.environ.get("CXX", ""), "g++", "clang++", "c++")
NATIVE_ISAS = ("avx2", "avx512") if X86 else ("neon",)
SANITIZERS = (
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
)
BUILDS = {
    build.name: build
    for build in (
        Build("native", NATIVE_COMPILERS, NATIVE_ISAS, ("-O2",)),
        Build("sanitized", NATIVE_COMPILERS, NATIVE_ISAS, SANITIZERS),
        Build("simde", NATIVE_COMPILERS, ("avx512",), ("-O2",), simde=True, shares="native"),
        Build("aarch64", ("aarch64-linux-gnu-g++",), ("neon",), ("-O2", "-static"), ("qemu-aarch64",)),
    )
}
CASES = [
    *(("native", isa) for isa in ("scalar", *NATIVE_ISAS)),
    *(("sanitized", isa) for isa in ("scalar", *NATIVE_ISAS)),
    ("simde", "avx512"),
    ("aarch64", "scalar"),
    ("aarch64", "neon"),
]


def missing(reason: str) -> NoReturn:
    """Skips the test, or fails it where nothing may be skipped."""
    if os.environ.get("NEUZIP_REQUIRE_CROSS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def cmake_flags(name: str) -> list[str]:
    """A list of compiler flags of CMakeLists.txt, so that the tests compile what is shipped."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(rf"set\({name} ([^)]*)\)", text)
    assert found, f"CMakeLists.txt sets no {name}"
    flags: list[str] = []
    for flag in found.group(1).split():
        variable = re.fullmatch(r"\$\{(\w+)\}", flag)
        flags += cmake_flags(variable.group(1)) if variable else [flag]
    return flags


def isa_of(source: Path) -> str:
    """The instruction set that a file of csrc is written for, "" for all others."""
    last = source.stem.rpartition("_")[2]
    return last if last in ("avx2", "avx512", "neon") else ""


class Builder:
    """Compiles what is asked for, once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.built: dict[str, Path] = {}
        generator = ROOT / "formats" / "generate_layouts.py"
        layouts = [sys.executable, generator, ROOT / "formats" / "floats.toml", directory / "layouts.inc"]
        subprocess.run(layouts, check=True)

    def programs(self, name: str) -> Path:
        """The directory with a build's programs, `equality` and `roundtrip`."""
        build = BUILDS[name]
        if name not in self.built:
            compiler = self.compiler(build)
            if build.shares:
                self.programs(build.shares)
            self.built[name] = self.directory / name
            self.built[name].mkdir()
            objects = self.objects(build, compiler)
            harness = [objects.pop(path) for path in [*HARNESS.glob("check_*.cc"), HARNESS / "tables.cc"]]
            for program, rest in (("equality", harness), ("roundtrip", [])):
                main = objects[HARNESS / f"{program}.cc"]
                library = [path for source, path in objects.items() if source.parent == CSRC]
                out = self.built[name] / program
                self.run([compiler, *build.flags, main, *rest, *library, "-pthread", "-o", out])
        return self.built[name]

    @staticmethod
    def compiler(build: Build) -> str:
        found = next((path for name in build.compilers if name and (path := shutil.which(name))), None)
        if found is None:
            missing(
                f"no compiler for the {build.name} build: none of {', '.join(filter(None, build.compilers))}"
            )
        if build.runner and not shutil.which(build.runner[0]):
            missing(f"{build.runner[0]} is not installed")
        if build.simde and not Path("/usr/include/simde/x86/avx512.h").exists():
            missing("SIMDe (Debian's libsimde-dev) is not installed")
        return found

    def objects(self, build: Build, compiler: str) -> dict[Path, Path]:
        sources = [
            path
            for path in [*sorted(CSRC.glob("*.cc")), *sorted(HARNESS.glob("*.cc"))]
            if isa_of(path) in ("", *build.isas)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = pool.map(lambda source: self.object(build, compiler, source), sources)
            return dict(zip(sources, compiled, strict=True))

    def object(self, build: Build, compiler: str, source: Path) -> Path:
        defines = [f"-DNEUZIP_HAVE_{isa.upper()}" for isa in build.isas]
        isa = isa_of(source)
        if build.shares and not isa and "NEUZIP_HAVE" not in source.read_text(encoding="utf-8"):
            return self.built[build.shares] / f"{source.stem}.o"
        flags = [
            "-std=c++17",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-ffp-contract=off",
            f"-I{CSRC}",
            f"-I{self.directory}",
        ]
        if build.simde:
            # The compiler has a remark on 64-byte vectors passed in memory. Any processor will do.
            flags += [f"-I{HARNESS / 'simde'}", "-Wno-psabi", "-D__builtin_cpu_supports(feature)=1"]
        elif isa in ("avx2", "avx512"):
            flags += cmake_flags(f"{isa.upper()}_FLAGS")
        out = self.directory / build.name / f"{source.stem}.o"
        self.run([compiler, *flags, *build.flags, *defines, "-c", source, "-o", out])
        return out

    @staticmethod
    def run(command: Iterable[str | Path]) -> None:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(done.args)}\n{done.stderr}"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return Builder(tmp_path_factory.mktemp("isa")).programs


def output(programs: Callable[[str], Path], build: str, program: str, isa: str) -> str:
    """What a program prints. Skips the test if it is for another processor."""
    command = [*BUILDS[build].runner, str(programs(build) / program), isa]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode == NOT_THIS_PROCESSOR:
        pytest.skip(f"this processor does not run {isa}")
    assert done.returncode == 0, f"{program} {isa} exited with {done.returncode}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.parametrize(("build", "isa"), CASES)
def test_loops_equal_the_scalar_ones(programs: Callable[[str], Path], build: str, isa: str) -> None:
    output(programs, build, "equality", isa)


@pytest.mark.parametrize(("build", "isa"), CASES)
def test_encodings_are_identical(programs: Callable[[str], Path], build: str, isa: str) -> None:
    expected = output(programs, "native", "roundtrip", "scalar").splitlines()
    assert len(expected) > 200
    assert output(programs, build, "roundtrip", isa).splitlines() == expected
