"""Tables on the terminal's width; in a pipe as wide as their contents, so that nothing is cut."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from neuzip.cli.text import printable

PIPE_WIDTH = 100_000


@dataclass(frozen=True)
class Column:
    """A column, left out if it is hidden or the terminal has fewer than `wide` columns."""

    title: str
    right: bool = True
    wide: int = 0
    fold: bool = False
    hidden: bool = False


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table to stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(
        markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH
    )
    shown = [i for i, column in enumerate(columns) if not column.hidden and column.wide <= console.width]
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold"
    )
    for i in shown:
        column = columns[i]
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=not column.fold,
            overflow="fold" if column.fold else "ellipsis",
        )
    for row in rows:
        table.add_row(*(printable(row[i]) for i in shown))
    console.print(table)
