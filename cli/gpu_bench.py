"""`neuzip bench --gpu`: its table, ready to be pasted."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuzip.cli import text

if TYPE_CHECKING:
    from neuzip.cli.gpu_trials import Row

TITLES = ("what", "how", "time", "original bytes", "speed-up", "remark")


def bench_gpu(path: Path, as_json: bool) -> None:
    """Measures and prints. Raises ClickException where no GPU is used."""
    from neuzip.cuda import why_off

    reason = why_off(_index())
    if reason is not None:
        raise click.ClickException(f"there is no GPU to measure: {reason}; `neuzip doctor --gpu` says more")
    from neuzip.cli.gpu_trials import Trials

    trials = Trials(path)
    found = list(trials.rows())
    rows = [each for each in found if not isinstance(each, str)]
    remarks = [each for each in found if isinstance(each, str)]
    if as_json:
        text.document({**_setting(trials), "rows": [asdict(row) for row in rows], "remarks": remarks})
        return
    click.echo(_heading(trials))
    click.echo()
    click.echo("\n".join(markdown([TITLES, *map(_cells, rows)])))
    click.echo()
    for remark in remarks:
        click.echo(f"not measured: {text.printable(remark)}")


def _index() -> int:
    """torch's current device, 0 where torch itself is what is missing."""
    from neuzip.cuda.obstacle import torch_obstacle

    if torch_obstacle() is not None:
        return 0
    from neuzip.cuda.driver import current

    driver = current()
    return 0 if driver.obstacle(0) is not None else driver.current_index()


def _setting(trials: Any) -> dict[str, Any]:
    import torch

    from neuzip.cli.diagnosis import own_version
    from neuzip.cuda import sources
    from neuzip.cuda.driver import current

    gpu = current().gpu(trials.index)
    return {
        "gpu": gpu.name,
        "capability": list(gpu.capability),
        "driver": gpu.driver,
        "neuzip": own_version(),
        "kernels": sources.digest()[:12],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "tensors": len(trials.tensors),
        "size": trials.size,
    }


def _heading(trials: Any) -> str:
    found = _setting(trials)
    major, minor = found["capability"]
    return (
        f"{found['gpu']} (sm_{major}{minor}, {found['driver']}), neuzip {found['neuzip']} "
        f"(kernels {found['kernels']}), PyTorch {found['torch']}, Python {found['python']}; "
        f"{text.count(found['tensors'], 'tensor')}, {text.size(found['size'])}; best of three"
    )


def _cells(row: Row) -> tuple[str, ...]:
    speedup = "" if row.baseline is None else f"{row.baseline / row.seconds:.2f} ×"
    return (
        row.what,
        row.how,
        f"{row.seconds * 1e6:.1f} µs" if row.seconds < 1e-2 else f"{row.seconds * 1e3:.1f} ms",
        text.rate(row.size, row.seconds),
        speedup,
        row.note,
    )


def markdown(rows: list[tuple[str, ...]]) -> list[str]:
    """A table as GitHub takes it, in columns of equal width."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
