"""The results of a run, as they stand in bench/results/*.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from machine import Machine
from ratio import Ratio
from rounds import Label, Measurement, Method

Answers = Sequence[Ratio] | Sequence[Measurement]
DIGITS = 6  # of seconds: microseconds


@dataclass(frozen=True)
class Results:
    date: str
    commit: str
    machine: Machine
    versions: dict[str, str]
    method: Method
    ratios: tuple[Ratio, ...] = ()
    measurements: tuple[Measurement, ...] = ()

    def with_more(self, answers: Answers) -> Results:
        return replace(
            self,
            ratios=(*self.ratios, *(row for row in answers if isinstance(row, Ratio))),
            measurements=(*self.measurements, *(row for row in answers if isinstance(row, Measurement))),
        )

    def ratio(self, data: str, codec: str, scope: str) -> float | None:
        for row in self.ratios:
            if (row.data, row.codec, row.scope) == (data, codec, scope):
                return row.ratio
        return None

    def find(
        self,
        question: str,
        data: str,
        codec: str,
        threads: int = 1,
        memory: str | None = None,
        isa: str | None = None,
        each: bool = False,
    ) -> Measurement | None:
        """The first that fits: of several instruction sets, the best. None leaves a choice open."""
        for row in self.measurements:
            label = row.label
            if (row.question, row.data) != (question, data):
                continue
            if (label.codec, label.threads, label.each) != (codec, threads, each):
                continue
            if memory in (None, label.memory) and isa in (None, label.isa):
                return row
        return None


def to_json(results: Results, musts: list[dict[str, Any]]) -> str:
    """musts: the verdicts, for readers; from_json does not need them."""
    document = asdict(results)
    for row, ratio in zip(document["ratios"], results.ratios, strict=True):
        row["ratio"] = round(ratio.ratio, 5)
    for row, measurement in zip(document["measurements"], results.measurements, strict=True):
        row["median_gb_per_s"] = round(measurement.speed, 3)
        row["best_gb_per_s"] = round(measurement.size / measurement.best_seconds / 1e9, 3)
        row["median_seconds"] = round(measurement.median_seconds, DIGITS)
        row["best_seconds"] = round(measurement.best_seconds, DIGITS)
        row["against"] = {name: round(times, 3) for name, times in measurement.against.items()}
    document["musts"] = musts
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def from_json(path: Path) -> Results:
    document = json.loads(path.read_text(encoding="utf-8"))
    del document["musts"]
    machine, method = document.pop("machine"), document.pop("method")
    ratios, measurements = document.pop("ratios"), document.pop("measurements")
    for row in ratios:
        del row["ratio"]
    for row in measurements:
        del row["median_gb_per_s"], row["best_gb_per_s"]
        row["label"] = Label(**row["label"])
    machine["isas"] = tuple(machine["isas"])
    return Results(
        **document,
        machine=Machine(**machine),
        method=Method(**method),
        ratios=tuple(Ratio(**row) for row in ratios),
        measurements=tuple(Measurement(**row) for row in measurements),
    )
