"""`neuzip inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuzip.cli import options, text
from neuzip.cli.progress import progress_bar

if TYPE_CHECKING:
    from neuzip.inspection import Inspection, TensorInspection


WIDE = 110  # columns of a terminal that shows everything


@click.command(
    epilog=options.show_examples(
        "neuzip inspect model.nz.safetensors          how far from the entropy bound",
        "neuzip inspect pytorch_model.bin             what compression could reach",
        "neuzip inspect model.nz.safetensors --html report.html",
        "neuzip inspect model.nz.safetensors --json | jq '.files[0].tensors[0]'",
    )
)
@options.source
@options.threads
@options.backend
@click.option("--html", type=options.FilePath(), metavar="PAGE", help="Also write a report to look at.")
@click.option("--force", "-f", is_flag=True, help="Replace PAGE if it exists.")
@options.as_json
@options.quiet
def inspect(
    src: Path,
    threads: int | None,
    backend: str | None,
    html: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show where SRC's bytes go, tensor by tensor.

    SRC is a file in which tensors are known (safetensors, PyTorch, GGUF, NumPy, ONNX), compressed or not, or a
    directory of them.

    exp bits is the entropy of the exponents in bits an element. bound is the ratio at which the exponent
    plane takes its order-0 entropy and all other bits are stored as they are; gap is ratio minus bound,
    negative where the bound is beaten. Terminals of 110 columns, pipes and --json also show compressed sizes
    and how each plane was coded.

    PAGE is one HTML file that needs no network: bytes by layer and plane, exponents, ratios against the bound,
    the worst and the best tensors, and tensors that hold the same bytes.
    """
    from neuzip.codec import Options
    from neuzip.files import refuse_existing
    from neuzip.inspection import inspect_file
    from neuzip.tensor_file import list_files

    if html is not None:  # now, not after an hour
        refuse_existing(html, force=force, directory=False)
    inspections = []
    for path in list_files(src, Options(backend=backend)):
        with progress_bar("inspect", path, quiet) as progress:
            inspections.append(inspect_file(path, threads, progress, backend))
    if html is not None:
        from neuzip.cli import page

        page.write(src, inspections, html, force)
    if as_json:
        text.document(
            {"source": str(src), **totals(inspections), "files": [document(found) for found in inspections]}
        )
    elif not quiet:
        for found in inspections:
            show(found)
        if len(inspections) > 1:
            click.echo(f"{len(inspections)} files: {summary(**totals(inspections))}")


def totals(inspections: list[Inspection]) -> dict[str, Any]:
    """Sums over files; a file that is not compressed counts as it is beside others that are."""
    original = sum(found.original_size for found in inspections)
    compressed = None
    if any(found.compressed_size is not None for found in inspections):
        compressed = sum(
            found.original_size if found.compressed_size is None else found.compressed_size
            for found in inspections
        )
    bound = sum(found.bound_size for found in inspections)
    return {"original_size": original, "compressed_size": compressed, "bound_size": round(bound)}


def summary(original_size: int, compressed_size: int | None, bound_size: int) -> str:
    bound = text.ratio(bound_size, original_size)
    if compressed_size is None:
        return f"{text.size(original_size)}, entropy bound {bound}"
    gap = text.difference((compressed_size - bound_size) / original_size)
    return (
        f"{text.size(original_size)} -> {text.size(compressed_size)}, "
        f"ratio {text.ratio(compressed_size, original_size)}, entropy bound {bound}, gap {gap}"
    )


def show(found: Inspection) -> None:
    from neuzip.cli.tables import Column, print_table

    plain = found.compressed_size is None
    columns = (
        Column("tensor", right=False, fold=True),
        Column("type", right=False),
        Column("shape"),
        Column("size"),
        Column("compressed", hidden=plain, wide=WIDE),
        Column("ratio", hidden=plain),
        Column("bound"),
        Column("gap", hidden=plain),
        Column("exp\nbits"),
        Column("planes", right=False, hidden=plain, wide=WIDE),
    )
    state = "not compressed" if plain else "compressed"
    click.echo(f"{text.printable(str(found.path))}: {state}, {text.count(len(found.tensors), 'tensor')}")
    print_table(columns, [cells(tensor) for tensor in found.tensors])
    click.echo(summary(**totals([found])))


def cells(tensor: TensorInspection) -> list[str]:
    return [
        tensor.name or "–",
        tensor.dtype,
        text.shape(tensor.shape),
        text.size(tensor.original_size),
        "–" if tensor.compressed_size is None else text.size(tensor.compressed_size),
        text.ratio(tensor.compressed_size, tensor.original_size),
        text.ratio(tensor.bound_size, tensor.original_size),
        text.difference(tensor.distance),
        "–" if tensor.exponent_entropy is None else f"{tensor.exponent_entropy:.2f}",
        planes(tensor),
    ]


def planes(tensor: TensorInspection) -> str:
    """Modes of the planes, most significant first: `joint six`, `rank+raw raw`; else the coding."""
    if not tensor.planes:
        return tensor.coding or ""
    return " ".join("+".join(modes) for modes in tensor.planes)


def document(found: Inspection) -> dict[str, Any]:
    return {
        "path": str(found.path),
        **totals([found]),
        "tensors": [
            {
                "name": tensor.name,
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "original_size": tensor.original_size,
                "compressed_size": tensor.compressed_size,
                "ratio": tensor.ratio,
                "exponent_entropy_bits": tensor.exponent_entropy,
                "bound_size": tensor.bound_size,
                "bound_ratio": tensor.bound_ratio,
                "distance": tensor.distance,
                "coding": tensor.coding,
                "planes": tensor.planes,
                "plane_sizes": tensor.plane_sizes,
                "exponents": tensor.exponents,
                "checksum": tensor.checksum,
            }
            for tensor in found.tensors
        ],
    }
