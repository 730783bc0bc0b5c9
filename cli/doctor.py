"""`neuzip doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from neuzip.cli import options, text

if TYPE_CHECKING:
    from neuzip.cli.diagnosis import Diagnosis, Finding


@click.command(
    epilog=options.show_examples("neuzip doctor", "neuzip doctor --gpu", "neuzip doctor --json > report.json")
)
@click.option("--gpu", is_flag=True, help="Run the self-test of each CUDA device, whatever it said before.")
@options.as_json
@click.pass_context
def doctor(ctx: click.Context, gpu: bool, as_json: bool) -> None:
    """Show what this installation uses, and why it uses nothing else.

    Exits with 1 if the codec library cannot be loaded, and, with --gpu, if no CUDA device passes its self-test.
    """
    from neuzip.cli.diagnosis import diagnose

    found = diagnose(gpu)
    if as_json:
        text.document(asdict(found))
    else:
        show(found)
    cuda = any(backend.used for backend in found.backends if backend.name != "cpu")
    if not found.library.used or (gpu and not cuda):
        ctx.exit(1)


def show(found: Diagnosis) -> None:
    click.echo(f"neuzip {found.version}, Python {found.python}, {found.platform}")
    show_findings("codec", [found.library, found.threads])
    show_findings("instruction sets", found.instruction_sets)
    show_findings("backends", found.backends)
    show_findings("packages", found.packages)


def show_findings(title: str, findings: list[Finding]) -> None:
    if not findings:
        return
    click.echo(f"\n{title}")
    for finding in findings:
        mark = "used" if finding.used else "not used"
        click.echo(f"  {finding.name:<12} {mark:<9} {text.printable(finding.detail)}")
