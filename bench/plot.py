"""The plot of a run: how small against how fast back; bf16 weights, one thread, with peers and limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
from data import TITLES
from files import DECOMPRESS
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from ratio import BOUND, FILE, TENSORS
from results import Results
from rounds import LIMIT, OURS, PEER, Label, Measurement
from table import ISAS, MEMORY

DATA = ("llama_bf16", "minilm_bf16")
COLOURS = {OURS: "#0b62a8", PEER: "#c4501b", LIMIT: "#666666"}
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "figure.facecolor": "white"}
HALO = [withStroke(linewidth=3, foreground="white")]
GAP = 0.03  # of ratio with no mark in it: the axis is broken there
MARGIN = 0.0022  # of ratio beside the outermost marks
FIXED = "fixed"  # what is drawn first, and keeps its place
MARK = 5  # radius, in points
# Where a label may stand: offset from its mark in points, and alignment. The first free place is taken.
Place = tuple[float, float, str, str]
PLACES: list[Place] = [
    (8, 0, "left", "center"),
    (-8, 0, "right", "center"),
    *((x, y, align, "center") for y in (9, -9, 15, -15) for x, align in ((7, "left"), (-7, "right"))),
]


@dataclass(frozen=True)
class Point:
    name: str
    role: str
    ratio: float
    speed: float
    hollow: bool


def points(results: Results, data: str) -> Iterator[Point]:
    for row in results.measurements:
        label = row.label
        if row.data != data or label.threads != 1 or label.role == LIMIT or label.each:
            continue
        if row.question == "decode":
            ratio = results.ratio(data, label.codec, TENSORS)
        elif row.question == DECOMPRESS:
            # The programs' defaults; neuzip's is its level "default".
            ratio = results.ratio(data, "neuzip default" if label.role == OURS else label.codec, FILE)
        else:
            continue
        if ratio is not None:
            yield Point(point_name(label), label.role, ratio, row.speed, label.memory == "files")


def point_name(label: Label) -> str:
    if label.memory == "files":
        return f"{label.codec}, file to file"
    parts = [label.codec.removesuffix(" default")]
    if label.isa is not None:
        parts.append(ISAS.get(label.isa, label.isa))
    if label.memory != ("reused" if label.role == OURS else "fresh"):
        parts.append(MEMORY[label.memory])
    return ", ".join(parts)


def limits(results: Results, data: str) -> list[Measurement]:
    return [
        row
        for row in results.measurements
        if row.data == data and row.label.role == LIMIT and row.question == "decode"
    ]


def draw(results: Results, path: Path) -> None:
    """Writes the plot as PNG. Without any decoding measured there is nothing to draw."""
    panels = {data: found for data in DATA if (found := list(points(results, data)))}
    if not panels:
        return
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 0.5 + 4.3 * len(panels)), layout="constrained")
        figure.suptitle("How small, and how fast back: bf16 weights, one thread", fontweight="bold")
        rows = figure.subfigures(len(panels), 1, squeeze=False)[:, 0]
        for part, (data, found) in zip(rows, panels.items(), strict=True):
            panel(part, results, data, found)
        place_labels(figure)
        figure.savefig(path, dpi=150)


def panel(figure: SubFigure, results: Results, data: str, found: list[Point]) -> None:
    """One dataset: a row of axes, one for each piece of a broken axis."""
    pieces = split(found)
    widths = [max(high - low, 0.005) for low, high in pieces]
    row = list(figure.subplots(1, len(pieces), sharey=True, squeeze=False, width_ratios=widths)[0])
    figure.suptitle(TITLES[data], fontsize=11, x=0.02, ha="left")
    figure.supxlabel("compressed / original size (smaller is better)", fontsize=10)
    speeds = [point.speed for point in found] + [limit.speed for limit in limits(results, data)]
    row[0].set_yscale("log")
    row[0].set_ylim(min(speeds) / 1.9, max(speeds) * 1.4)  # room for the limits' names
    row[0].set_ylabel("decoding, GB/s of original bytes")
    row[0].yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    row[0].yaxis.set_major_formatter("{x:g}")
    row[0].yaxis.set_minor_locator(mpl.ticker.NullLocator())
    for axis, piece in zip(row, pieces, strict=True):
        axis.set_xlim(*piece)
        axis.xaxis.set_major_locator(mpl.ticker.MultipleLocator(0.002))
        axis.xaxis.set_major_formatter("{x:.3f}")
        axis.grid(True, color="#eeeeee", zorder=0)
        draw_limits(axis, results, data, named=axis is row[-1])
        for point in found:
            if piece[0] <= point.ratio <= piece[1]:
                draw_point(axis, point)
    for left, right in pairwise(row):
        right.spines["left"].set_visible(False)
        right.tick_params(axis="y", length=0)
        for axis, x in ((left, 1), (right, 0)):  # where the axis is broken
            slash = {"marker": [(-0.5, -1), (0.5, 1)], "markersize": 9, "color": "black", "clip_on": False}
            axis.plot([x], [0], transform=axis.transAxes, linestyle="none", **slash)


def split(found: list[Point]) -> list[tuple[float, float]]:
    """The ranges of ratios to show."""
    ratios = sorted(point.ratio for point in found)
    ranges = [[ratios[0] - MARGIN, ratios[0] + MARGIN]]
    for ratio in ratios[1:]:
        if ratio - ranges[-1][1] > GAP:
            ranges.append([ratio - MARGIN, ratio + MARGIN])
        ranges[-1][1] = ratio + MARGIN
    return [(low, high) for low, high in ranges]


def draw_point(axis: Axes, point: Point) -> None:
    colour = COLOURS[point.role]
    face = "white" if point.hollow else colour
    axis.plot(point.ratio, point.speed, "o", color=colour, markerfacecolor=face, markersize=7, zorder=3)
    axis.annotate(
        f"{point.name}  {point.speed:.2f}",
        (point.ratio, point.speed),
        xytext=PLACES[0][:2],
        textcoords="offset points",
        fontsize=9,
        color=colour,
        path_effects=HALO,
        zorder=4,
    )


def draw_limits(axis: Axes, results: Results, data: str, named: bool) -> None:
    """Lines for copying and for the entropy bound, with their names if `named`."""
    text = {"fontsize": 8.5, "color": COLOURS[LIMIT], "path_effects": HALO, "gid": FIXED}
    found = sorted(limits(results, data), key=lambda row: row.speed)
    for row, side in zip(
        found, ("top", "bottom"), strict=False
    ):  # the slower's name below, the faster's above
        axis.axhline(row.speed, color=COLOURS[LIMIT], linestyle="--", linewidth=1, zorder=1, gid=FIXED)
        if named:
            place = axis.get_yaxis_transform()
            name = f"copying to {MEMORY[row.label.memory]}  {row.speed:.2f}"
            offset = (0, 2 if side == "bottom" else -2)
            axis.annotate(
                name, (0.99, row.speed), offset, place, "offset points", ha="right", va=side, **text
            )
    bound = results.ratio(data, BOUND, TENSORS)
    low, high = axis.get_xlim()
    if bound is not None and low < bound < high:
        axis.axvline(bound, color=COLOURS[LIMIT], linestyle=":", linewidth=1.2, zorder=1, gid=FIXED)
        name = f"exponents at their entropy  {bound:.4f}"
        place = axis.get_xaxis_transform()
        axis.annotate(name, (bound, 0.02), (-4, 0), place, "offset points", ha="right", va="bottom", **text)


def place_labels(figure: Figure) -> None:
    """Gives each mark's label the first of PLACES where it covers no other text, no mark and, if it can, no
    line.
    """
    figure.draw_without_rendering()
    for axis in figure.get_axes():
        texts = [child for child in axis.texts if isinstance(child, Annotation)]
        labels = [text for text in texts if text.get_gid() != FIXED]
        taken = [text.get_window_extent() for text in texts if text.get_gid() == FIXED]
        for label in labels:
            x, y = axis.transData.transform(label.xy)
            taken.append(Bbox.from_bounds(x - MARK, y - MARK, 2 * MARK, 2 * MARK))
        lines = [line.get_window_extent() for line in axis.lines if line.get_gid() == FIXED]
        frame = axis.get_window_extent()
        for label in labels:
            places = [place for avoided in ([*taken, *lines], taken) for place in free(label, avoided, frame)]
            move(label, places[0] if places else PLACES[0])
            taken.append(label.get_window_extent())


def free(label: Annotation, taken: list[Bbox], frame: Bbox) -> Iterator[Place]:
    """The places where a label stays inside the frame and covers nothing."""
    for candidate in PLACES:
        move(label, candidate)
        box = label.get_window_extent()
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
        if inside and not any(box.overlaps(other) for other in taken):
            yield candidate


def move(label: Annotation, to: Place) -> None:
    x, y, horizontal, vertical = to
    label.xyann = (x, y)
    label.set_horizontalalignment(horizontal)
    label.set_verticalalignment(vertical)
