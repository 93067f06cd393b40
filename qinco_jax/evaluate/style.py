"""How all plots look: colors and markers, axes, legends and labels."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from qinco_jax.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors for color-blind readers, without yellow, which is invisible on paper. The
# three lists have different lengths, so lines that share a color differ in marker and dashes.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX*<>ph"
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (9, 2)))
BAR_COLORS = ("#56B4E9", "#F5C04A", "#7FCBB1", "#E3A7C6", "#F0946B", "#BBBBBB")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\")
SETTINGS: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "figure.titlesize": 11,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.ymargin": 0.08,
    "grid.alpha": 0.3,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.6,
    "savefig.dpi": 200,
    "svg.hashsalt": "qinco_jax",
    "text.parse_math": False,  # names may contain dollar signs
}
WIDTH = 7.0  # inches, the two columns of a paper
LABEL_SIZE = 8.0  # points
TICK_GAP = 3  # pixels
GAP = 2  # points, between a text and another, lest "4" and "2" read "42"
SPREAD = 14.0  # points between the first and the last of codecs of the same rate
STEPS = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 1.5, 2, 3, 5, 7),
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, *range(3, 10)),
)
Look = dict[str, Any]
Label = tuple[float, float, str]
"""A text beside a point: x, y, text."""
Box = tuple[float, float, float, float]


def plot_style() -> "AbstractContextManager[None]":
    """A context in which figures get the settings of this library's plots."""
    from matplotlib import rc_context

    return rc_context(SETTINGS)


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A color, marker and dashes for each name, by its position.

    Markers are drawn whole, even where they stand on the end of an axis.
    """
    return {
        name: {
            "color": COLORS[i % len(COLORS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": DASHES[i % len(DASHES)],
            "clip_on": False,
        }
        for i, name in enumerate(names)
    }


def bar_look(i: int) -> Look:
    """Color and hatching of the i-th of several bars, for `barh`."""
    return {
        "color": BAR_COLORS[i % len(BAR_COLORS)],
        "hatch": HATCHES[i % len(HATCHES)],
        "edgecolor": "black",
        "linewidth": 0.6,
        "error_kw": {"elinewidth": 0.9, "capsize": 2},
    }


def panels(
    count: int, title: str, columns: int = 2, height: float = 2.7, one_scale: bool = False
) -> "tuple[Figure, list[Axes]]":
    """An empty figure of panels, each `height` inches high."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = 2 if count == 4 else min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(
        figsize=(WIDTH, height * rows + 0.5), layout=ConstrainedLayoutEngine(w_pad=0.08)
    )
    figure.suptitle(title)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=one_scale).flat)
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def quality_axis(axis: "Axes", key: str) -> None:
    """The vertical axis of a measure, after drawing; shares of queries end at 0 and 100 %."""
    if key != "mse":
        axis.set_ylabel(f"{key} (%)")
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, 0), min(high, 100))
        return
    axis.set_ylabel("mean squared error")
    low, high = axis.dataLim.intervaly
    if low > 0 and high > 2 * low:
        log_axis(axis, "y")
    else:
        axis.yaxis.set_major_formatter(lambda tick, _: short(tick))


def rate_axis(axis: "Axes", sizes: Sequence[float]) -> None:
    """The horizontal axis of rates, with a tick at each, after drawing."""
    axis.set_xlabel("bytes per vector")
    axis.margins(x=0.08)  # for what stands beside the first and the last
    if sizes[-1] > 8 * sizes[0]:
        axis.set_xscale("log")
    axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axis.minorticks_off()


def log_axis(axis: "Axes", which: str) -> None:
    """Makes an axis logarithmic, after drawing, with a few ticks shown as plain numbers."""
    axis.set(**{f"{which}scale": "log"})
    low, high = axis.get_xlim() if which == "x" else axis.get_ylim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in STEPS:
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) > 2:
            break
    texts = [short(tick) for tick in ticks]
    axis.set(**{f"{which}ticks": ticks, f"{which}ticklabels": texts, f"{which}lim": (low, high)})
    (axis.xaxis if which == "x" else axis.yaxis).minorticks_off()


def short(tick: float) -> str:
    """A number in few letters: 2.5M, 40k, 0.1."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if tick >= size:
            return f"{tick / size:g}{letter}"
    return f"{tick:g}"


def finish(figure: "Figure", handles: Mapping[str, Any], title: str | None = None) -> None:
    """Puts a legend below the panels, where it covers no data, and thins out crowded ticks."""
    widest = 45 + 5.2 * max(map(len, handles))  # points, at the size of a legend's letters
    columns = max(1, min(len(handles), int(WIDTH * 72 / widest)))
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=columns,
        handlelength=3, columnspacing=1.2, title=title, title_fontsize=9,
    )  # fmt: skip
    figure.draw_without_rendering()  # lays out the panels, which fixes where ticks are
    for axis in figure.axes:
        _thin_ticks(axis, "x")
        _thin_ticks(axis, "y")


def _thin_ticks(axis: "Axes", which: str) -> None:
    """Leaves out the texts of ticks that would touch the one before; their grid lines stay.

    The figure must have been laid out.
    """
    from matplotlib.ticker import FixedLocator

    side, ticks = (0, axis.xaxis) if which == "x" else (1, axis.yaxis)
    labels = ticks.get_ticklabels()
    if not labels or not isinstance(ticks.get_major_locator(), FixedLocator):
        return  # panels that share an axis have its texts once; other locators space theirs
    boxes = [label.get_window_extent().get_points()[:, side] for label in labels]
    texts, end = [label.get_text() for label in labels], -math.inf
    for i in sorted(range(len(labels)), key=lambda i: boxes[i][0]):  # an axis may be inverted
        if boxes[i][0] < end + TICK_GAP:
            texts[i] = ""
        elif texts[i]:
            end = boxes[i][1]
    ticks.set_ticklabels(texts)


def lines(names: Mapping[str, Look]) -> dict[str, Any]:
    """Legend handles of lines with these looks."""
    from matplotlib.lines import Line2D

    return {name: Line2D([], [], **look) for name, look in names.items()}


def legend_below(axis: "Axes", title: str) -> None:
    """Puts a panel's own legend below it."""
    axis.legend(
        loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4.5, title=title, ncols=2,
        columnspacing=1, handlelength=2.6, title_fontsize=9,
    )  # fmt: skip


def write_labels(figure: "Figure", axes: Sequence["Axes"], labels: Sequence[list[Label]]) -> None:
    """Writes texts beside points, where they overlap points and other texts least; call last.

    Of points at the same position with the same text, only the first is labeled.
    """
    from matplotlib.patheffects import withStroke

    figure.draw_without_rendering()  # lays out the panels, which fixes where points are
    scale = 72 / figure.dpi
    for axis, texts in zip(axes, labels, strict=True):
        points = [(scale * axis.transData.transform(label[:2])).tolist() for label in texts]
        (left, bottom), (right, top) = scale * axis.get_window_extent().get_points()
        taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in points]  # and texts, with what is around
        written: list[tuple[str, list[float]]] = []
        for point, (x, y, text) in zip(points, texts, strict=True):
            if any(text == other and math.dist(point, at) < 9 for other, at in written):
                continue
            written.append((text, point))
            boxes = _boxes(point, 0.56 * LABEL_SIZE * len(text), 0.9 * LABEL_SIZE)
            inside = [
                box for box in boxes
                if box[0] > left and box[1] > bottom and box[2] < right and box[3] < top
            ]  # fmt: skip
            box = min(inside or boxes, key=lambda box: sum(_overlap(box, other) for other in taken))
            taken.append((box[0] - GAP, box[1] - GAP, box[2] + GAP, box[3] + GAP))
            offset = (box[0] + box[2]) / 2 - point[0], (box[1] + box[3]) / 2 - point[1]
            axis.annotate(
                text, (x, y), offset, textcoords="offset points", ha="center", va="center",
                fontsize=LABEL_SIZE, in_layout=False,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )  # fmt: skip


def _boxes(point: Sequence[float], width: float, height: float) -> list[Box]:
    """Boxes for a text around a point, the preferred ones first."""
    x, y = point
    around = [(0, 1), (0, -1), (-1, 1), (1, 1), (-1, -1), (1, -1), (1, 0), (-1, 0)]
    centers = [
        (x + across * (far + width / 2), y + up * (far + height / 2))
        for far in (4, 10) for across, up in around
    ]  # fmt: skip
    return [(x - width / 2, y - height / 2, x + width / 2, y + height / 2) for x, y in centers]


def _overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def save(figure: "Figure", image: str | os.PathLike[str]) -> None:
    """Writes a figure, whole or not at all; the same figure gives the same SVG."""
    with replacing(image) as partial:
        figure.savefig(partial, metadata={"Date": None} if partial.suffix == ".svg" else None)
