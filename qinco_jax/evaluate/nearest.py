"""Search for neighbours by several systems: its results as a file, table, plot and finding.

`experiments/nearest.py` measures them, one row for each setting of each system.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qinco_jax.evaluate import results, style, tables
from qinco_jax.evaluate.results import Row
from qinco_jax.evaluate.tables import Column

NEAREST, PLOT = "nearest.jsonl", "nearest"
BENCHMARK = "dataset", "vectors", "model_bytes", "lists", "metric", "residual"
"""Fields of rows that are measured beside each other."""
OURS, EXHAUSTIVE = "ours", "exhaustive"
SPEED, FIRST = "queries_per_second", "recall@1"
ABOUT = "Recall@1 against queries a second, of the settings in the table."
KEYS = *BENCHMARK, "system", "bytes", FIRST


def read(folder: str | os.PathLike[str]) -> list[Row]:
    """The rows in a folder; none if it has no such file. Raises `InputError` if it is damaged."""
    file = Path(folder) / NEAREST
    return results.read(file, KEYS) if file.exists() else []


def add(rows: Sequence[Row], folder: str | os.PathLike[str]) -> None:
    """Writes the rows of a benchmark into a folder, in place of earlier ones of the same."""
    own = {_benchmark(row) for row in rows}
    kept = [row for row in read(folder) if _benchmark(row) not in own]
    results.write([*kept, *rows], Path(folder) / NEAREST)


def front(rows: Sequence[Row]) -> list[Row]:
    """The rows of one system that no other beats in both recall@1 and speed, the fastest first."""
    rows = sorted(rows, key=lambda row: -row[SPEED])
    best = np.maximum.accumulate([row[FIRST] for row in rows])
    before = [-1, *best[:-1]]
    return [row for row, now, was in zip(rows, best, before, strict=True) if now > was]


def fronts(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The front of each system of a benchmark, with `times`: how many times as fast ours is.

    `times` is ours at the row's recall@1 or a better one; it is missing of our own rows and where
    ours never reaches that recall. Exhaustive search, which is not timed, is left out.
    """
    timed = [row for row in rows if row["system"] != EXHAUSTIVE]
    found = {
        system: front([row for row in timed if row["system"] == system])
        for system in dict.fromkeys(row["system"] for row in timed)
    }
    return {
        system: [{**row, **_times(row, found.get(OURS, []))} for row in own]
        for system, own in found.items()
    }


def _times(row: Row, ours: Sequence[Row]) -> dict[str, float]:
    enough = [own[SPEED] for own in ours if own[FIRST] >= row[FIRST]]
    return {"times": max(enough) / row[SPEED]} if enough and row["system"] != OURS else {}


def benchmarks(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each benchmark, by what it measured in words."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        lists = f"{row['lists']:,} {'residual ' * row['residual']}lists"
        title = f"{row['vectors']:,} vectors by {row['metric']}, {row['model_bytes']:g}-byte codes"
        found.setdefault(f"{title} in {lists}", []).append(row)
    return found


def columns() -> list[Column]:
    """What is told of a row."""

    def percent(value: float) -> str:
        return f"{100 * value:.1f}"

    def number(value: float) -> str:
        return f"{value:,.0f}"

    is_first = "share of queries whose true nearest neighbour is the first found"
    is_among = "share of queries whose true nearest neighbour is among the 10 found"
    share = "share of the 10 true nearest neighbours among the 10 found"
    times = "how many times as many queries ours answers at that recall@1 or a better one"
    return [
        Column(FIRST, "R@1", is_first, percent, max),
        Column("recall@10", "R@10", is_among, percent, max),
        Column("10-recall@10", "10-R@10", share, percent, max),
        Column(SPEED, "queries/s", "queries a second, all in one call", number, max),
        Column("times", "ours", times, lambda value: f"{value:.2g} times"),
        Column("bytes", "bytes", "that an index keeps of a vector, without its id", number),
        Column("num_probes", "lists", "inverted lists that are scanned", number),
        Column("num_reranked", "re-ranked", "codes that the network decodes", number),
    ]


def table(rows: Sequence[Row]) -> dict[str, object]:
    """The page's table: the fronts of each benchmark, with exhaustive search."""
    groups = {title: _shown(own) for title, own in benchmarks(rows).items()}
    about = "system", "what searches"
    return tables.table(
        "Nearest neighbours", columns(), groups, about, lambda row: row["system"], lambda row: []
    )


def markdown(rows: Sequence[Row]) -> str:
    """A benchmark's fronts as a Markdown table, system by system, the fastest first."""
    shown = columns()
    lines = [["system", *(column.heading for column in shown)]]
    for row in _shown(rows):
        cells = (
            column.show(row[column.key]) if row.get(column.key) is not None else ""
            for column in shown
        )
        lines.append([row["system"], *cells])
    return tables.aligned(lines)


def finding(rows: Sequence[Row]) -> str:
    """Of each benchmark the best recall@1, exhaustive search's, and how much faster ours is."""
    said = []
    for title, own in benchmarks(rows).items():
        best = max((row for row in own if row["system"] == OURS), key=lambda row: row[FIRST])
        text = f"{title}: recall@1 up to {100 * best[FIRST]:.1f} %"
        for row in own:
            if row["system"] == EXHAUSTIVE:
                text += f" (exhaustive search over reconstructions: {100 * row[FIRST]:.1f} %)"
        for system, front in fronts(own).items():
            times = [f"{row['times']:.2g}" for row in front if "times" in row]
            ends = sorted({*times}, key=float)
            if ends:
                text += (
                    f"; {' to '.join(dict.fromkeys([ends[0], ends[-1]]))} times as fast as {system}"
                )
        said.append(f"{text}.")
    return " ".join(said)


def draw(folder: str | os.PathLike[str]) -> Path:
    """Draws each benchmark's fronts, as PNG and SVG in the folder; returns the SVG."""
    rows = read(folder)
    parts = benchmarks(rows)
    looks = style.looks(dict.fromkeys(row["system"] for row in rows if row["system"] != EXHAUSTIVE))
    file = Path(folder) / f"{PLOT}.svg"
    with style.plot_style():
        figure, axes = style.panels(
            len(parts), results.title_of(str(rows[0]["dataset"])), 1, height=3.6
        )
        for axis, (title, own) in zip(axes, parts.items(), strict=True):
            axis.set_title(title)
            for system, points in fronts(own).items():
                pairs = [(100 * row[FIRST], row[SPEED]) for row in points]
                axis.plot(*zip(*pairs, strict=True), **looks[system])
            for row in own:
                if row["system"] == EXHAUSTIVE:
                    axis.axvline(100 * row[FIRST], color="0.5", linewidth=1, linestyle=":")
            style.log_axis(axis, "y")
            axis.set_xlabel("recall@1 (%); dotted: exhaustive search over the reconstructions")
            axis.set_ylabel("queries a second")
        style.finish(figure, style.lines(looks))
        for path in (file, file.with_suffix(".png")):
            style.save(figure, path)
    return file


def _benchmark(row: Row) -> tuple[object, ...]:
    return tuple(row[key] for key in BENCHMARK)


def _shown(rows: Sequence[Row]) -> list[Row]:
    found = [row for own in fronts(rows).values() for row in own]
    return found + [row for row in rows if row["system"] == EXHAUSTIVE]
