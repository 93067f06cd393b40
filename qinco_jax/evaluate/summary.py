"""What an evaluation's files say, seeds taken together. Plots and page show only this."""

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from qinco_jax.errors import InputError
from qinco_jax.evaluate import report
from qinco_jax.evaluate.report import Row

SAME = ("codec", "bytes")
Interval = tuple[float, float]


class Evaluation(NamedTuple):
    """The files of one evaluation.

    Attributes:
      title: name of the data set.
      rows: the results as they were written, one for each codec, rate and seed.
      points: one for each codec and rate, ordered by rate: results and costs of all seeds.
      names: codec -> name for people, of all codecs in the files, no two alike.
      growth: how times grow with sizes; empty where that was not measured.
    """

    title: str
    rows: list[Row]
    points: list[Row]
    names: dict[str, str]
    growth: list[Row]


def load(folder: str | os.PathLike[str]) -> Evaluation:
    """Reads an evaluation's results, and its costs and growth where they are.

    Raises:
      InputError: a file is missing or damaged, or the results are of several data sets.
    """
    results, costs, growth = (
        Path(folder) / f"{name}.jsonl" for name in ("results", "costs", "growth")
    )
    return gather(
        _results(results),
        report.read(costs, SAME) if costs.exists() else [],
        report.read(growth, ("codec", "axis", "value")) if growth.exists() else [],
    )


def load_results(results: str | os.PathLike[str]) -> Evaluation:
    """Reads results alone, of which only codec, bytes and MSE must be there."""
    return gather(_results(Path(results)))


def gather(
    rows: Sequence[Row], costs: Sequence[Row] = (), growth: Sequence[Row] = ()
) -> Evaluation:
    """What rows of results, costs and growth say together; see `Evaluation`."""
    spent = _by_rate(costs)
    points: list[Row] = [
        {**_together(spent.get(place, [])), **_together(group)}
        for place, group in _by_rate(rows).items()
    ]
    points.sort(key=lambda row: row["bytes"])
    titles = {str(row["dataset"]) for row in rows if "dataset" in row}
    if len(titles) > 1:
        raise InputError(
            f"the results are of several data sets ({', '.join(sorted(titles))}); "
            "evaluate each into a folder of its own"
        )
    return Evaluation("".join(titles), list(rows), points, _names([*rows, *growth]), list(growth))


def interval(row: Mapping[str, Any], key: str) -> Interval:
    """The interval of a value; the value alone where none was measured."""
    low, high = row.get(f"{key}_interval") or (row[key], row[key])
    return low, high


def shifts(row: Row, key: str = "recall@1") -> dict[str, tuple[float, Interval]]:
    """What a codec loses of a recall on each other set of queries, with an interval.

    Where the queries are the main ones disturbed, the loss was measured query by query; elsewhere
    the interval takes the errors on both sets as independent.
    """
    losses = {}
    for name, other in (row.get("other_queries") or {}).items():
        if f"{key}_loss" in other:
            losses[name] = other[f"{key}_loss"], interval(other, f"{key}_loss")
        elif key in row and key in other:
            (main_low, main_high), (low, high) = interval(row, key), interval(other, key)
            value = row[key] - other[key]
            down = math.hypot(row[key] - main_low, high - other[key])
            up = math.hypot(main_high - row[key], other[key] - low)
            losses[name] = value, (value - down, value + up)
    return losses


def _results(path: Path) -> list[Row]:
    return report.read(path, (*SAME, "mse"))


def _by_rate(rows: Iterable[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """The rows of each codec and rate, the last where a seed was measured again."""
    groups: dict[tuple[Any, ...], dict[Any, Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in SAME), {})[row.get("seed")] = row
    return {place: list(seeds.values()) for place, seeds in groups.items()}


def _together(rows: Sequence[Row]) -> dict[str, Any]:
    """Means of the numbers; an interval reaches from the lowest to the highest of the seeds'."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        having = [row for row in rows if row.get(key) is not None]
        values = [row[key] for row in having]
        if key.endswith("_interval"):
            continue
        if all(isinstance(value, Mapping) for value in values) and values:
            found[key] = _together(values)
        elif not all(isinstance(value, int | float) for value in values) or not values:
            found[key] = values[0] if values else None
        else:
            found[key] = values[0] if len(set(values)) == 1 else fmean(values)
            if len(set(values)) > 1 or any(f"{key}_interval" in row for row in having):
                lows, highs = zip(*(interval(row, key) for row in having), strict=True)
                found[f"{key}_interval"] = [min(lows), max(highs)]
    return found


def _names(rows: Iterable[Row]) -> dict[str, str]:
    """Labels; where codecs share one, with the model they search; else with all that was typed."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row["codec"], row)
    choices = [
        (label := row.get("label", codec), f"{label} ({row.get('family')})", f"{label} ({codec})")
        for codec, row in first.items()
    ]
    used = [Counter(texts) for texts in zip(*choices, strict=True)]
    return {
        codec: next(text for text, count in zip(texts, used, strict=True) if count[text] == 1)
        for codec, texts in zip(first, choices, strict=True)
    }
