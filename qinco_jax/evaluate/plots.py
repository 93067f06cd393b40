"""Which plots an evaluation gets, and how each is drawn."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qinco_jax.evaluate import results, style
from qinco_jax.evaluate.neighbours import RANKS
from qinco_jax.evaluate.results import Evaluation, Row
from qinco_jax.evaluate.style import Label, Look
from qinco_jax.words import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES = ("mse", *(f"recall@{rank}" for rank in RANKS))
TIMES = {"encode_us": "encoding", "decode_us": "decoding"}
AXES = {
    "N": "N, vectors",
    "D": "D, dimensions",
    "M": "M, steps",
    "K": "K, codebook size",
    "A": "A, candidates",
    "B": "B, beam size",
}


class Plot(NamedTuple):
    """One kind of plot.

    Attributes:
      draw: evaluation -> figure, `None` if the files have nothing to show in it.
      about: what it shows, for the page.
    """

    draw: "Callable[[Evaluation], Figure | None]"
    about: str


def plot_rates(file: str | os.PathLike[str], image: str | os.PathLike[str], title: str) -> None:
    """Draws error and recall against bytes per vector, one line a codec, as PNG or SVG.

    Args:
      file: json lines written by `results.write`.
      image: file to write; its suffix gives the format.
      title: above the plot.
    """
    evaluation = results.gather(results.read(file, results.MEASURED))._replace(title=title)
    with style.plot_style():
        style.save(_rates(evaluation), image)


def draw_all(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Draws every plot for which an evaluation has results, as PNG and SVG in its folder.

    Returns:
      The name of each plot -> its SVG.
    """
    evaluation = results.load(folder)
    drawn = {}
    with style.plot_style():
        for name, plot in PLOTS.items():
            if figure := plot.draw(evaluation):
                for suffix in ("png", "svg"):
                    drawn[name] = Path(folder) / f"{name}.{suffix}"
                    style.save(figure, drawn[name])
    return drawn


def _rates(evaluation: Evaluation) -> "Figure":
    import numpy as np
    from matplotlib.transforms import ScaledTranslation

    shown = [key for key in MEASURES if any(key in row for row in evaluation.points)]
    figure, axes = style.panels(len(shown), evaluation.title)
    codecs = _looks(evaluation, evaluation.points)
    beside = _beside(codecs, evaluation.points)
    for axis, key in zip(axes, shown, strict=True):
        for codec, look in codecs.items():
            points = _having(evaluation.points, codec, key)
            if not points:
                continue
            move = ScaledTranslation(beside[codec] / 72, 0, figure.dpi_scale_trans)
            x, y = [row["bytes"] for row in points], [_value(row, key) for row in points]
            low, high = _whiskers(y, [results.interval(row, key) for row in points], key)
            axis.errorbar(
                x, y, (low, high), **look, elinewidth=0.9, capsize=2,
                transform=axis.transData + move,
            )  # fmt: skip
            for far in (np.subtract(y, low), np.add(y, high)):
                axis.update_datalim(np.column_stack([x, far]))  # moved lines do not do this
        axis.autoscale_view()
        style.rate_axis(axis, sorted({row["bytes"] for row in evaluation.points}))
        style.quality_axis(axis, key)
    style.finish(figure, _named(codecs, evaluation))
    return figure


def _beside(codecs: Iterable[str], points: Sequence[Row]) -> dict[str, float]:
    """How far, in points of print, codecs move so that those of the same rate stand side by side.

    A codec that shares no rate with others stays at its own.
    """
    sizes = {codec: {row["bytes"] for row in points if row["codec"] == codec} for codec in codecs}
    moves = {}
    for codec, own in sizes.items():
        near = [other for other, found in sizes.items() if own & found]
        step = min(1.6, style.SPREAD / len(near))
        moves[codec] = step * (near.index(codec) - (len(near) - 1) / 2)
    return moves


def _times(evaluation: Evaluation) -> "Figure | None":
    measure = "recall@1" if any("recall@1" in row for row in evaluation.points) else "mse"
    rows = [row for row in evaluation.points if measure in row]
    shown = [key for key in TIMES if any(key in row for row in rows)]
    if not shown:
        return None
    figure, axes = style.panels(len(shown), evaluation.title, height=3.4)
    codecs = _looks(evaluation, [row for row in rows if any(key in row for key in shown)])
    labels: list[list[Label]] = []
    for axis, key in zip(axes, shown, strict=True):
        labels.append([])
        for codec, look in codecs.items():
            points = _having(rows, codec, key)
            x, y = [row[key] for row in points], [_value(row, measure) for row in points]
            axis.plot(x, y, **{**look, "linewidth": 0.8})
            texts = [f"{row['bytes']:g}" for row in points]
            labels[-1] += zip(x, y, texts, strict=True)
        axis.set_xlabel(f"{TIMES[key]}, µs per vector")
        style.log_axis(axis, "x")
        style.quality_axis(axis, measure)
    style.finish(figure, _named(codecs, evaluation), "numbers: bytes per vector")
    style.write_labels(figure, axes, labels)
    return figure


def _search(evaluation: Evaluation) -> "Figure | None":
    """Searches against the cost of encoding, at the rates at which a model has the most of them."""
    groups: dict[tuple[float, str], list[Row]] = {}
    for row in evaluation.points:
        if row.get("beam_size") is not None:
            groups.setdefault((row["bytes"], row.get("model", row["codec"])), []).append(row)
    most = max(map(len, groups.values()), default=0)
    if most < 2:
        return None
    sizes = sorted({size for (size, _), rows in groups.items() if len(rows) == most})
    groups = {key: rows for key, rows in groups.items() if key[0] in sizes and len(rows) > 1}
    searched = [row for rows in groups.values() for row in rows]
    timed = all("encode_us" in row for row in searched)
    measures = [key for key in MEASURES[:2] if any(key in row for row in searched)]
    shown = [(size, key) for size in sizes for key in measures]
    models = style.looks(dict.fromkeys(model for _, model in groups))
    figure, axes = style.panels(len(shown), evaluation.title, len(measures))
    labels: list[list[Label]] = []
    for axis, (size, key) in zip(axes, shown, strict=True):
        labels.append([])
        for model, look in models.items():
            rows = [row for row in groups.get((size, model), []) if key in row]
            labels[-1] += _envelope(axis, rows, key, timed, look)
        axis.set_title(counted(size, "byte"))
        axis.set_xlabel("encoding, µs per vector" if timed else "A · B")
        style.log_axis(axis, "x")
        style.quality_axis(axis, key)
    note = "numbers: A,B; lines: the best up to each cost"
    style.finish(figure, style.lines(models), note)
    style.write_labels(figure, axes, labels)
    return figure


def _envelope(axis: "Axes", rows: Sequence[Row], key: str, timed: bool, look: Look) -> list[Label]:
    """Draws one model's searches, and a line through the best up to each cost."""
    points = []
    for row in rows:
        candidates = row.get("num_candidates") or "all"
        setting = f"{candidates},{row['beam_size']}" + (" joint" if row.get("joint") else "")
        if timed or candidates != "all":
            cost = row["encode_us"] if timed else candidates * row["beam_size"]
            points.append((cost, _value(row, key), setting))
    points.sort()
    x, y = [x for x, _, _ in points], [y for _, y, _ in points]
    best = list(accumulate(y, min if key == "mse" else max))
    axis.plot(x, best, **{**look, "marker": "", "linewidth": 0.9}, drawstyle="steps-post")
    axis.plot(x, y, **{**look, "linestyle": "none"})
    return points


def _shift(evaluation: Evaluation) -> "Figure | None":
    """Losses on other sets of queries, at the highest of the rates that most codecs have."""
    losses = [(row, results.losses(row)) for row in evaluation.points]
    count = Counter(row["bytes"] for row, found in losses if found)
    if not count:
        return None
    size = max(count, key=lambda size: (count[size], size))
    losses = [(row, found) for row, found in losses if found and row["bytes"] == size]
    others = list(dict.fromkeys(name for _, found in losses for name in found))
    height = 0.7 + 0.13 * len(losses) * (len(others) + 1)
    figure, (axis,) = style.panels(1, evaluation.title, height=height)
    thick, bars = 0.8 / len(others), {}
    for i, other in enumerate(others):
        found = {y: found[other] for y, (_, found) in enumerate(losses) if other in found}
        values = [100 * value for value, _ in found.values()]
        whiskers = _whiskers(values, [ends for _, ends in found.values()], "recall@1")
        bars[other] = axis.barh(
            [y + thick * (i - (len(others) - 1) / 2) for y in found], values, thick,
            xerr=whiskers, **style.bar_look(i),
        )  # fmt: skip
    axis.set_yticks(range(len(losses)), [evaluation.names[row["codec"]] for row, _ in losses])
    axis.invert_yaxis()
    axis.grid(False, axis="y")
    axis.set_xlabel(f"loss of recall@1 at {counted(size, 'byte')}, percentage points")
    style.finish(figure, bars, f"from “{losses[0][0].get('queries', 'the main queries')}” to")
    return figure


def _growth(evaluation: Evaluation, keys: Sequence[str], ylabel: str) -> "Figure | None":
    rows = [row for row in evaluation.growth if any(row.get(key) for key in keys)]
    found = {row["axis"] for row in rows}
    shown = [*(name for name in AXES if name in found), *sorted(found - AXES.keys())]
    if not shown:
        return None
    codecs = _looks(evaluation, rows)
    variants = {
        (codec, key): {**look, "markerfacecolor": "white" if key == "decode_us" else look["color"]}
        for codec, look in codecs.items() for key in keys
    }  # fmt: skip
    height = 2.4 + 0.1 * len(variants)  # space for the slopes
    figure, axes = style.panels(len(shown), evaluation.title, 3, height, one_scale=True)
    for axis, name in zip(axes, shown, strict=True):
        for (codec, key), look in variants.items():
            own = _having([row for row in rows if row["axis"] == name], codec, key)
            points = sorted((row["value"], row[key]) for row in own if row[key])
            if points:
                axis.plot(*zip(*points, strict=True), **look, label=_slope(points))
        axis.set_xlabel(AXES.get(name, name))
        style.log_axis(axis, "x")
        style.legend_below(axis, "fitted slopes")
    figure.supylabel(ylabel, fontsize="medium")
    style.log_axis(axes[0], "y")
    names = {
        evaluation.names[codec] + (f", {TIMES[key]}" if key in TIMES else ""): look
        for (codec, key), look in variants.items()
    }
    style.finish(figure, style.lines(names))
    return figure


def _slope(points: Sequence[tuple[float, float]]) -> str:
    import numpy as np

    x, y = np.log(np.asarray(points, np.float64)).T
    return f"{np.polyfit(x, y, 1)[0]:z.2f}" if len(set(x)) > 1 else "one size"


def _looks(evaluation: Evaluation, rows: Sequence[Row]) -> dict[str, Look]:
    """The codecs of some rows; each looks the same in every plot."""
    present = {row["codec"] for row in rows}
    every = style.looks(evaluation.names)
    return {codec: look for codec, look in every.items() if codec in present}


def _named(codecs: Mapping[str, Look], evaluation: Evaluation) -> dict[str, Any]:
    return style.lines({evaluation.names[codec]: look for codec, look in codecs.items()})


def _having(rows: Sequence[Row], codec: str, key: str) -> list[Row]:
    return [row for row in rows if row["codec"] == codec and key in row]


def _value(row: Row, key: str) -> float:
    return float(row[key] * _unit(key))


def _unit(key: str) -> int:
    return 1 if key == "mse" else 100


def _whiskers(
    values: Sequence[float], ends: Sequence[results.Interval], key: str
) -> tuple[list[float], list[float]]:
    """How far intervals reach below and above values, as matplotlib takes it."""
    pairs = list(zip(values, ends, strict=True))
    low = [max(0.0, value - _unit(key) * ends[0]) for value, ends in pairs]
    return low, [max(0.0, _unit(key) * ends[1] - value) for value, ends in pairs]


PLOTS = {
    "rates": Plot(
        _rates,
        "Error and recall against the size of a code. Bars are the intervals of the table; "
        "codecs of the same rate are drawn side by side.",
    ),
    "times": Plot(_times, "Quality against the time that encoding and decoding take."),
    "search": Plot(
        _search,
        "Quality against the cost of search: A candidates are tried for each of B beams.",
    ),
    "shift": Plot(
        _shift,
        "What codecs lose of recall@1 on other queries. A bar whose interval crosses zero "
        "shows no loss.",
    ),
    "growth": Plot(
        lambda found: _growth(found, list(TIMES), "µs per vector"),
        "How the time for a vector grows with each size, the others fixed.",
    ),
    "growth-training": Plot(
        lambda found: _growth(found, ["train_seconds"], "training, s"),
        "How the time of training grows with each size, the others fixed.",
    ),
    "growth-memory": Plot(
        lambda found: _growth(found, ["peak_mib"], "peak memory, MiB"),
        "How peak memory grows with each size, the others fixed.",
    ),
}
"""All plots, by the name of their files."""
