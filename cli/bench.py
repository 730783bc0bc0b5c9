"""`neuzip bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuzip.cli import options, text
from neuzip.cli.progress import progress_bar

if TYPE_CHECKING:
    from neuzip.cli.comparison import Comparison, Score

TITLES = ("codec", "from/to", "ratio", "compress", "decompress", "same bytes")
RIGHT = ("ratio", "compress", "decompress")


@click.command(
    epilog=options.show_examples(
        "neuzip bench model.safetensors",
        "neuzip bench model.safetensors -j 1 --json > bench.json",
        "neuzip bench --gpu model.safetensors",
    )
)
@options.source
@click.option("--gpu", is_flag=True, help="Measure a CUDA device instead.")
@options.threads
@options.as_json
@options.quiet
def bench(src: Path, gpu: bool, threads: int | None, as_json: bool, quiet: bool) -> None:
    """Compare neuzip with other codecs on SRC's tensors.

    The others are zstd and, where installed, ZipNN (pip install zipnn) and lmz (pip install lmzip). Each
    codec compresses and decompresses every tensor once, in turn, with the same number of threads, and its
    output is compared byte for byte. Speeds are of original bytes. Rows from and to files include reading,
    writing and file checksums. SRC is a file with tensors of any kind, or
    a directory of them, compressed or not.

    With --gpu, of a safetensors file: decoding and encoding on the GPU, compressed tensors to it against
    plain ones, products with compressed matrices against cuBLAS, nvCOMP and, where installed, DFloat11
    (pip install dfloat11); the table can be pasted. Exits with 1 if there is no GPU that passed its self-test.
    """
    if gpu:
        from neuzip.cli.gpu_bench import bench_gpu

        bench_gpu(src, as_json)
        return
    from neuzip.cli.comparison import compare
    from neuzip.errors import CorruptFrame

    with progress_bar("bench", src, quiet) as progress:
        found = compare(src, threads, progress)
    if as_json:
        text.document(document(found))
    elif not quiet:
        show(found)
    for score in found.scores:
        if score.codec.ours and not score.equal:
            raise CorruptFrame(f"{score.codec.name} gave other bytes back", file=src)


def show(found: Comparison) -> None:
    from neuzip.cli.tables import Column, print_table

    size = max(score.original_size for score in found.scores)
    threads = text.count(found.threads, "thread")
    click.echo(f"{text.printable(str(found.source))}: {text.size(size)} of tensors, {threads}, one run")
    columns = [Column(title, right=title in RIGHT) for title in TITLES]
    print_table(columns, [cells(score) for score in found.scores])
    for score in found.scores:
        if score.error is not None:
            click.echo(f"{score.codec.name} failed: {text.printable(score.error)}")
        elif score.unsupported:
            click.echo(
                f"{score.codec.name} has no setting for {', '.join(sorted(score.unsupported))}: left out"
            )
    for name in found.absent:
        click.echo(f"{name} is not installed: pip install {name}")


def cells(score: Score) -> list[str]:
    if score.error is not None or score.original_size == 0:
        return [score.codec.name, score.codec.where, "–", "–", "–", "–"]
    return [
        score.codec.name,
        score.codec.where,
        text.ratio(score.compressed_size, score.original_size),
        text.rate(score.original_size, score.compress_seconds),
        text.rate(score.original_size, score.decompress_seconds),
        "yes" if score.equal else "NO",
    ]


def document(found: Comparison) -> dict[str, Any]:
    """Sizes in bytes, wall time in seconds."""
    return {
        "source": str(found.source),
        "threads": found.threads,
        "codecs": [
            {
                "name": score.codec.name,
                "where": score.codec.where,
                "original_size": score.original_size,
                "compressed_size": score.compressed_size,
                "ratio": score.compressed_size / score.original_size if score.original_size else None,
                "compress_seconds": score.compress_seconds,
                "decompress_seconds": score.decompress_seconds,
                "equal": score.equal,
                "unsupported": sorted(score.unsupported),
                "error": score.error,
            }
            for score in found.scores
        ],
        "not_installed": found.absent,
    }
