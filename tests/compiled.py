"""The C library compiled in several ways, each with programs that test it: natively, with sanitizers, for AVX-512
without such a processor (through SIMDe), and for aarch64 (run by QEMU).

What needs tools that are not installed is skipped, or fails (optional.missing).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from optional import missing

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
SIMDE = ROOT / "tests" / "isa" / "simde"
X86 = platform.machine().lower() in ("x86_64", "amd64")
FLAGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off")


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
CHECKED = ("-O1", "-g", "-fno-omit-frame-pointer")
BUILDS = {
    build.name: build
    for build in (
        Build("native", NATIVE_COMPILERS, NATIVE_ISAS, ("-O2",)),
        Build(
            "memory",
            NATIVE_COMPILERS,
            NATIVE_ISAS,
            (*CHECKED, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        ),
        Build("threads", NATIVE_COMPILERS, NATIVE_ISAS, (*CHECKED, "-fsanitize=thread")),
        Build("simde", NATIVE_COMPILERS, ("avx512",), ("-O2",), simde=True, shares="native"),
        Build("aarch64", ("aarch64-linux-gnu-g++",), ("neon",), ("-O2", "-static"), ("qemu-aarch64",)),
    )
}


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
        generator = ROOT / "formats" / "generate_layouts.py"
        layouts = [sys.executable, generator, ROOT / "formats" / "floats.toml", directory / "layouts.inc"]
        subprocess.run(layouts, check=True)

    def program(self, name: str, main: Path, *rest: Path) -> Path:
        """A program of C++ files and the library, in the build of that name."""
        build = BUILDS[name]
        out = self.directory / name / main.stem
        if not out.exists():
            compiler = self._compiler(build)
            library = [path for path in sorted(CSRC.glob("*.cc")) if isa_of(path) in ("", *build.isas)]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = list(pool.map(lambda source: self._object(build, source), [main, *rest, *library]))
            self._run([compiler, *build.flags, *objects, "-pthread", "-o", out])
        return out

    @staticmethod
    def _compiler(build: Build) -> str:
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

    def _object(self, build: Build, source: Path) -> Path:
        isa = isa_of(source)
        if build.shares and not isa and "NEUZIP_HAVE" not in source.read_text(encoding="utf-8"):
            return self._object(BUILDS[build.shares], source)
        out = self.directory / build.name / source.parent.name / f"{source.stem}.o"
        if out.exists():
            return out
        out.parent.mkdir(parents=True, exist_ok=True)
        flags = [*FLAGS, f"-I{CSRC}", f"-I{self.directory}"]
        flags += [f"-DNEUZIP_HAVE_{each.upper()}" for each in build.isas]
        if build.simde:
            # The compiler has a remark on 64-byte vectors passed in memory. Any processor will do.
            flags += [f"-I{SIMDE}", "-Wno-psabi", "-D__builtin_cpu_supports(feature)=1"]
        elif isa in ("avx2", "avx512"):
            flags += cmake_flags(f"{isa.upper()}_FLAGS")
        self._run([self._compiler(build), *flags, *build.flags, "-c", source, "-o", out])
        return out

    @staticmethod
    def _run(command: Iterable[str | Path]) -> None:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        if "cannot find -l" in done.stderr or "libclang_rt" in done.stderr:
            missing("the compiler comes without this sanitizer's library")
        assert done.returncode == 0, f"{' '.join(done.args)}\n{done.stderr}"
