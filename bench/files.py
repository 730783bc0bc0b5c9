"""How fast are whole files, from file to file, with the programs people type? Beside lmz, at equal threads.

On a file system in memory where there is one; starting the program, checksums and digests included. Limits are copying
the original file, and starting the program to do nothing.
"""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from contenders import THREADS
from data import Dataset
from rounds import LIMIT, OURS, PEER, Contender, Label, Measurement, Method, measure

from neuzip.cli import peers

DATA = ("llama_bf16", "minilm_bf16", "minilm_fp32")
COMPRESS, DECOMPRESS = "compress files", "decompress files"


@dataclass(frozen=True)
class Program:
    """A command line; arguments makes those for (command, source, destination, threads)."""

    name: str
    role: str
    arguments: Callable[[str, Path, Path, int], list[str]]

    @property
    def path(self) -> str:
        """Beside this interpreter or, failing that, wherever it is found."""
        here = Path(sys.executable).parent
        found = shutil.which(self.name, path=str(here)) or shutil.which(self.name)
        if found is None:
            raise FileNotFoundError(f"the program {self.name} is not installed")
        return found

    def start(self, *arguments: str) -> None:
        subprocess.run([self.path, *arguments], check=True, capture_output=True)

    def run(self, command: str, source: Path, destination: Path, threads: int) -> None:
        self.start(*self.arguments(command, source, destination, threads))


def neuzip_arguments(command: str, source: Path, destination: Path, threads: int) -> list[str]:
    return [command, str(source), "-o", str(destination), "-j", str(threads), "-q"]


def lmz_arguments(command: str, source: Path, destination: Path, threads: int) -> list[str]:
    return [command, str(source), str(destination), "-j", str(threads), "-q"]


NEUZIP, LMZ = Program("neuzip", OURS, neuzip_arguments), Program("lmz", PEER, lmz_arguments)
PROGRAMS = (NEUZIP, LMZ)


def ask(data: Dataset, method: Method) -> list[Measurement]:
    for program in PROGRAMS:
        program.start("--version")  # the program's own files are in the page cache from now on
    size = data.path.stat().st_size
    cases = [(program, threads) for threads in (1, THREADS) for program in PROGRAMS]
    found = []
    with tempfile.TemporaryDirectory(dir=peers.scratch(8 * size)) as folder:
        source = Path(folder, "a.safetensors")
        shutil.copyfile(data.path, source)
        for question in (COMPRESS, DECOMPRESS):
            contenders = [contender(question, source, *case) for case in cases]
            contenders += limits(source)
            found += measure(question, data.name, size, contenders, method.least, warm=False)
    return found


def contender(question: str, source: Path, program: Program, threads: int) -> Contender:
    command = question.split()[0]
    packed = source.with_name(f"packed-{program.name}-{threads}")
    restored = source.with_name("restored")
    read, written = (source, packed) if question == COMPRESS else (packed, restored)

    def check(_: None) -> bool:
        if question == COMPRESS:
            return written.stat().st_size > 0  # restored, and compared, by the other question
        return filecmp.cmp(source, written, shallow=False)

    return Contender(
        Label(program.name, threads, "files", role=program.role),
        run=lambda _: program.run(command, read, written, threads),
        check=check,
        prepare=lambda: written.unlink(missing_ok=True),
    )


def limits(source: Path) -> list[Contender]:
    copy = source.with_name("copy")
    return [
        Contender(
            Label("cp of the original", 1, "files", role=LIMIT),
            run=lambda _: subprocess.run(["cp", str(source), str(copy)], check=True),
            check=lambda _: filecmp.cmp(source, copy, shallow=False),
            prepare=lambda: copy.unlink(missing_ok=True),
        ),
        Contender(
            Label("neuzip --version", 1, "files", role=LIMIT),
            run=lambda _: NEUZIP.start("--version"),
            check=lambda _: True,
        ),
    ]
