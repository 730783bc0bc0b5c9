"""Numbers and names as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click


def printable(text: str) -> str:
    """`text` with control characters and lone surrogates escaped: names come from files of unknown origin."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def size(count: float) -> str:
    """Bytes with a decimal unit and three digits: `90.9 MB`."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if count < 999.5 or unit == "TB":
            break
    digits = 2 if count < 9.995 else 1 if count < 99.95 else 0
    return f"{count:.{digits}f} {unit}"


def rate(count: float, seconds: float) -> str:
    """Bytes a second: `5.12 GB/s`."""
    return f"{size(count / seconds)}/s" if seconds > 0 else "–"


def duration(seconds: float) -> str:
    """`0.21 s`, `4 min 10 s`."""
    if seconds < 100:
        return f"{seconds:.2f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def ratio(part: float | None, whole: float) -> str:
    """Compressed over original size: `.6634`; `–` where there is none."""
    if part is None or whole == 0:
        return "–"
    text = f"{part / whole:.4f}"
    return text.removeprefix("0") if part < whole else text


def count(number: int, noun: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def difference(value: float | None) -> str:
    """A difference of ratios: `+.0012`."""
    return "–" if value is None else f"{value:+.4f}".replace("0.", ".", 1)


def shape(extents: Sequence[int]) -> str:
    """`4096×4096`; `scalar` for no dimensions."""
    return "×".join(map(str, extents)) or "scalar"


def percent(part: float, whole: float) -> str:
    """`12.3 %`, never rounded to nothing or all; `–` of nothing."""
    if whole == 0:
        return "–"
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "< 0.1 %"
    return "> 99.9 %" if 99.9 < share < 100 else f"{share:.1f} %"


def document(value: Any) -> None:
    """Prints one JSON document."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False))
