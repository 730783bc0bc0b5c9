"""`neuzip verify`."""

from __future__ import annotations

from pathlib import Path

import click

from neuzip.cli import options, report, text
from neuzip.cli.progress import progress_bar


@click.command(
    epilog=options.show_examples(
        "neuzip verify model.nz.safetensors",
        "neuzip verify Llama-3-8B.nz/ -q && echo intact",
    )
)
@options.source
@options.threads
@options.backend
@options.as_json
@options.quiet
def verify(src: Path, threads: int | None, backend: str | None, as_json: bool, quiet: bool) -> None:
    """Decode SRC and compare every checksum, writing nothing.

    Exits with 1 and lists every file, tensor and chunk that is damaged or missing.
    """
    from neuzip.checkpoint import verify_file
    from neuzip.errors import DamagedFile

    try:
        with progress_bar("verify", src, quiet) as progress:
            done = verify_file(src, threads=threads, backend=backend, progress=progress)
    except DamagedFile as error:
        if as_json:
            text.document({"source": str(src), "damages": report.describe(error.damages)})
        else:
            report.show_damages(error.damages)
        raise report.Damaged(src, error.damages) from error
    name = text.printable(str(done.source))
    if any(file.coding == "plain" for file in done.files):
        summary = f"{name}: not compressed; well formed, but without checksums to verify"
    else:
        size = f"{text.size(done.original_size)}{report.count_files(done)}"
        summary = f"{name}: intact, {size} ({report.speed(done)})"
    report.show(done, summary, as_json, quiet)
