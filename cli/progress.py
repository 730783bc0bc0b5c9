"""The progress bar: on a terminal, on stderr, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from neuzip.cli.text import printable

LABEL = 28  # columns; leaves the bar some of 80


def label(verb: str, path: Path) -> str:
    name = printable(path.name.removesuffix(".safetensors").removesuffix(".nz") or str(path))
    room = LABEL - len(verb) - 1
    if len(name) > room:  # the end tells shards apart
        name = name[: room // 2 - 1] + "…" + name[len(name) - (room - room // 2) :]
    return f"{verb} {name}"


@contextmanager
def progress_bar(verb: str, path: Path, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Yields what the library calls with (done, total) original bytes; None where no bar is to be shown."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(
        desc=label(verb, path), unit="B", unit_scale=True, file=sys.stderr, leave=False, dynamic_ncols=True
    ) as bar:

        def advance(done: int, total: int) -> None:
            if bar.total != total:
                bar.reset(total)
            bar.update(done - bar.n)

        yield advance
