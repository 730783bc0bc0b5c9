"""`neuzip compress`."""

from __future__ import annotations

from pathlib import Path

import click

from neuzip.cli import options, report, text
from neuzip.cli.progress import progress_bar


@click.command(
    epilog=options.show_examples(
        "neuzip compress model.safetensors         writes model.nz.safetensors",
        "neuzip compress Llama-3-8B/ --level max   writes Llama-3-8B.nz/",
        "neuzip compress pytorch_model.bin         writes pytorch_model.bin.nz",
        "neuzip compress model.safetensors -o small.nz.safetensors --rm",
    )
)
@options.source
@options.destination("X.safetensors to X.nz.safetensors, any other X to X.nz")
@click.option(
    "--level",
    type=click.Choice(["default", "max"]),
    default="default",
    show_default=True,
    help="max codes mantissa bits too: a little smaller, slower.",
)
@options.threads
@options.backend
@options.remove
@options.force
@options.as_json
@options.quiet
def compress(
    src: Path,
    dst: Path | None,
    level: str,
    threads: int | None,
    backend: str | None,
    remove: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compress SRC, a file of any kind or a model's directory.

    What shrinks are the tensors in safetensors, PyTorch, GGUF, NumPy and ONNX files; any other file goes through
    zstandard. Of a directory every file is kept, text as it is, for libraries to read; nothing is lost. Interrupted,
    it goes on from there when the command is repeated.
    """
    from neuzip.checkpoint import compress_file

    with progress_bar("compress", src, quiet) as progress:
        done = compress_file(
            src,
            dst,
            level=level,
            threads=threads,
            backend=backend,
            force=force,
            remove=remove,
            progress=progress,
        )
    summary = (
        f"{text.printable(str(done.destination))}: {text.size(done.original_size)} -> "
        f"{text.size(done.compressed_size)}{report.count_files(done)}, "
        f"ratio {text.ratio(done.compressed_size, done.original_size)} ({report.speed(done)})"
    )
    report.show(done, summary, as_json, quiet)
