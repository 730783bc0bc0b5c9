"""The plot of a run: how small against how fast back, on bf16 weights and one thread, with peers and limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from data import TITLES
from files import DECOMPRESS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from ratio import BOUND, FILE, TENSORS
from results import Results
from rounds import LIMIT, OURS, PEER, Label
from table import ISAS

DATA = ("llama_bf16", "minilm_bf16")
COLOURS = {OURS: "#0b62a8", PEER: "#c4501b", LIMIT: "#777777"}
PAGE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "figure.facecolor": "white"}
GAP = 0.03  # of ratios left empty between neighbours, from which on the axis is broken
MARGIN = 0.0022  # of ratio beside the outermost points
# Where a label may stand, in points from its mark, and its alignment; the first free place is taken.
PLACES = [
    (8, 0, "left", "center"),
    (-8, 0, "right", "center"),
    (8, 9, "left", "center"),
    (8, -9, "left", "center"),
    (-8, 9, "right", "center"),
    (-8, -9, "right", "center"),
    (0, 10, "center", "bottom"),
    (0, -10, "center", "top"),
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
        if row.data != data or label.threads != 1 or label.role == LIMIT:
            continue
        if row.question == "decode":
            ratio = results.ratio(data, label.codec, TENSORS)
        elif row.question == DECOMPRESS:
            # Programs work with files; neuzip's with its default level.
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
    if label.role == OURS and label.memory == "fresh":
        parts.append("fresh memory")
    return ", ".join(parts)


def draw(results: Results, path: Path) -> None:
    """Writes the plot as PNG. Without any decoding measured there is nothing to draw."""
    panels = {data: found for data in DATA if (found := list(points(results, data)))}
    if not panels:
        return
    with mpl.rc_context(PAGE):
        figure = Figure(figsize=(9.6, 4.6 * len(panels)), layout="constrained")
        figure.suptitle("How small, and how fast back: bf16 weights, one thread", fontweight="bold")
        for subfigure, (data, found) in zip(
            figure.subfigures(len(panels), 1, squeeze=False)[:, 0], panels.items(), strict=True
        ):
            pieces = split(found)
            widths = [max(high - low, 0.006) for low, high in pieces]
            axes = subfigure.subplots(1, len(pieces), sharey=True, squeeze=False, width_ratios=widths)[0]
            for axis, piece in zip(axes, pieces, strict=True):
                fill(axis, results, data, found, piece)
            finish(list(axes), results, data)
            subfigure.suptitle(TITLES[data], fontsize=11, x=0.02, ha="left")
            subfigure.supxlabel("compressed / original size (smaller is better)", fontsize=10)
        place_labels(figure)
        figure.savefig(path, dpi=150)


def split(found: list[Point]) -> list[tuple[float, float]]:
    """The ratios to show, as one or more ranges: the axis is broken where there is nothing."""
    ratios = sorted(point.ratio for point in found)
    ranges = [[ratios[0] - MARGIN, ratios[0] + MARGIN]]
    for ratio in ratios[1:]:
        if ratio - ranges[-1][1] > GAP:
            ranges.append([ratio - MARGIN, ratio + MARGIN])
        ranges[-1][1] = ratio + MARGIN
    return [(low, high) for low, high in ranges]


def fill(axis: Axes, results: Results, data: str, found: list[Point], piece: tuple[float, float]) -> None:
    axis.set_xlim(*piece)
    axis.set_yscale("log")
    axis.grid(True, which="major", color="#eeeeee", zorder=0)
    for row in results.measurements:
        if row.data == data and row.question == "decode" and row.label.role == LIMIT:
            axis.axhline(row.speed, color=COLOURS[LIMIT], linestyle="--", linewidth=1, zorder=1)
    bound = results.ratio(data, BOUND, TENSORS)
    if bound is not None and piece[0] < bound < piece[1]:
        axis.axvline(bound, color=COLOURS[LIMIT], linestyle=":", linewidth=1.2, zorder=1)
        place = axis.get_xaxis_transform()
        text = f"exponents at their\nentropy, {bound:.4f} "
        axis.text(
            bound, 0.02, text, transform=place, fontsize=8, color=COLOURS[LIMIT], ha="right", va="bottom"
        )
    for point in found:
        if not piece[0] <= point.ratio <= piece[1]:
            continue
        colour = COLOURS[point.role]
        face = "white" if point.hollow else colour
        axis.plot(point.ratio, point.speed, "o", color=colour, markerfacecolor=face, markersize=7, zorder=3)
        axis.annotate(
            f"{point.name}  {point.speed:.2g}",
            (point.ratio, point.speed),
            textcoords="offset points",
            fontsize=8.5,
            color=colour,
            zorder=4,
        )


def finish(axes: list[Axes], results: Results, data: str) -> None:
    """Scales, and the names of the limits, on the row of axes that make one panel."""
    speeds = [row.speed for row in results.measurements if row.data == data and row.question == "decode"]
    low, high = min(speeds), max(speeds)
    shown = [point.speed for point in points(results, data)]
    axes[0].set_ylim(min(low, *shown) / 1.5, high * 1.35)
    axes[0].set_ylabel("decoding, GB/s of original bytes")
    axes[0].yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_locator(mpl.ticker.NullLocator())
    for axis in axes:
        step = 0.002 if axis.get_xlim()[1] - axis.get_xlim()[0] < 0.02 else 0.01
        axis.xaxis.set_major_locator(mpl.ticker.MultipleLocator(step))
        axis.xaxis.set_major_formatter("{x:.3f}")
    for axis in axes[1:]:
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0)
    for row in results.measurements:
        label = row.label
        if row.data == data and row.question == "decode" and label.role == LIMIT:
            where = "memory in use" if label.memory == "reused" else "fresh memory"
            axes[0].annotate(
                f"copying to {where}  {row.speed:.2g}",
                (1, row.speed),
                xycoords=axes[0].get_yaxis_transform(),
                xytext=(-2, 2),
                textcoords="offset points",
                fontsize=8,
                color=COLOURS[LIMIT],
                ha="right",
                va="bottom",
                gid="fixed",
            )


def place_labels(figure: Figure) -> None:
    """Gives each label the first of PLACES where it covers neither another label nor a mark."""
    figure.draw_without_rendering()
    for axis in figure.get_axes():
        texts = [child for child in axis.get_children() if isinstance(child, Annotation)]
        taken = [text.get_window_extent() for text in axis.texts if not is_free(text)]
        for line in axis.lines:
            if line.get_marker() == "o":
                x, y = axis.transData.transform(line.get_xydata()[0])
                taken.append(Bbox.from_bounds(x - 5, y - 5, 10, 10))
        frame = axis.get_window_extent()
        for text in filter(is_free, texts):
            taken.append(place(text, taken, frame))


def is_free(text: object) -> bool:
    return isinstance(text, Annotation) and text.get_gid() != "fixed"


def place(text: Annotation, taken: list[Bbox], frame: Bbox) -> Bbox:
    """Moves one label; returns what it covers. If every place is taken it stands in the first."""
    for x, y, horizontal, vertical in [*PLACES, PLACES[0]]:
        text.xyann = (x, y)
        text.set_horizontalalignment(horizontal)
        text.set_verticalalignment(vertical)
        box = text.get_window_extent()
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 + 20
        if inside and not any(box.overlaps(other) for other in taken):
            break
    return box
