"""Asks how fast models with compressed weights train and answer; writes results/ and the README's table of it.

QUESTIONs, of train, prefill and token, ask only those, and write nothing.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click
import machine
from alone import alone
from models import FIXED, FRAMES, PREFILL, QUESTIONS, SGD, TINY_SCALE, TOKEN, TRAIN, Scale, ask, dtype_of
from musts import MET, MISSED, Verdict
from results import Results, from_json, to_json
from rounds import OURS, Measurement, Method, WrongBytes

FOLDER = Path(__file__).parent / "results" / "models"
BEGIN, END = "<!-- bench-models:begin -->", "<!-- bench-models:end -->"
NOTHING = "–"
TITLES = {
    TRAIN: "training step, 2,048 tokens",
    PREFILL: "prompt of 512 tokens",
    TOKEN: "one token, batch 1",
}
# At most so many times plain PyTorch's time; the training step with SGD, against whichever plain step is faster.
MUSTS = {(TRAIN, FRAMES): (1.25, None), (PREFILL, FRAMES): (1.15, None), (TOKEN, FIXED): (1.3, 1.0)}


def run(questions: tuple[str, ...], scale: Scale) -> Results:
    results = Results(
        date=datetime.now(UTC).date().isoformat(),
        commit=machine.commit(),
        machine=machine.this_machine(),
        versions=machine.versions(("neuzip-codec", "numpy", "torch")),
        method=Method(least=scale.rounds, most=scale.rounds),
    )
    for question in questions:
        for threads in scale.threads:
            for data in QUESTIONS[question]:
                click.echo(f"{TITLES[question]}, {data}, {named(threads)}", err=True)
                results = results.with_more(alone(ask, question, data, threads, scale))
    return results


def judge(results: Results) -> list[Verdict]:
    verdicts = []
    for (question, codec), (must, aim) in MUSTS.items():
        rows = [row for row in ours(results) if (row.question, row.label.codec) == (question, codec)]
        rows = [row for row in rows if question != TRAIN or row.data.endswith(f", {SGD}")]
        if not rows:
            continue
        measured = [f"{row.data}, {named(row.label.threads)}: {ratio(row):.2f}" for row in rows]
        met = all(ratio(row) <= must for row in rows)
        verdicts.append(
            Verdict(
                f"{TITLES[question]}, {codec}: times plain PyTorch",
                f"≤ {must}",
                f"≤ {aim}" if aim else "",
                tuple(measured),
                MET if met else MISSED,
            )
        )
    return verdicts


def ours(results: Results) -> list[Measurement]:
    return [row for row in results.measurements if row.label.role == OURS]


def ratio(row: Measurement) -> float:
    """The time with compressed weights, as a multiple of the fastest plain contender's."""
    return 1 / min(speedup for name, speedup in row.against.items() if name != "1 thread")


def named(threads: int) -> str:
    return f"{threads} thread" + "s" * (threads > 1)


def models(results: Results) -> str:
    """How many parameters each question's models have, in millions."""
    counts: dict[str, list[str]] = {}
    for row in results.measurements:
        millions = row.size / dtype_of(row.data).itemsize / 1e6
        count = f"{millions:.{0 if millions >= 10 else 1}f}"
        if count not in counts.setdefault(TITLES[row.question], []):
            counts[TITLES[row.question]].append(count)
    return "; ".join(f"{title}: {' and '.join(each)}" for title, each in counts.items())


def markdown(results: Results) -> str:
    """Whose numbers, and the table: a row for each contender, a column for each question, dtype and threads."""
    columns = list(dict.fromkeys((row.question, row.data, row.label.threads) for row in results.measurements))
    codecs = list(dict.fromkeys(row.label.codec for row in results.measurements))
    heads = [f"{TITLES[question]}, {data}, {named(threads)}" for question, data, threads in columns]
    lines = [
        f"{results.machine}. Commit {results.commit}, {results.date}; PyTorch {results.versions['torch']}. Medians of "
        f"{results.method.least} interleaved rounds, in milliseconds; in brackets, times plain PyTorch's, for SGD the "
        "faster plain step's. Losses and logits are equal to the bit. Millions of parameters of the Llama-like models: "
        f"{models(results)}. `bench/run_models` measures all of it again.",
        "",
        "| | " + " | ".join(codecs) + " |",
        "|---|" + "---:|" * len(codecs),
    ]
    for head, column in zip(heads, columns, strict=True):
        cells = [cell(results, column, codec) for codec in codecs]
        lines.append(f"| {head} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(results: Results, column: tuple[str, str, int], codec: str) -> str:
    for row in results.measurements:
        if (row.question, row.data, row.label.threads) == column and row.label.codec == codec:
            times = f" ({ratio(row):.2f}×)" if row.label.role == OURS else ""
            return f"{row.median_seconds * 1e3:.0f}{times}"
    return NOTHING


def render(results: Results, readme: Path) -> None:
    text = readme.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise click.ClickException(f"{readme.name} has no {BEGIN} … {END}")
    readme.write_text(f"{head}{BEGIN}\n{markdown(results)}\n{END}{tail}", encoding="utf-8")


@click.command(help=__doc__)
@click.argument("questions", nargs=-1, type=click.Choice(list(QUESTIONS)), metavar="[QUESTION]...")
@click.option("--tiny", is_flag=True, help="Try the benchmarks on a tiny model; writes nothing.")
@click.option(
    "--render",
    "source",
    type=click.Path(exists=True, path_type=Path),
    help="Measure nothing: show RESULTS.json again.",
)
def main(questions: tuple[str, ...], tiny: bool, source: Path | None) -> None:
    try:
        scale = TINY_SCALE if tiny else Scale()
        results = run(questions or tuple(QUESTIONS), scale) if source is None else from_json(source)
    except WrongBytes as error:
        raise click.ClickException(str(error)) from error
    verdicts = judge(results)
    click.echo(markdown(results))
    for verdict in verdicts:
        click.echo(f"{verdict.what} {verdict.must}: {verdict.verdict} ({'; '.join(verdict.measured)})")
    if tiny or (questions and source is None):
        return
    if source is None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        path = FOLDER / f"{results.machine.slug}.json"
        path.write_text(to_json(results, [asdict(verdict) for verdict in verdicts]), encoding="utf-8")
        click.echo(f"{path.name} written", err=True)
    render(results, machine.ROOT / "README.md")


if __name__ == "__main__":
    main()
