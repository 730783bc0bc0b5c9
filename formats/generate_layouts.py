"""Writes the rows of floats.toml as C++ initialisers for csrc/layout.h. Run by the build.

Usage: generate_layouts.py floats.toml layouts.inc
The dtypes go to dtypes.inc beside the layouts.
"""

import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WIDTHS = (1, 2, 4, 8)


def check(layouts: list[dict[str, Any]], dtypes: list[dict[str, Any]]) -> None:
    """Refuses a table that breaks spec §2, so that a wrong row stops the build."""
    if [layout["id"] for layout in layouts] != list(range(len(layouts))):
        raise ValueError("layout ids must be 0, 1, 2, … in the order of the rows")
    names = {layout["name"] for layout in layouts}
    if len(names) != len(layouts):
        raise ValueError("two layouts share a name")
    for layout in layouts:
        if layout["width"] not in WIDTHS:
            raise ValueError(f"layout {layout['name']}: width {layout['width']} is not one of {WIDTHS}")
        if layout["rotate"] and layout["width"] == 1:
            raise ValueError(f"layout {layout['name']}: only units of 2 bytes and more are rotated")
        if layout["joint"] and not layout["rotate"]:
            raise ValueError(f"layout {layout['name']}: mode joint needs a rotated sign")
    for field in ("code", "name"):
        if len({dtype[field] for dtype in dtypes}) != len(dtypes):
            raise ValueError(f"two dtypes share a {field}")
    for dtype in dtypes:
        if dtype["layout"] not in names:
            raise ValueError(f"dtype {dtype['name']}: no layout {dtype['layout']}")


def row(layout: dict[str, Any]) -> str:
    """One initialiser, fields in the order of struct Layout."""
    flags = ", ".join(str(layout[flag]).lower() for flag in ("rotate", "joint", "planes"))
    return f'{{{layout["id"]}, "{layout["name"]}", {layout["width"]}, {flags}}},'


def dtype_row(dtype: dict[str, Any], ids: dict[str, int]) -> str:
    """One initialiser, fields in the order of struct DType."""
    return f"{{{dtype['code']}, {dtype['bits']}, {ids[dtype['layout']]}}},  // {dtype['name']}"


def main(source: Path, target: Path) -> None:
    table = tomllib.loads(source.read_text(encoding="utf-8"))
    check(table["layout"], table["dtype"])
    ids = {layout["name"]: layout["id"] for layout in table["layout"]}
    target.parent.mkdir(parents=True, exist_ok=True)
    write(target, source, map(row, table["layout"]))
    write(target.with_name("dtypes.inc"), source, (dtype_row(dtype, ids) for dtype in table["dtype"]))


def write(target: Path, source: Path, rows: Iterable[str]) -> None:
    head = f"// Written from {source.name} by generate_layouts.py."
    target.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
