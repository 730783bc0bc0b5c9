"""The table of a run: sections of rows, one column for each dataset; on a terminal and in the README."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from data import TITLES
from files import COMPRESS, DECOMPRESS
from musts import MET, MISSED, Verdict
from ratio import BOUND, FILE, TENSORS
from results import Results
from rich.table import Table
from rounds import LIMIT, OURS, PEER, Label

ROLES = (OURS, PEER, LIMIT)
QUESTIONS = {
    "decode": "decode in memory, GB/s",
    "encode": "encode in memory, GB/s",
    COMPRESS: "compress files, GB/s",
    DECOMPRESS: "decompress files, GB/s",
}
MAIN_PEERS = ("ZipNN", "lmz")
ISAS = {"avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON", "scalar": "scalar"}
MEMORY = {"reused": "memory in use", "fresh": "fresh memory"}
NOTHING = "–"
DATA = (
    "MiniLM is all-MiniLM-L6-v2, cast; Llama-like is 748 MB of normal weights, scaled row by row. "
    "`bench/run` measures all of it again."
)
COLOURS = {MET: "green", MISSED: "red"}


@dataclass(frozen=True)
class Section:
    """rows: a name and a cell for each dataset of TITLES."""

    title: str
    rows: list[tuple[str, list[str]]]


def sections(results: Results) -> Iterator[Section]:
    for title, scope in (("size, tensors", TENSORS), ("size, whole files", FILE)):
        found = Section(f"{title}: compressed / original", list(ratio_rows(results, scope)))
        if found.rows:
            yield found
    for question, title in QUESTIONS.items():
        for threads in sorted({row.label.threads for row in results.measurements}):
            rows = list(speed_rows(results, question, threads))
            if rows:
                plural = "s" if threads > 1 else ""
                yield Section(f"{title}, {threads} thread{plural}", rows)


def ratio_rows(results: Results, scope: str) -> Iterator[tuple[str, list[str]]]:
    codecs = dict.fromkeys(row.codec for row in results.ratios if row.scope == scope)
    for codec in codecs:
        ratios = [results.ratio(data, codec, scope) for data in TITLES]
        name = f"{codec}, the usual bound" if codec == BOUND else codec
        yield name, [NOTHING if ratio is None else f"{ratio:.4f}" for ratio in ratios]


def speed_rows(results: Results, question: str, threads: int) -> Iterator[tuple[str, list[str]]]:
    rows = [row for row in results.measurements if row.question == question and row.label.threads == threads]
    labels = list(dict.fromkeys(row.label for row in rows))
    for label in sorted(labels, key=lambda label: ROLES.index(label.role)):
        cells = []
        for data in TITLES:
            found = next((row for row in rows if row.data == data and row.label == label), None)
            if found is None:
                cells.append(NOTHING)
                continue
            times = next((found.against[peer] for peer in MAIN_PEERS if peer in found.against), None)
            cells.append(f"{found.speed:.2f}" + (f" ({times:.1f}×)" if times is not None else ""))
        yield row_name(label, question), cells


def row_name(label: Label, question: str) -> str:
    parts = [label.codec]
    if label.isa is not None:
        parts.append(ISAS.get(label.isa, label.isa))
    if question == "decode" or (question == "encode" and label.role == OURS):
        parts.append(MEMORY[label.memory])
    if label.each:
        parts.append("a call a tensor")
    return ", ".join(parts)


def terminal_table(results: Results) -> Table:
    shown = Table(title=str(results.machine), caption=caption(results), title_justify="left")
    shown.add_column("")
    for title in TITLES.values():
        shown.add_column(title, justify="right")
    for section in sections(results):
        shown.add_section()
        shown.add_row(f"[bold]{section.title}")
        for name, cells in section.rows:
            shown.add_row(f"  {name}", *cells)
    return shown


def verdict_table(verdicts: list[Verdict]) -> Table:
    shown = Table(title="What the numbers must be", title_justify="left", show_lines=True)
    for title in ("what", "must", "aim"):
        shown.add_column(title)
    shown.add_column("measured", no_wrap=True)
    shown.add_column("verdict")
    for row in verdicts:
        colour = COLOURS.get(row.verdict, "yellow")
        shown.add_row(row.what, row.must, row.aim, "\n".join(row.measured), f"[{colour}]{row.verdict}")
    return shown


def caption(results: Results) -> str:
    versions = results.versions
    return (
        f"Commit {results.commit}, {results.date}; ZipNN {versions['zipnn']}, lmz {versions['lmzip']}, "
        f"zstd through zstandard {versions['zstandard']}. "
        f"Medians of at least {results.method.least} interleaved rounds, in GB (10⁹ bytes) of original bytes "
        "a second. In brackets: times as fast as ZipNN, or for files as lmz, with as many threads. "
        "ZipNN and zstd get each model in one call and make their own memory: fresh, or what malloc was told to keep."
    )


def markdown(results: Results, image: str) -> str:
    """The README's part: whose numbers, the table, the plot."""
    lines = [f"{results.machine}. {caption(results)} {DATA}", ""]
    lines.append("| | " + " | ".join(TITLES.values()) + " |")
    lines.append("|---|" + "---:|" * len(TITLES))
    for section in sections(results):
        lines.append(f"| **{section.title}** |" + " |" * len(TITLES))
        lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in section.rows]
    lines += ["", f"![Compressed size against decoding speed, with peers and limits]({image})"]
    return "\n".join(lines)
