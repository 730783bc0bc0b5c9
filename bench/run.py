"""Asks the questions of bench/; prints the table and what is met; writes results/ and the README's table.

QUESTIONs, of ratio, decode, encode and files, ask only those, and write nothing.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click
import decode
import encode
import files
import machine
import ratio
import torch
from alone import alone
from data import CACHE, TITLES, Dataset, datasets
from musts import judge
from plot import draw
from results import Answers, Results, from_json, to_json
from rich.console import Console
from rounds import Method, WrongBytes
from table import markdown, terminal_table, verdict_table

QUESTIONS = ("ratio", "decode", "encode", "files")
FOLDER = Path(__file__).parent / "results"
PLOT = "ratio_speed.png"
README = machine.ROOT / "README.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
TINY = Method(least=3, most=3)
WIDTH = 120  # of the tables, where the output is no terminal


def ask(data: Dataset, question: str, method: Method) -> Answers:
    """One question about one dataset."""
    torch.set_num_threads(1)  # the fresh copy is a limit for one thread
    if question == "ratio":
        return ratio.ask(data)
    return {"decode": decode.ask, "encode": encode.ask, "files": files.ask}[question](data, method)


def run(questions: tuple[str, ...], tiny: bool) -> Results:
    results = Results(
        date=datetime.now(UTC).date().isoformat(),
        commit=machine.commit(),
        machine=machine.this_machine(),
        versions=machine.versions(),
        method=TINY if tiny else Method(),
    )
    for data in datasets(tiny):
        for question in questions:
            if question == "files" and data.name not in files.DATA:
                continue
            click.echo(f"{TITLES[data.name]}: {question}", err=True)
            results = results.with_more(alone(ask, data, question, results.method))
    return results


def show(results: Results) -> None:
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(terminal_table(results))
    if verdicts := judge(results):
        console.print(verdict_table(verdicts))


def render(results: Results, folder: Path, readme: Path) -> None:
    """Draws the plot into folder and writes the table between the readme's markers."""
    draw(results, folder / PLOT)
    text = readme.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise click.ClickException(f"{readme.name} has no {BEGIN} … {END}")
    image = (folder / PLOT).relative_to(readme.parent).as_posix()
    readme.write_text(f"{head}{BEGIN}\n{markdown(results, image)}\n{END}{tail}", encoding="utf-8")


@click.command(help=__doc__)
@click.argument("questions", nargs=-1, type=click.Choice(QUESTIONS), metavar="[QUESTION]...")
@click.option(
    "--tiny", is_flag=True, help="Try the benchmarks on a few megabytes; writes to bench/.data/tiny."
)
@click.option(
    "--render",
    "source",
    type=click.Path(exists=True, path_type=Path),
    help="Measure nothing: show RESULTS.json again.",
)
def main(questions: tuple[str, ...], tiny: bool, source: Path | None) -> None:
    try:
        results = run(questions or QUESTIONS, tiny) if source is None else from_json(source)
    except WrongBytes as error:
        raise click.ClickException(str(error)) from error
    show(results)
    if questions and source is None:
        return
    folder, readme = (CACHE / "tiny", CACHE / "tiny" / "README.md") if tiny else (FOLDER, README)
    if tiny:
        readme.write_text(f"{BEGIN}{END}\n", encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    if source is None:
        verdicts = [asdict(verdict) for verdict in judge(results)]
        path = folder / f"{results.machine.slug}.json"
        path.write_text(to_json(results, verdicts), encoding="utf-8")
        click.echo(f"{path.name} written", err=True)
    render(results, folder, readme)


if __name__ == "__main__":
    main()
