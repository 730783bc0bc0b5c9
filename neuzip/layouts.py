"""The float layouts and dtypes of the format, read from ``formats/floats.toml`` (spec §2)."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """How a unit of ``width`` bytes is cut into planes."""

    id: int
    name: str
    width: int
    rotate: bool
    joint: bool
    planes: bool


@dataclass(frozen=True)
class DType:
    """A tensor's type: its code in frame headers, its safetensors name and its layout.

    ``torch`` and ``numpy`` are attribute names in torch and in numpy or ml_dtypes, or ``None``.
    """

    code: int
    name: str
    bits: int
    layout: Layout
    torch: str | None
    numpy: str | None

    def nbytes(self, shape: Sequence[int]) -> int | None:
        """Bytes of a tensor of this shape, or ``None`` if its elements do not fill whole bytes."""
        bits = math.prod(shape) * self.bits
        return bits // 8 if bits % 8 == 0 else None


def _floats_toml() -> Path:
    here = Path(__file__).parent
    installed = here / "formats" / "floats.toml"
    return installed if installed.exists() else here.parent / "formats" / "floats.toml"


def _read_tables() -> tuple[dict[str, Layout], dict[str, DType]]:
    rows = tomllib.loads(_floats_toml().read_text(encoding="utf-8"))
    layouts = {row["name"]: Layout(**row) for row in rows["layout"]}
    dtypes = {
        row["name"]: DType(
            row["code"], row["name"], row["bits"], layouts[row["layout"]], row.get("torch"), row.get("numpy")
        )
        for row in rows["dtype"]
    }
    return layouts, dtypes


LAYOUTS, DTYPES = _read_tables()
"""Layouts by name, and dtypes by safetensors name."""

_BY_CODE = {dtype.code: dtype for dtype in DTYPES.values()}


def dtype_by_code(code: int) -> DType | None:
    """The dtype with this code in frame headers, or ``None``."""
    return _BY_CODE.get(code)
