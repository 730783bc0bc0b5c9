"""Charts in SVG: coordinates in percent, so that they fill any width while text and dots keep their size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from neuzip.cli import text
from neuzip.cli.html import Markup, tag
from neuzip.cli.overview import Row

PLANES = 8  # of the widest layout; as many colours p0 … p7 has the style sheet
HEIGHT = 220  # pixels of a chart
SPARK = 24  # of a spark line: units of its own height


def percent(value: float) -> str:
    return f"{100 * value:.2f}%"


def segments(sizes: Sequence[float], rest: float, whole: float) -> Markup:
    """A bar of the planes and the rest, as shares of `whole`; what is left of it is what is saved."""
    if whole <= 0:
        return tag("div", class_="bar")
    titles = [f"plane {plane}" for plane in range(len(sizes))]
    classes = [f"p{plane}" for plane in range(len(sizes))]
    found = [
        tag("i", class_=name, style=f"width:{percent(size / whole)}", title=f"{title}: {text.size(size)}")
        for name, title, size in zip([*classes, "rest"], [*titles, "other"], [*sizes, rest], strict=True)
        if size > 0
    ]
    return tag("div", *found, class_="bar")


def spark(counts: Counter[int | None], shown: range) -> Markup:
    """A histogram as a line, to be looked at beside others of the same window."""
    most = max((counts[power] for power in shown), default=0)
    if not most:
        return Markup("")
    steps = "".join(f"V{SPARK - round(SPARK * counts[power] / most)}h1" for power in shown)
    path = tag("path", d=f"M0 {SPARK}{steps}V{SPARK}z")
    box = f"0 0 {len(shown)} {SPARK}"
    return tag("svg", path, class_="spark", viewBox=box, preserveAspectRatio="none", aria_hidden="true")


def histogram(counts: Counter[int | None], shown: range) -> Markup:
    """Shares of the powers of two; the first column is zeros and subnormals, if there are any."""
    columns = [*([None] if counts[None] else []), *shown]
    total = counts.total()
    most = max(counts[power] for power in columns) / total
    step = 1 / len(columns)
    every = -(-len(columns) // 12)
    parts: list[Markup] = []
    for number, power in enumerate(columns):
        share = counts[power] / total
        title = "zero or subnormal" if power is None else f"2^{power} ≤ |w| < 2^{power + 1}"
        parts.append(
            tag(
                "rect",
                x=percent((number + 0.1) * step),
                y=percent(0.06 + 0.8 * (1 - share / most)),
                width=percent(0.8 * step),
                height=percent(0.8 * share / most),
                class_="zero" if power is None else "column",
            )
        )
        parts.append(hover(number * step, step, f"{title}: {text.percent(counts[power], total)}"))
        if power is None or (power % every == 0 and number * step < 0.96):
            label = "0" if power is None else f"2{superscript(power)}"
            parts.append(tag("text", label, x=percent((number + 0.5) * step), y="95%", class_="tick"))
    parts.append(tag("line", x1="0", x2="100%", y1="86%", y2="86%", class_="axis"))
    return tag("svg", *parts, class_="chart", height=HEIGHT, role="img", aria_label="exponent histogram")


def hover(x: float, width: float, title: str) -> Markup:
    """An invisible column that says what it is."""
    place = {"x": percent(x), "y": "0", "width": percent(width), "height": "86%"}
    return tag("rect", tag("title", title), class_="hover", **place)


def superscript(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def scatter(rows: Sequence[Row]) -> Markup:
    """Ratio over bound, a dot a tensor; on the diagonal a tensor meets its bound."""
    pairs = [(row, row.tensor.bound_ratio or 0.0, row.ratio) for row in rows]
    low = min(min(bound, ratio) for _, bound, ratio in pairs)
    high = max(max(bound, ratio) for _, bound, ratio in pairs)
    low, high = max(0.0, low - 0.03), high + 0.03
    largest = max(row.tensor.original_size for row in rows)

    def place(value: float) -> float:
        return 0.04 + 0.92 * (value - low) / (high - low)

    ends = {"x1": place(low), "y1": 1 - place(low), "x2": place(high), "y2": 1 - place(high)}
    parts = [tag("line", class_="diagonal", **{key: percent(value) for key, value in ends.items()})]
    for value in ticks(low, high):
        at = place(value)
        parts.append(tag("line", x1=percent(at), x2=percent(at), y1="0", y2="100%", class_="grid"))
        parts.append(tag("line", x1="0", x2="100%", y1=percent(1 - at), y2=percent(1 - at), class_="grid"))
        parts.append(tag("text", f"{value:.2f}", x=percent(at), y="99%", class_="tick"))
        parts.append(tag("text", f"{value:.2f}", x="0.5%", y=percent(1 - at), class_="side"))
    for row, bound, ratio in sorted(pairs, key=lambda pair: -pair[0].tensor.original_size):
        title = (
            f"{short(row.name)}: {text.size(row.tensor.original_size)}, ratio {ratio:.4f}, bound {bound:.4f}"
        )
        radius = 3 + 9 * (row.tensor.original_size / largest) ** 0.5
        centre = {"cx": percent(place(bound)), "cy": percent(1 - place(ratio)), "r": f"{radius:.1f}"}
        parts.append(tag("circle", tag("title", title), class_="dot", **centre))
    return tag("svg", *parts, class_="chart", height=360, role="img", aria_label="ratio over entropy bound")


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between low and high, three to ten of them."""
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 10, 100, 1e4, 1e9) if (high - low) / s <= 10)
    first = -int(-low // step)
    return [step * number for number in range(first, int(high // step) + 1)]


def short(name: str, most: int = 96) -> str:
    """A name of at most `most` characters; the end tells tensors apart."""
    return name if len(name) <= most else f"{name[: most // 3]}…{name[len(name) - 2 * most // 3 + 1 :]}"
