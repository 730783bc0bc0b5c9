"""`neuzip diff`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuzip.cli import options, text
from neuzip.cli.progress import progress_bar

if TYPE_CHECKING:
    from neuzip.difference import Difference, Form, TensorDifference
    from neuzip.distance import Distance

DIFFERENT = 1
BAR = 40  # columns of the longest bar of the histogram


@click.command(
    epilog=options.show_examples(
        "neuzip diff model.safetensors model.nz.safetensors   is it still the same model",
        "neuzip diff base/ fine-tuned.nz/                     what training changed",
        "neuzip diff model.pt model.safetensors --json | jq '.tensors[].name'",
    )
)
@click.argument("a", type=options.FilePath())
@click.argument("b", type=options.FilePath())
@options.threads
@options.backend
@options.as_json
@options.quiet
@click.pass_context
def diff(
    ctx: click.Context,
    a: Path,
    b: Path,
    threads: int | None,
    backend: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show which tensors of A and B differ, and by how much.

    A and B are files with tensors (safetensors, PyTorch, GGUF, NumPy, ONNX) or directories of them, each compressed
    or not, and sharded as they like: tensors are paired by name. Metadata and other files are not compared.

    bits counts the bits that differ, signs the numbers whose sign does, NaN the elements that are NaN on either
    side. ULP is the distance in steps between neighbouring values of the type; −0 and +0 are 0 apart.

    Exits with 0 if all tensors are the same, byte for byte, 1 if some differ, 2 after an error.
    """
    from neuzip.difference import diff_files

    with progress_bar("diff", a, quiet) as progress:
        found = diff_files(a, b, threads, progress, backend)
    if as_json:
        text.document(document(found))
    elif not quiet:
        show(found)
    if found.tensors:
        ctx.exit(DIFFERENT)


def show(found: Difference) -> None:
    from neuzip.cli.tables import Column, print_table

    names = f"{text.printable(str(found.left))} and {text.printable(str(found.right))}"
    if not found.tensors:
        click.echo(f"{names}: {text.count(found.equal, 'tensor')}, all the same")
        return
    total = found.equal + len(found.tensors)
    verb = "differs" if len(found.tensors) == 1 else "differ"
    click.echo(f"{names}: {len(found.tensors)} of {text.count(total, 'tensor')} {verb}")
    columns = (
        Column("tensor", right=False, fold=True),
        Column("type", right=False),
        Column("shape"),
        Column("differing"),
        Column("of all"),
        Column("bits"),
        Column("signs"),
        Column("NaN"),
        Column("largest\nULP"),
    )
    print_table(columns, [cells(tensor) for tensor in found.tensors])
    histogram = sum_buckets(found)
    if histogram:
        click.echo("\nULP distances of differing elements")
        for line in bars(histogram):
            click.echo(line)


def cells(tensor: TensorDifference) -> list[str]:
    left, right, distance = tensor.left, tensor.right, tensor.distance
    name = (tensor.name or "–") if tensor.file is None else f"{tensor.file}: {tensor.name}"
    forms = [form for form in (left, right) if form is not None]
    types, shapes = (
        dict.fromkeys(part)
        for part in zip(*((form.dtype, text.shape(form.shape)) for form in forms), strict=True)
    )
    cells = [name, " → ".join(types), " → ".join(shapes)]
    if distance is None:
        return [*cells, "only in A" if right is None else "only in B" if left is None else "–", *("–",) * 5]
    return [
        *cells,
        f"{distance.differing:,}",
        text.percent(distance.differing, distance.elements),
        f"{distance.bits:,}",
        f"{distance.signs:,}",
        f"{distance.nan_left + distance.nan_right + distance.nan_both:,}",
        f"{distance.largest:,}",
    ]


def sum_buckets(found: Difference) -> list[int]:
    """The histograms of all tensors together."""
    histograms = [tensor.distance.buckets for tensor in found.tensors if tensor.distance is not None]
    length = max(map(len, histograms), default=0)
    return [sum(h[k] for h in histograms if k < len(h)) for k in range(length)]


def bars(histogram: list[int]) -> list[str]:
    """A line for each bucket that counts something, and one for each run of buckets that do not."""
    rows = [(bucket_title(k), f"{count:,}", count) for k, count in enumerate(histogram)]
    left, middle = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    lines = []
    for counts, run in itertools.groupby(rows, key=lambda row: row[2] > 0):
        if counts:
            for title, count, value in run:
                lines.append(f"{title:>{left}}  {count:>{middle}}  {'█' * -(-BAR * value // max(histogram))}")
        elif lines:
            lines.append(f"{'…':>{left}}")
    return lines


def bucket_title(number: int) -> str:
    """The distances of a bucket: `0`, `1`, `2 … 3`, `4 … 7`; with powers where the numbers get long."""
    if number < 2:
        return str(number)
    low, high = number - 1, number
    return f"{1 << low} … {(1 << high) - 1}" if high <= 16 else f"2^{low} … 2^{high} − 1"


def document(found: Difference) -> dict[str, Any]:
    """ulp_buckets: the lowest distance of a bucket to the count; a bucket ends where the next power of two is."""
    return {
        "left": str(found.left),
        "right": str(found.right),
        "equal": found.equal,
        "different": len(found.tensors),
        "tensors": [
            {
                "name": tensor.name,
                "file": tensor.file,
                "left": form_document(tensor.left),
                "right": form_document(tensor.right),
                "distance": None if tensor.distance is None else distance_document(tensor.distance),
            }
            for tensor in found.tensors
        ],
    }


def form_document(form: Form | None) -> dict[str, Any] | None:
    return None if form is None else {"dtype": form.dtype, "shape": form.shape}


def distance_document(distance: Distance) -> dict[str, Any]:
    return {
        "elements": distance.elements,
        "differing": distance.differing,
        "bits": distance.bits,
        "signs": distance.signs,
        "nan_left": distance.nan_left,
        "nan_right": distance.nan_right,
        "nan_both": distance.nan_both,
        "largest_ulp": distance.largest,
        "ulp_buckets": {
            str(0 if number == 0 else 1 << (number - 1)): count
            for number, count in enumerate(distance.buckets)
            if count
        },
    }
