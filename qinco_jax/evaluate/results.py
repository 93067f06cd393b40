"""Rows of results: made from scores, written and read as json lines, gathered over seeds."""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from qinco_jax.codecs.codec import Codec
from qinco_jax.errors import InputError
from qinco_jax.evaluate.metrics import Estimate, Score, measure
from qinco_jax.evaluate.neighbours import Queries
from qinco_jax.evaluate.progress import Stage, counting, silent
from qinco_jax.files import replacing
from qinco_jax.vectors.stored import Vectors
from qinco_jax.words import counted

RESULTS, COSTS, GROWTH = "results.jsonl", "costs.jsonl", "growth.jsonl"
POINT = ("codec", "bytes")
MEASURED = (*POINT, "mse")
RENAMED = {'"normalize":': '"unit_norm":', '"family":': '"model":'}  # in files of older versions

Row = Mapping[str, Any]
Interval = tuple[float, float]


class Evaluation(NamedTuple):
    """The files of one evaluation, with the seeds taken together.

    Attributes:
      title: name of the data set.
      rows: the results as they were written, one for each codec, rate and seed.
      points: one for each codec and rate, ordered by rate: results and costs of all seeds.
      names: codec -> display name, of all codecs in the files, no two alike.
      growth: how times grow with sizes; empty if that was not measured.
    """

    title: str
    rows: list[Row]
    points: list[Row]
    names: dict[str, str]
    growth: list[Row]


def score(
    codecs: Iterable[Codec],
    database: Vectors,
    query_sets: Sequence[Queries] = (),
    stage: Stage = silent,
    known_codes: np.ndarray | None = None,
    trial_rows: np.ndarray | None = None,
) -> list[Row]:
    """One row for each codec: its name, bytes, model's size, and what `metrics.measure` finds.

    The field `unit_norm` tells whether the error is that of unit vectors. `known_codes` are the
    database's, by every one of the codecs; `None` encodes it. `trial_rows` [T, D] are other
    vectors, to choose a reading of distances by (`measure`).
    """
    rows: list[Row] = []
    for codec in codecs:
        with stage(f"measuring {codec.name} at {counted(codec.bits / 8, 'byte')}") as advance:
            progress = counting(advance, len(database))
            found = measure(codec, database, query_sets, progress, known_codes, trial_rows)
        what = {"codec": codec.name, "bytes": codec.bits / 8, "model_bytes": codec.size}
        rows.append({**what, "unit_norm": codec.unit_norm, **fields(found, query_sets)})
    return rows


def fields(score: Score, query_sets: Sequence[Queries]) -> Row:
    """A score as fields of a row: measures of the main queries, and of the others by name.

    Recall by the reading of distances that was chosen, if one was, has names that begin with
    "reading_"; "reading" is its kind, and "reading_bytes" are those of a code and of what the
    reading keeps beside it.
    """
    found = {
        queries.name: _reading(score, queries)
        | {
            name: value
            for measure, estimate in {
                **score.recall[queries.name],
                **{f"{key}_loss": loss for key, loss in score.losses.get(queries.name, {}).items()},
            }.items()
            for name, value in _with_interval(measure, estimate).items()
        }
        for queries in query_sets
    }
    main = query_sets[0].name if query_sets else None
    return {
        **_with_interval("mse", score.mse),
        "relative_error": score.relative_error,
        "queries": main,
        **(found.pop(main) if main is not None else {}),
        "other_queries": found,
        "entropy_bits": score.entropy_bits,
        "column_entropy_bits": score.column_entropy_bits,
        "dead_codewords": score.dead_codewords,
    }


def _reading(score: Score, queries: Queries) -> dict[str, Any]:
    chosen = score.readings.get(queries.name)
    return {} if chosen is None else {"reading": chosen.kind, "reading_bytes": chosen.bytes}


def _with_interval(name: str, estimate: Estimate) -> Row:
    return {name: estimate.value, f"{name}_interval": [estimate.low, estimate.high]}


def write(rows: Iterable[Row], path: str | os.PathLike[str]) -> None:
    """Writes rows as json lines; the file appears whole or not at all."""
    with replacing(path) as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path: str | os.PathLike[str], keys: Sequence[str] = ()) -> list[Row]:
    """Rows that `write` wrote; raises `InputError` if there are none or one lacks any of `keys`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); evaluate into this folder") from None
    for old, new in RENAMED.items():
        text = text.replace(old, new)
    rows: list[Row] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict) or any(row.get(key) is None for key in keys):
            wanted = " and ".join(repr(key) for key in keys)
            raise InputError(
                f"{path}, line {number} is not a result with {wanted}; delete the line, "
                "or delete the file and evaluate again"
            )
        rows.append(row)
    if not rows:
        raise InputError(f"{path} holds no results; delete it and evaluate again")
    return rows


def load(folder: str | os.PathLike[str]) -> Evaluation:
    """Reads an evaluation's results, and its costs and growth if the folder has them.

    Raises:
      InputError: a file is missing or damaged, or the results are of several data sets.
    """
    costs, growth = Path(folder) / COSTS, Path(folder) / GROWTH
    return gather(
        read(Path(folder) / RESULTS, MEASURED),
        read(costs, POINT) if costs.exists() else [],
        read(growth, ("codec", "axis", "value")) if growth.exists() else [],
    )


def gather(
    rows: Sequence[Row], costs: Sequence[Row] = (), growth: Sequence[Row] = ()
) -> Evaluation:
    """Takes the seeds of rows of results and costs together; raises as `load` does."""
    costs_at = _by_point(costs)
    points: list[Row] = [
        {**_average(costs_at.get(point, [])), **_average(seeds)}
        for point, seeds in _by_point(rows).items()
    ]
    points.sort(key=lambda row: row["bytes"])
    titles = {str(row["dataset"]) for row in rows if "dataset" in row}
    if len(titles) > 1:
        raise InputError(
            f"the results are of several data sets ({', '.join(sorted(titles))}); "
            "evaluate each into a folder of its own"
        )
    title = title_of("".join(titles))
    return Evaluation(title, list(rows), points, _names([*rows, *growth]), list(growth))


def title_of(dataset: str) -> str:
    """The name of a data set without the hash of its path, which says nothing to a reader."""
    return re.sub(r"-(?!\d{6}$)[0-9a-f]{6}$", "", dataset)  # six digits are rather a date


def interval(row: Mapping[str, Any], key: str) -> Interval:
    """The interval of a value; the value alone if none was measured."""
    low, high = row.get(f"{key}_interval") or (row[key], row[key])
    return low, high


def losses(row: Row, key: str = "recall@1") -> dict[str, tuple[float, Interval]]:
    """What a codec loses of a recall on each other set of queries, with an interval.

    If the queries are the main ones disturbed, the loss was measured query by query; otherwise the
    interval takes the errors on both sets as independent.
    """
    found = {}
    for name, other in (row.get("other_queries") or {}).items():
        if f"{key}_loss" in other:
            found[name] = other[f"{key}_loss"], interval(other, f"{key}_loss")
        elif key in row and key in other:
            (main_low, main_high), (low, high) = interval(row, key), interval(other, key)
            value = row[key] - other[key]
            down = math.hypot(row[key] - main_low, high - other[key])
            up = math.hypot(main_high - row[key], other[key] - low)
            found[name] = value, (value - down, value + up)
    return found


def _by_point(rows: Iterable[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """The rows of each codec and rate, the last one if a seed was measured again."""
    points: dict[tuple[Any, ...], dict[Any, Row]] = {}
    for row in rows:
        points.setdefault(tuple(row[key] for key in POINT), {})[row.get("seed")] = row
    return {point: list(seeds.values()) for point, seeds in points.items()}


def _average(rows: Sequence[Row]) -> dict[str, Any]:
    """Means of the numbers; an interval reaches from the lowest to the highest of the seeds'."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        having = [row for row in rows if row.get(key) is not None]
        values = [row[key] for row in having]
        if key.endswith("_interval"):
            continue
        if all(isinstance(value, Mapping) for value in values) and values:
            found[key] = _average(values)
        elif not all(isinstance(value, int | float) for value in values) or not values:
            found[key] = values[0] if values else None
        else:
            found[key] = values[0] if len(set(values)) == 1 else fmean(values)
            if len(set(values)) > 1 or any(f"{key}_interval" in row for row in having):
                lows, highs = zip(*(interval(row, key) for row in having), strict=True)
                found[f"{key}_interval"] = [min(lows), max(highs)]
    return found


def _names(rows: Iterable[Row]) -> dict[str, str]:
    """Labels; codecs that share one get their model beside it, or else the whole specification."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row["codec"], row)
    choices = [
        (label := row.get("label", codec), f"{label} ({row.get('model')})", f"{label} ({codec})")
        for codec, row in first.items()
    ]
    used = [Counter(texts) for texts in zip(*choices, strict=True)]
    return {
        codec: next(text for text, count in zip(texts, used, strict=True) if count[text] == 1)
        for codec, texts in zip(first, choices, strict=True)
    }
