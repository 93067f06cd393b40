"""Operating points of an index as a table and as a plot."""

import os
from collections.abc import Sequence

from qinco_jax.evaluate import style
from qinco_jax.search.tune import SETTINGS, SPEED, Point, recalls

HEADINGS = {
    "num_probes": "probes",
    "num_reranked": "reranked",
    "ef_search": "ef",
    SPEED: "queries/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
}
SHORT = "R@"  # what tables of this library call recall@


def markdown(points: Sequence[Point]) -> str:
    """The points of one k as a Markdown table, the fastest first; recalls in percent."""
    measures = recalls(points[0]["k"])
    kept = [name for name in SETTINGS if any(point[name] is not None for point in points)]
    shown = [*kept, *measures, SPEED, "p50_ms", "p99_ms"]
    head = [HEADINGS.get(name, name.replace("recall@", SHORT)) for name in shown]
    lines = [head, *([_cell(point, name) for name in shown] for point in points)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["| " + " | ".join(map(str.rjust, line, widths)) + " |" for line in lines]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([rows[0], rule, *rows[1:]])


def _cell(point: Point, name: str) -> str:
    value = point[name]
    if "recall" in name:
        return f"{100 * value:.1f}"
    if name == SPEED:
        return f"{value:,.0f}"
    return f"{value:.2f}" if isinstance(value, float) else f"{value}"


def plot(points: Sequence[Point], image: str | os.PathLike[str], title: str) -> None:
    """Draws the recalls of the points of one k against queries a second, as PNG or SVG."""
    measures = recalls(points[0]["k"])
    looks = style.looks(measures)
    with style.plot_style():
        figure, axes = style.panels(len(measures), title, len(measures))
        for axis, name in zip(axes, measures, strict=True):
            pairs = sorted((point[SPEED], 100 * point[name]) for point in points)
            axis.plot(*zip(*pairs, strict=True), **{**looks[name], "linestyle": "none"})
            axis.set_xlabel("queries a second")
            style.log_axis(axis, "x")
            style.quality_axis(axis, name)
        style.finish(figure, style.lines(looks), "one query set, all queries in one call")
        style.save(figure, image)
