"""What compress, decompress and verify say when they are done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuzip.cli import text

if TYPE_CHECKING:
    from neuzip.errors import NeuzipError
    from neuzip.report import Report


def document(report: Report) -> dict[str, Any]:
    """The report as JSON: sizes in bytes, seconds of wall time."""
    return {
        "source": str(report.source),
        "destination": None if report.destination is None else str(report.destination),
        "original_size": report.original_size,
        "compressed_size": report.compressed_size,
        "seconds": report.seconds,
        "files": [
            {
                "path": str(file.path),
                "original_size": file.original_size,
                "compressed_size": file.compressed_size,
                "coding": file.coding,
            }
            for file in report.files
        ],
        "damages": describe(report.damages),
    }


class Damaged(click.ClickException):
    """Ends the program where a part of its source is damaged."""

    exit_code = 1

    def __init__(self, source: Path, damages: Sequence[NeuzipError]) -> None:
        super().__init__(f"{source}: {text.count(len(damages), 'damage')}")

    def show(self, file: Any = None) -> None:
        click.echo(f"neuzip: {text.printable(self.message)}", err=True)


def describe(damages: Sequence[NeuzipError]) -> list[dict[str, Any]]:
    """Damages as JSON."""
    return [
        {
            "file": damage.file,
            "tensor": damage.tensor,
            "chunk": damage.chunk,
            "offset": damage.offset,
            "message": damage.message,
        }
        for damage in damages
    ]


def show_damages(damages: Sequence[NeuzipError]) -> None:
    """A line for each."""
    for damage in damages:
        click.echo(text.printable(str(damage)))


def speed(report: Report) -> str:
    return f"{text.duration(report.seconds)}, {text.rate(report.original_size, report.seconds)}"


def count_files(report: Report) -> str:
    """` in 14 files (3 compressed)` for a directory, nothing for a file."""
    if len(report.files) < 2:
        return ""
    compressed = sum(file.coding in ("container", "archive") for file in report.files)
    return f" in {len(report.files)} files ({compressed} compressed)"


def show(report: Report, summary: str, as_json: bool, quiet: bool) -> None:
    if as_json:
        text.document(document(report))
    elif not quiet:
        click.echo(summary)
