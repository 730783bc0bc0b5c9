"""What the tests of checkpoints share: a model file, looks at directories, a failing disk."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors_file import build, model

from neuzip import files

ORIGINAL = build(model(["BF16", "F32", "U8", "I64"]), {"format": "pt"})


def snapshot(root: Path) -> dict[str, tuple[str, int]]:
    """sha256 and mode of every file below a directory, or of one file."""
    paths = [root] if root.is_file() else [path for path in root.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(root)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            stat.S_IMODE(path.stat().st_mode),
        )
        for path in paths
    }


def manifest_of(root: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((root / "neuzip.json").read_text())
    return fields


def edit_manifest(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    fields = manifest_of(root)
    change(fields)
    (root / "neuzip.json").write_text(json.dumps(fields))


def damage_on_sync(monkeypatch: pytest.MonkeyPatch, position: int) -> None:
    """A disk that loses a bit of every draft when it is synced."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_file() and path.name != "neuzip.json":
            data = bytearray(path.read_bytes())
            data[position % len(data)] ^= 1
            path.write_bytes(data)

    monkeypatch.setattr(files.os, "fsync", fsync)
