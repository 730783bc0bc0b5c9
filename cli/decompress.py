"""`neuzip decompress`."""

from __future__ import annotations

from pathlib import Path

import click

from neuzip.cli import options, report, text
from neuzip.cli.progress import progress_bar


@click.command(
    epilog=options.show_examples(
        "neuzip decompress model.nz.safetensors   writes model.safetensors",
        "neuzip decompress Llama-3-8B.nz/ -o /data/Llama-3-8B",
    )
)
@options.source
@options.destination("X.nz.safetensors to X.safetensors, any other X.nz to X")
@options.threads
@options.remove
@options.force
@options.as_json
@options.quiet
def decompress(
    src: Path,
    dst: Path | None,
    threads: int | None,
    remove: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Restore SRC, a compressed file or directory, byte for byte.

    The result is compared with the original's sha256 before it takes its name.
    """
    from neuzip.checkpoint import decompress_file

    with progress_bar("decompress", src, quiet) as progress:
        done = decompress_file(src, dst, threads=threads, force=force, remove=remove, progress=progress)
    summary = (
        f"{text.printable(str(done.destination))}: {text.size(done.compressed_size)} -> "
        f"{text.size(done.original_size)}{report.count_files(done)} ({report.speed(done)})"
    )
    report.show(done, summary, as_json, quiet)
