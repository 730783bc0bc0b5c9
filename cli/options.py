"""The options that commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


class FilePath(click.Path):
    """A path as the user wrote it; what it is and may be read is the library's question, answered with exit code 1."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, readable=False)


def source(command: Command) -> Command:
    return click.argument("src", type=FilePath())(command)


def destination(default: str) -> Callable[[Command], Command]:
    text = f"Write here. [default: {default}]"
    return click.option("-o", "--output", "dst", type=FilePath(), metavar="DST", help=text)


def threads(command: Command) -> Command:
    return click.option(
        "-j", "--threads", type=click.IntRange(min=1), metavar="N", help="Threads. [default: all cores]"
    )(command)


def backend(command: Command) -> Command:
    return click.option(
        "--backend",
        type=click.Choice(["mmap", "read"]),
        help="Read files through a memory map or with plain reads. [default: read on network file systems]",
    )(command)


def remove(command: Command) -> Command:
    return click.option(
        "--rm", "remove", is_flag=True, help="Delete SRC once the result was read back and compared."
    )(command)


def force(command: Command) -> Command:
    return click.option("--force", "-f", is_flag=True, help="Replace DST if it exists.")(command)


def as_json(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document, not text.")(command)


def quiet(command: Command) -> Command:
    return click.option("-q", "--quiet", is_flag=True, help="No progress bar and no summary.")(command)


def show_examples(*lines: str) -> str:
    """An epilog; `\\b` keeps click from filling the lines."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
