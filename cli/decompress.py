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
        "neuzip decompress damaged.nz.safetensors --salvage -o rest.safetensors",
    )
)
@options.source
@options.destination("X.nz.safetensors to X.safetensors, any other X.nz to X")
@options.threads
@options.backend
@click.option("--salvage", is_flag=True, help="Restore what is intact of a damaged SRC, and list the rest.")
@options.remove
@options.force
@options.as_json
@options.quiet
def decompress(
    src: Path,
    dst: Path | None,
    threads: int | None,
    backend: str | None,
    salvage: bool,
    remove: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Restore SRC, a compressed file or directory, byte for byte.

    The result is compared with the original's sha256 before it takes its name.

    With --salvage, a damaged safetensors file is restored without the tensors that are damaged, another file with
    zeros in their place. What is damaged is listed, and the exit code is 1.
    """
    from neuzip.checkpoint import decompress_file

    with progress_bar("decompress", src, quiet) as progress:
        done = decompress_file(
            src,
            dst,
            threads=threads,
            backend=backend,
            force=force,
            remove=remove,
            progress=progress,
            salvage=salvage,
        )
    summary = (
        f"{text.printable(str(done.destination))}: {text.size(done.compressed_size)} -> "
        f"{text.size(done.original_size)}{report.count_files(done)} ({report.speed(done)})"
    )
    report.show(done, summary, as_json, quiet)
    if done.damages:
        if not as_json:
            report.show_damages(done.damages)
        raise report.Damaged(done.source, done.damages)
