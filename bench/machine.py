"""What the numbers belong to: processor, memory, versions, commit; nothing that names a host or a path."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from contenders import available_isas

ROOT = Path(__file__).parent.parent
PACKAGES = ("neuzip-codec", "zipnn", "lmzip", "zstandard", "numpy", "torch", "safetensors")
# Files that a run itself writes; changing them leaves the commit the commit.
WRITTEN = (":!README.md", ":!bench/results")


@dataclass(frozen=True)
class Machine:
    """memory: bytes. isas: the best first. huge_pages: the system's setting for transparent ones, or None."""

    processor: str
    architecture: str
    cores: int
    memory: int
    isas: tuple[str, ...]
    system: str
    huge_pages: str | None

    @property
    def slug(self) -> str:
        """A file name: amd-epyc-9354-2-cores-avx2."""
        text = f"{self.processor} {self.cores} cores {self.isas[0]}".lower()
        text = re.sub(r"\((r|tm)\)|\bcpu\b|@.*?hz", " ", text)
        return re.sub(r"[^a-z0-9]+", "-", text).strip("-")

    def __str__(self) -> str:
        isas = ", ".join(isa for isa in self.isas if isa != "scalar") or "scalar loops"
        memory = f"{self.memory / 2**30:.0f} GiB"
        return f"{self.processor}, {self.cores} cores, {isas.upper()}, {memory}, {self.system}"


def this_machine() -> Machine:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        processor=processor(),
        architecture=platform.machine(),
        cores=usable,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        isas=tuple(available_isas()),
        system=platform.system(),
        huge_pages=huge_pages(),
    )


def processor() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", listing.read_text(), re.MULTILINE)
        if found:
            return re.sub(r"\s+", " ", found[1]).strip()
    return platform.processor() or platform.machine()


def huge_pages() -> str | None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    found = re.search(r"\[(\w+)\]", setting.read_text()) if setting.exists() else None
    return found[1] if found else None


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def commit() -> str:
    """The commit the numbers are of; with "+" if anything was changed since, "unknown" without git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        name = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *WRITTEN)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if changed else "")
