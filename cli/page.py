"""The report of `neuzip inspect --html`: one page that needs nothing but itself.

No script, and a policy that forbids the browser to fetch anything. Its length is bounded: the largest tensors are
shown one by one, the others as sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neuzip.cli import charts, text
from neuzip.cli.charts import percent, segments, short, spark
from neuzip.cli.html import Markup, join, tag
from neuzip.cli.overview import (
    Layer,
    Row,
    by_layer,
    by_plane,
    by_power,
    duplicates,
    powers,
    ranked,
    spare,
    tensor_rows,
    window,
)
from neuzip.histogram import entropy

if TYPE_CHECKING:
    from neuzip.inspection import Inspection

LAYERS = 96
FILES = 100
TENSORS = 300
DOTS = 1500
GROUPS = 30
NAMES = 6  # of a group of duplicates
RANKS = 10
COLUMNS = 48  # of a histogram
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


class Page:
    """The numbers of a checkpoint, and the sections that show them."""

    def __init__(self, root: Path, inspections: Sequence[Inspection]) -> None:
        self.root = root
        self.inspections = inspections
        self.rows = tensor_rows(root, inspections)
        self.compressed = any(found.compressed_size is not None for found in inspections)
        self.original = sum(found.original_size for found in inspections)
        self.bound = sum(found.bound_size for found in inspections)
        self.held = sum(held(found) for found in inspections) if self.compressed else self.bound
        self.powers = by_power(self.rows)
        self.window = window(sum(self.powers.values(), start=Counter()), COLUMNS)

    def __str__(self) -> str:
        title = self.root.resolve().name
        style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
        head = [
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
            tag("title", f"{short(title)} · neuzip"),
            tag("style", Markup(style)),
        ]
        body = [
            self.heading(title),
            self.whole(),
            self.files(),
            self.planes(),
            self.layers(),
            self.exponents(),
            self.bounds(),
            self.extremes(),
            self.copies(),
            self.tensors(),
            footer(),
        ]
        page = tag("html", tag("head", *head), tag("body", tag("main", *body)), lang="en")
        return f"<!doctype html>\n{page}\n"

    @property
    def verb(self) -> str:
        """What the sizes beside the originals are."""
        return "compressed" if self.compressed else "at the bound"

    def heading(self, title: str) -> Markup:
        elements = sum(sum(powers(row.tensor).values()) for row in self.rows)
        dtypes = ", ".join(self.powers) or "no floats"
        facts = [text.count(len(self.rows), "tensor"), text.count(len(self.inspections), "file")]
        facts += [f"{count_short(elements)} floats", dtypes]
        state = (
            "compressed with neuzip" if self.compressed else "not compressed: what compression could reach"
        )
        return tag(
            "header",
            tag("p", state, class_="eyebrow"),
            tag("h1", short(title)),
            tag("p", " · ".join(facts), class_="facts"),
        )

    def whole(self) -> Markup:
        saved = self.original - self.held
        tiles = [
            tile("original", text.size(self.original), f"{self.original:,} bytes", "original"),
            tile(self.verb, text.size(self.held), f"{round(self.held):,} bytes", "held"),
            tile("ratio", text.ratio(self.held, self.original), f"{text.size(saved)} less", "ratio"),
            tile("entropy bound", text.ratio(self.bound, self.original), self.gap(), "bound"),
        ]
        total = Layer("all")
        for row in self.rows:
            total.add(row)
        headers = max(0.0, self.held - total.held)
        bar = segments(total.planes, total.rest + headers, self.original)
        return tag("section", tag("div", *tiles, class_="tiles"), bar, legend(total), class_="card")

    def gap(self) -> str:
        if not self.compressed or not self.original:
            return "exponents at their entropy"
        gap = (self.held - self.bound) / self.original
        return f"{text.difference(gap)} from it" if gap >= 0 else f"beaten by {text.difference(-gap)[1:]}"

    def files(self) -> Markup:
        if len(self.inspections) < 2:
            return Markup("")
        shown = self.inspections[:FILES]
        rows = [
            [
                name_cell(str(found.path.relative_to(self.root))),
                str(len(found.tensors)),
                text.size(found.original_size),
                text.size(held(found)),
                text.ratio(held(found), found.original_size),
            ]
            for found in shown
        ]
        more = len(self.inspections) - len(shown)
        titles = ["file", "tensors", "original", "in the file", "ratio"]
        return card(
            "Files", table(titles, rows, "files"), f"{more} more files are not shown." if more else ""
        )

    def planes(self) -> Markup:
        found = by_plane(self.rows)
        if not found:
            return Markup("")
        rows = []
        for dtype, planes in found.items():
            for plane, (original, size) in enumerate(planes):
                share = size / original if original else 0.0
                bar = tag("i", class_=f"p{plane}", style=f"width:{percent(min(1.0, share))}")
                rows.append(
                    [
                        tag("span", dtype, class_="dtype") if plane == 0 else "",
                        plane_title(dtype, plane),
                        tag("div", bar, class_="bar"),
                        text.size(original),
                        text.size(size),
                        text.ratio(size, original) if original else "–",
                    ]
                )
        note = "Every float is cut into bytes, the most significant first. The exponents of trained weights take "
        note += "few values and shrink; signs and mantissas are noise and stay."
        if any("joint" in modes for row in self.rows for modes in row.tensor.planes):
            note += (
                " Where exponents are coded jointly with two bits of the mantissa, these count as exponent."
            )
        titles = ["type", "plane", "", "original", self.verb, "ratio"]
        return card("Bytes by plane", table(titles, rows, "planes"), note)

    def layers(self) -> Markup:
        found = by_layer(self.rows, LAYERS)
        largest = max((layer.original for layer in found[:LAYERS]), default=0)
        rows = [
            [
                name_cell(layer.name),
                stretched(segments(layer.planes, layer.rest, layer.original), layer.original, largest),
                text.size(layer.original),
                text.size(layer.held),
                text.ratio(layer.held, layer.original),
                spark(layer.powers, self.window),
            ]
            for layer in found
            if layer.original
        ]
        note = (
            "A bar is as long as the layer is large; its filled part is what is left of it. On the right how "
        )
        note += "often each exponent occurs, all on one axis."
        titles = ["layer", "", "original", self.verb, "ratio", self.axis_title()]
        return card("Bytes by layer", table(titles, rows, "layers"), note)

    def axis_title(self) -> str:
        if not self.window:
            return ""
        first, last = (charts.superscript(power) for power in (self.window[0], self.window[-1]))
        return f"2{first} … 2{last}"

    def exponents(self) -> Markup:
        charts_ = []
        for dtype, counts in self.powers.items():
            shown = window(counts, COLUMNS)
            outside = counts.total() - sum(counts[power] for power in [None, *shown])
            facts = [f"{count_short(counts.total())} elements", f"{entropy_bits(counts):.2f} bits of entropy"]
            if outside:
                facts.append(f"{count_short(outside)} further out")
            heading = tag("h3", dtype, tag("small", " · ".join(facts)))
            charts_.append(tag("figure", heading, charts.histogram(counts, shown)))
        if not charts_:
            return Markup("")
        note = "How many elements w have |w| in each power of two: the shape that the exponent plane is coded by."
        return card("Exponents", tag("div", *charts_, class_="figures"), note)

    def bounds(self) -> Markup:
        rows = [row for row in self.rows if row.tensor.distance is not None]
        if not rows:
            return Markup("")
        rows.sort(key=lambda row: -row.tensor.original_size)
        note = (
            "A dot is a tensor, its area the tensor's size. The line is the bound: the exponent plane at its "
        )
        note += "order-0 entropy, every other byte as it is. It is no law: dots below the line beat it."
        if len(rows) > DOTS:
            note += f" The {DOTS} largest of {len(rows)} tensors are shown."
        axes = tag("p", "↑ ratio", tag("span", "entropy bound →"), class_="axes")
        return card("Ratio against the entropy bound", join([axes, charts.scatter(rows[:DOTS])]), note)

    def extremes(self) -> Markup:
        rows = ranked(self.rows)
        if len(rows) < 2:
            return Markup("")
        best, worst = rows[:RANKS], rows[: -RANKS - 1 : -1]
        blocks = [
            tag("div", tag("h3", title), self.tensor_table(part), id=name)
            for title, name, part in (("Shrink least", "worst", worst), ("Shrink most", "best", best))
        ]
        return card("The ten worst and the ten best", tag("div", *blocks, class_="pair"), "")

    def copies(self) -> Markup:
        groups = duplicates(self.rows)
        if not groups:
            return card("Duplicates", tag("p", "No two tensors hold the same bytes.", class_="none"), "")
        rows = []
        for group in groups[:GROUPS]:
            names = [tag("div", name_cell(row.name)) for row in group[:NAMES]]
            if len(group) > NAMES:
                names.append(tag("div", f"and {len(group) - NAMES} more"))
            tensor = group[0].tensor
            rows.append(
                [
                    join(names),
                    f"{tensor.dtype} {text.shape(tensor.shape)}",
                    str(len(group)),
                    text.size(tensor.original_size),
                    text.size(spare(group)),
                ]
            )
        total = sum(spare(group) for group in groups)
        note = f"{text.count(len(groups), 'group')} of tensors with the same checksum; {text.size(total)} of the "
        note += f"original bytes ({text.percent(total, self.original)}) repeat others."
        if len(groups) > GROUPS:
            note += f" The {GROUPS} largest groups are shown."
        return card(
            "Duplicates", table(["tensors", "type", "copies", "each", "to spare"], rows, "copies"), note
        )

    def tensors(self) -> Markup:
        rows = sorted(self.rows, key=lambda row: -row.tensor.original_size)
        shown, others = rows[:TENSORS], rows[TENSORS:]
        note = ""
        if others:
            size = sum(row.tensor.original_size for row in others)
            note = f"{len(others)} smaller tensors, {text.size(size)} together, are not listed: see --json."
        listed = tag("details", tag("summary", "Show the list"), self.tensor_table(shown))
        return card(f"Tensors, the largest {len(shown)}" if others else "Tensors", listed, note)

    def tensor_table(self, rows: Sequence[Row]) -> Markup:
        cells = [
            [
                name_cell(row.name),
                f"{row.tensor.dtype} {short(text.shape(row.tensor.shape), 40)}",
                text.size(row.tensor.original_size),
                text.ratio(row.held, row.tensor.original_size),
                text.ratio(row.tensor.bound_size, row.tensor.original_size),
                text.difference(row.tensor.distance),
                spark(powers(row.tensor), self.window),
            ]
            for row in rows
        ]
        titles = ["tensor", "type", "original", "ratio", "bound", "gap", "exponents"]
        return table(titles, cells, "tensors" if self.compressed else "tensors plain")


def held(found: Inspection) -> int:
    """Bytes of the file as it is."""
    return found.original_size if found.compressed_size is None else found.compressed_size


def entropy_bits(counts: Counter[int | None]) -> float:
    return entropy(np.array(list(counts.values())))


def tile(title: str, value: str, note: str, name: str) -> Markup:
    parts = [tag("span", title), tag("strong", value), tag("small", note)]
    return tag("div", *parts, class_="tile", id=name)


def card(title: str, content: Markup, note: str) -> Markup:
    parts = [tag("h2", title), *([tag("p", note, class_="note")] if note else []), content]
    return tag("section", *parts, class_="card")


def legend(total: Layer) -> Markup:
    entries = [(f"p{plane}", f"plane {plane}") for plane in range(len(total.planes))]
    entries += [("rest", "headers and what has no planes"), ("saved", "saved")]
    names = {"p0": "plane 0, exponents", "p1": "plane 1, signs and mantissas"}
    items = [tag("li", tag("i", class_=key), names.get(key, title)) for key, title in entries]
    return tag("ul", *items, class_="legend")


def plane_title(dtype: str, plane: int) -> str:
    """What the bits of a plane are (§3)."""
    if dtype.startswith(("U", "I", "F4", "F8")):
        return "whole bytes" if not dtype.startswith("F4") else "two elements"
    if plane == 0:
        return {"F16": "exponent, 3 mantissa bits", "F64": "exponent, high bits"}.get(dtype, "exponent")
    if plane == 1:
        return "low exponent, sign, mantissa" if dtype in ("F64", "C128") else "mantissa, sign"
    return "mantissa"


def stretched(bar: Markup, size: int, largest: int) -> Markup:
    """A bar in proportion to the largest."""
    return tag("div", bar, class_="stretch", style=f"width:{percent(min(1.0, max(0.004, size / largest)))}")


def name_cell(name: str) -> Markup:
    shown = short(name)
    return tag("span", shown, class_="name", title=None if shown == name else short(name, 400))


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], name: str = "") -> Markup:
    """On a narrow screen the style sheet makes a card of each row, its cells labelled by the titles."""
    head = tag("tr", *(tag("th", title) for title in titles))
    body = [
        tag(
            "tr",
            *(tag("td", cell, data_label=title or None) for title, cell in zip(titles, row, strict=True)),
        )
        for row in rows
    ]
    whole = tag("table", tag("thead", head), tag("tbody", *body), class_=name or None)
    return tag("div", whole, class_="scroll")


def count_short(number: int) -> str:
    """`22.7 million`."""
    for size, unit in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,}"


def footer() -> Markup:
    from neuzip import __version__

    return tag(
        "footer", f"neuzip {__version__} · sizes in decimal units · ratio is compressed over original size"
    )


def write(root: Path, inspections: Sequence[Inspection], destination: Path, force: bool) -> None:
    """Writes the page beside `destination` and renames it into place. Raises InvalidArgument if there is a file
    already and `force` is not set, StorageError."""
    from neuzip.draft import drafted_file
    from neuzip.files import created_file

    page = str(Page(root, inspections)).encode("utf-8")
    with (
        drafted_file(destination, force=force) as draft,
        created_file(draft, mode=0o644, destination=destination) as out,
    ):
        out.write(page)
