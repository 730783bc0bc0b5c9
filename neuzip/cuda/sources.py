"""The CUDA C++ sources of the kernels, as they lie in the package or in the source tree."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path


def directory() -> Path:
    """Where the sources are. An installed package has them inside itself."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "csrc" / "cuda"
    return installed if installed.is_dir() else package.parent / "csrc" / "cuda"


@cache
def digest() -> str:
    """A hash of all sources: what a verdict on them, and a compiled form, depend on."""
    state = hashlib.sha256()
    for path in sorted([*directory().glob("*.cu"), *directory().glob("*.cuh"), *directory().glob("*.h")]):
        state.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return state.hexdigest()


def read(name: str) -> str:
    """A source, preceded by the digest: a compiler cache that looks at this text sees headers change too."""
    text = (directory() / name).read_text(encoding="utf-8")
    return f'// {digest()}\n#line 1 "{name}"\n{text}'
