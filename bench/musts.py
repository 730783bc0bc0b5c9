"""What the numbers must be, and whether they are. Each is judged on all data it names; the worst decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data import TITLES
from files import COMPRESS, DECOMPRESS
from files import DATA as FILES
from ratio import FILE, TENSORS
from results import Results

from neuzip.cli.diagnosis import why_unavailable

MET, MISSED, UNMEASURABLE = "met", "missed", "not measurable here"
BF16 = ("llama_bf16", "minilm_bf16")
OTHERS = ("minilm_fp16", "minilm_fp32", "minilm_fp8")
DEFAULT, MAX = "neuzip default", "neuzip max"
ZIPNN_LEAD = 0.0010  # of bf16's ratio


@dataclass(frozen=True)
class Finding:
    """One number and whether it suffices. met is None if it could not be had."""

    text: str
    met: bool | None


@dataclass(frozen=True)
class Must:
    what: str
    must: str
    aim: str
    findings: Callable[[Results], Iterator[Finding]]


@dataclass(frozen=True)
class Verdict:
    what: str
    must: str
    aim: str
    measured: tuple[str, ...]
    verdict: str


def judge(results: Results) -> list[Verdict]:
    """Of what was asked; a must whose questions were not asked is left out."""
    found = [(must, list(must.findings(results))) for must in MUSTS]
    return [verdict(must, findings) for must, findings in found if findings]


def verdict(must: Must, findings: list[Finding]) -> Verdict:
    if any(finding.met is False for finding in findings):
        word = MISSED
    elif any(finding.met is None for finding in findings):
        word = UNMEASURABLE
    else:
        word = MET
    texts = tuple(dict.fromkeys(finding.text for finding in findings))  # one reason is enough
    return Verdict(must.what, must.must, must.aim, texts, word)


def smaller(data: str, ours: float | None, limits: dict[str, float | None]) -> Iterator[Finding]:
    """Whether our ratio is at most the least of the peers'."""
    known = {name: limit for name, limit in limits.items() if limit is not None}
    if ours is not None and known:
        name, limit = min(known.items(), key=lambda item: item[1])
        yield Finding(f"{TITLES[data]}: {ours:.4f}, {name} {limit:.4f}", ours <= limit)


def ratio_default(results: Results) -> Iterator[Finding]:
    for data in BF16:
        zipnn = results.ratio(data, "ZipNN", TENSORS)
        limit = None if zipnn is None else zipnn - ZIPNN_LEAD
        yield from smaller(data, results.ratio(data, DEFAULT, TENSORS), {"ZipNN − .0010": limit})


def ratio_max(results: Results) -> Iterator[Finding]:
    for data in BF16:
        yield from smaller(data, results.ratio(data, MAX, FILE), {"lmz": results.ratio(data, "lmz", FILE)})


def ratio_others(results: Results) -> Iterator[Finding]:
    """Our whole file, header and digests included, against lmz's file and ZipNN's bare tensors."""
    for data in OTHERS:
        limits = {"ZipNN": results.ratio(data, "ZipNN", TENSORS), "lmz": results.ratio(data, "lmz", FILE)}
        yield from smaller(data, results.ratio(data, DEFAULT, FILE), limits)


@dataclass(frozen=True)
class Faster:
    """Our default level must be `least` times as fast as each of the peers or limits named in it."""

    question: str
    least: dict[str, float]
    data: tuple[str, ...] = BF16
    codec: str = DEFAULT
    memory: str | None = None
    isa: str | None = None
    threads: int = 1
    each: bool = False

    def __call__(self, results: Results) -> Iterator[Finding]:
        if not any(row.question == self.question for row in results.measurements):
            return
        if self.isa is not None and self.isa not in results.machine.isas:
            yield Finding(f"no {self.isa} here: {why_unavailable(self.isa)}", None)
            return
        if self.threads > results.machine.cores:
            yield Finding(f"{results.machine.cores} core here", None)
            return
        threads = "" if self.threads == 1 else f", {self.threads} threads"
        for data in self.data:
            found = results.find(
                self.question, data, self.codec, self.threads, self.memory, self.isa, self.each
            )
            if found is None:
                continue
            for name, least in self.least.items():
                times = found.against[name]
                yield Finding(
                    f"{TITLES[data]}, {self.question}{threads}: {times:.2f}× {name}", times >= least
                )


def both(*parts: Faster) -> Callable[[Results], Iterator[Finding]]:
    def findings(results: Results) -> Iterator[Finding]:
        for part in parts:
            yield from part(results)

    return findings


def program(question: str, threads: int) -> Faster:
    return Faster(question, {"lmz": 3}, FILES, "neuzip", threads=threads)


MUSTS = (
    Must("bf16 ratio, default", "≤ ZipNN − .0010", ".6619 / .664", ratio_default),
    Must("bf16 ratio, max", "≤ lmz", "≤ .6575 / ≤ .660", ratio_max),
    Must("fp16, fp32, fp8 ratio", "≤ the better of ZipNN and lmz", ".848, ≤ .82, ≤ .822", ratio_others),
    Must(
        "decode, 1 thread, AVX-512, reused out",
        "≥ 5× ZipNN, ≥ .6× memcpy",
        ".85× memcpy",
        Faster("decode", {"ZipNN": 5, "memcpy, reused": 0.6}, memory="reused", isa="avx512"),
    ),
    Must(
        "decode, 1 thread, AVX2 forced",
        "≥ 2.5× ZipNN",
        "3×",
        Faster("decode", {"ZipNN": 2.5}, memory="reused", isa="avx2"),
    ),
    Must(
        "decode to fresh memory, public API",
        "≥ 1.8× ZipNN",
        "a fresh copy's speed",
        Faster("decode", {"ZipNN": 1.8}, memory="fresh"),
    ),
    Must("encode, 1 thread, public API", "≥ 3× ZipNN", "5×", Faster("encode", {"ZipNN": 3}, each=True)),
    Must(
        "2 threads against 1",
        "≥ 1.7× both ways",
        "1.9×",
        both(
            Faster("decode", {"1 thread": 1.7}, memory="reused", threads=2),
            Faster("encode", {"1 thread": 1.7}, threads=2),
        ),
    ),
    Must(
        "whole files, command line, 1 and 2 threads",
        "≥ 3× lmz both ways",
        "I/O bound",
        both(*(program(question, threads) for threads in (1, 2) for question in (COMPRESS, DECOMPRESS))),
    ),
)
