"""``formats/floats.toml`` as the library reads it, against safetensors, numpy, ml_dtypes and torch."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from neuzip.layouts import DTYPES, LAYOUTS, dtype_by_code

ROOT = Path(__file__).resolve().parent.parent

# Exponent bits of each float layout: `joint` needs eight and a second plane (spec §2).
EXPONENT_BITS = {"bf16": 8, "fp16": 5, "fp32": 8, "fp64": 11}
WIDTHS = {"opaque": 1, "bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8, "byte": 1}


def test_layouts() -> None:
    assert {name: layout.width for name, layout in LAYOUTS.items()} == WIDTHS
    assert sorted(layout.id for layout in LAYOUTS.values()) == list(range(len(LAYOUTS)))
    for name, layout in LAYOUTS.items():
        assert layout.name == name
        assert layout.planes == (name != "opaque")
        assert layout.rotate == (name in EXPONENT_BITS)
        assert layout.joint == (EXPONENT_BITS.get(name) == 8)


def test_codes_are_unique_and_fit_a_byte() -> None:
    codes = [dtype.code for dtype in DTYPES.values()]
    assert len(set(codes)) == len(codes)
    assert all(1 <= code <= 254 for code in codes)
    for name, dtype in DTYPES.items():
        assert dtype.name == name
        assert dtype_by_code(dtype.code) is dtype
    for unknown in (0, 255, -1, max(codes) + 1):
        assert dtype_by_code(unknown) is None


def test_codes_never_change() -> None:
    """Frames of released versions stay readable (spec §9): rows may only be added."""
    released = "BOOL U8 I8 I16 U16 I32 U32 I64 U64 F16 BF16 F32 F64 F8_E4M3 F8_E5M2 F8_E4M3FNUZ F8_E5M2FNUZ"
    released += " F8_E8M0 F4 F6_E2M3 F6_E3M2 C64 C128"
    assert {name: DTYPES[name].code for name in released.split()} == {
        name: code for code, name in enumerate(released.split(), 1)
    }


@pytest.mark.parametrize("name", [name for name, dtype in DTYPES.items() if dtype.numpy])
def test_numpy_type(name: str) -> None:
    dtype = DTYPES[name]
    assert dtype.numpy is not None
    found = np.dtype(getattr(np, dtype.numpy, None) or getattr(ml_dtypes, dtype.numpy))
    # ml_dtypes gives each packed four-bit float a byte of its own.
    assert found.itemsize == max(dtype.bits // 8, 1)
    if dtype.layout.name in EXPONENT_BITS and dtype.bits // 8 == dtype.layout.width:
        assert int(ml_dtypes.finfo(found).nexp) == EXPONENT_BITS[dtype.layout.name]


@pytest.mark.parametrize("name", [name for name, dtype in DTYPES.items() if dtype.torch])
def test_torch_type(name: str) -> None:
    torch = pytest.importorskip("torch")
    dtype = DTYPES[name]
    if not hasattr(torch, str(dtype.torch)):
        pytest.skip(f"this torch has no {dtype.torch}")
    assert getattr(torch, str(dtype.torch)).itemsize == max(dtype.bits // 8, 1)


def test_every_type_of_safetensors_is_there() -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    assert set(safetensors._TYPES) <= set(DTYPES)
    for name, torch_type in safetensors._TYPES.items():
        assert str(torch_type) == f"torch.{DTYPES[name].torch}"


def test_nbytes() -> None:
    assert DTYPES["BF16"].nbytes((3, 5)) == 30
    assert DTYPES["C128"].nbytes(()) == 16
    assert DTYPES["F64"].nbytes((1 << 40, 1 << 40)) == 1 << 83
    assert DTYPES["U8"].nbytes((5, 0, 7)) == 0
    assert DTYPES["F4"].nbytes((3, 2)) == 3
    assert DTYPES["F4"].nbytes((3,)) is None
    assert DTYPES["F6_E3M2"].nbytes((4,)) == 3
    assert DTYPES["F6_E3M2"].nbytes((2,)) is None


def test_rows_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DTYPES["F32"].code = 1  # type: ignore[misc]
    assert len({*DTYPES.values()}) == len(DTYPES)


def test_the_build_has_the_same_rows(tmp_path: Path) -> None:
    target = tmp_path / "layouts.inc"
    script = ROOT / "formats" / "generate_layouts.py"
    subprocess.run([sys.executable, script, ROOT / "formats" / "floats.toml", target], check=True)
    rows = [line for line in target.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    expected = [
        f'{{{layout.id}, "{layout.name}", {layout.width}, '
        + ", ".join(str(flag).lower() for flag in (layout.rotate, layout.joint, layout.planes))
        + "},"
        for layout in LAYOUTS.values()
    ]
    assert rows == expected
