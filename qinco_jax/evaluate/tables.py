"""Tables of results: what their columns are and mean, in Markdown and for the page."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from qinco_jax.evaluate import results
from qinco_jax.evaluate.metrics import BY_READING
from qinco_jax.evaluate.neighbours import RANKS
from qinco_jax.evaluate.results import Evaluation, Row
from qinco_jax.words import counted, format_size

ENTROPY = (
    "bits that a code carries, of those it takes: the entropy of how often each codeword occurs, "
    "which is lower the more unevenly they are used"
)
DEAD = "codewords that no vector of the database uses, counted over all steps of a code"
RECALL = re.compile(r"(?:(\d+)-)?recall@(\d+)")
READING_RANKS = 1, 10  # at which tables show recall by the chosen reading
STARRED = "by the reading of distances that found most in a trial on rows that are not measured"
READING_BYTES = (
    "bytes of a code and of what that reading keeps beside it: nothing where it is the distance to "
    "the reconstruction, or a byte of the vector's length or of a scale for the reconstruction"
)
MODEL_BYTES = (
    "bytes of the codebooks and networks, in float32, which all codes share and a reader needs once"
)
PEAK = (
    "memory of encoding and decoding at its peak, beyond what the process was already using: 0 if "
    "no more was needed"
)
MODEL_NOTE = f"model: {MODEL_BYTES}."
NOTE = """\
R@k: by the distance to the reconstruction. R@k*: by the reading of distances that found most in a
trial on rows that are not measured; bytes that it keeps beside each code are those after the +."""
DASH = "—"
NO_READING = f"{DASH}: not tried, since there were no such rows or an older version measured it."


class Column(NamedTuple):
    """A column of numbers.

    Attributes:
      key: of the number in a row.
      heading: above it, in lines.
      about: what it means.
      show: number -> text.
      best: which number is the best; `None` if none can be called better than another.
    """

    key: str
    heading: str
    about: str
    show: Callable[[float], str]
    best: Callable[[Iterable[float]], float] | None = None


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table, ordered by rate, that also reads well in a terminal.

    Recall by the chosen reading, and the models' sizes, have columns of their own, and a note
    below, if any row has them.
    """
    ranks = [k for k in RANKS if all(f"recall@{k}" in row for row in rows)]
    shown = {f"R@{k}": f"recall@{k}" for k in ranks}
    has_reading, has_model = (any(key in row for row in rows) for key in ("reading", "model_bytes"))
    if has_reading:
        shown |= {f"R@{k}*": f"{BY_READING}recall@{k}" for k in READING_RANKS if k in ranks}
    lines = [["codec", "bytes", *["model"] * has_model, "MSE", *shown]]
    for row in sorted(rows, key=lambda row: row["bytes"]):
        recall = [f"{100 * row[key]:.1f}" if key in row else DASH for key in shown.values()]
        extra = _bytes_beside(row)
        size = f"{row['bytes']:g}" + f"+{extra:g}" * (extra > 0)
        model = [format_size(int(row["model_bytes"])) if "model_bytes" in row else DASH] * has_model
        lines.append([row["codec"], size, *model, f"{row['mse']:.6g}", *recall])
    lacks = has_reading and not all("reading" in row for row in rows)
    notes = [NOTE] * has_reading + [NO_READING] * lacks + [MODEL_NOTE] * has_model
    return "\n".join([aligned(lines), *([""] if notes else []), *notes])


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Cells in lines, the first of them the headings, as a Markdown table with straight columns."""
    first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    text = [
        " | ".join([f"| {name:{first}}", *map(str.rjust, cells, widths)]) + " |"
        for name, *cells in lines
    ]
    rule = "|".join(["", "-" * (first + 2), *("-" * (width + 1) + ":" for width in widths), ""])
    return "\n".join([text[0], rule, *text[1:]])


def of_scores(evaluation: Evaluation) -> dict[str, Any]:
    """The page's main table: error, recall, usage and costs of each codec at each rate."""
    rows = evaluation.points
    measured = [
        column for column in columns(rows) if any(row.get(column.key) is not None for row in rows)
    ]
    return _table("Results", measured, rows, evaluation.names)


def of_losses(evaluation: Evaluation) -> dict[str, Any] | None:
    """The page's table of what each codec loses on other queries; `None` without any."""
    rows: list[Row] = []
    for row in evaluation.points:
        found = results.losses(row)
        if found:
            same = {key: row[key] for key in ("codec", "bytes", "trained_bytes") if key in row}
            values = {name: value for name, (value, _) in found.items()}
            ends = {f"{name}_interval": ends for name, (_, ends) in found.items()}
            rows.append({**same, **values, **ends})
    names = dict.fromkeys(name for row in evaluation.points for name in results.losses(row))
    about = "loss of recall@1 on these queries, percentage points"
    shown = [Column(name, name, about, lambda v: f"{100 * v:z.1f}") for name in names]
    return _table("Other queries", shown, rows, evaluation.names) if rows else None


def columns(rows: Sequence[Row]) -> list[Column]:
    """All columns of the main table, with those of the recalls that occur in the rows.

    Where codecs keep different numbers of bytes beside their codes, none is the best by its
    reading of distances.
    """
    found = {key: RECALL.fullmatch(key) for row in rows for key in row}
    matches = [match for match in found.values() if match]
    matches.sort(key=lambda match: (int(match[1] or 0), int(match[2])))
    kinds = {bool(row.get("unit_norm")) for row in rows}  # errors of vectors, and of unit vectors
    best = min if len(kinds) == 1 else None
    return [
        Column("mse", "MSE", "mean squared error, summed over dimensions", _digits, best),
        *map(_recall_column, matches),
        *_reading_columns(rows),
        Column("entropy_bits", "bits\nused", ENTROPY, _short),
        Column("dead_codewords", "dead", DEAD, _short),
        Column("encode_us", "encode\nµs", "time to encode a vector, in microseconds", _short),
        Column("decode_us", "decode\nµs", "time to decode a vector, in microseconds", _short),
        Column("train_seconds", "train\ns", "time of training, in seconds", _short),
        Column("peak_mib", "peak\nMiB", PEAK, _short),
        Column("model_bytes", "model", MODEL_BYTES, lambda v: format_size(int(v))),
    ]


def _recall_column(match: re.Match[str]) -> Column:
    key, count, rank = match[0], match[1], match[2]
    if count:
        heading = f"{count}-\nR@{rank}"
        about = f"share of the {count} true nearest neighbours among the {rank} found"
    else:
        heading = f"R@{rank}"
        place = "the first" if rank == "1" else f"among the {rank}"
        about = f"share of queries whose true nearest neighbour is {place} found"
    return Column(key, heading, about, lambda value: f"{100 * value:.1f}", max)


def _reading_columns(rows: Sequence[Row]) -> list[Column]:
    """Recall by the chosen reading, and the bytes that it takes in all."""
    kept = {_bytes_beside(row) for row in rows if "reading_bytes" in row}
    found = []
    for rank in READING_RANKS:
        match = RECALL.fullmatch(f"recall@{rank}")
        assert match is not None
        plain = _recall_column(match)
        found.append(
            plain._replace(
                key=f"{BY_READING}{plain.key}", heading=f"{plain.heading}*",
                about=f"{plain.about}, {STARRED}", best=max if len(kept) == 1 else None,
            )
        )  # fmt: skip
    return [*found, Column("reading_bytes", "bytes*", READING_BYTES, lambda v: f"{v:g}")]


def _bytes_beside(row: Row) -> float:
    """What the chosen reading keeps beside a code; 0 if none was chosen."""
    return round(row.get("reading_bytes", row["bytes"]) - row["bytes"], 3)


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(
    title: str, columns: Sequence[Column], rows: Sequence[Row], names: Mapping[str, str]
) -> dict[str, Any]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{counted(row['bytes'], 'byte')} per vector", []).append(row)
    return table(
        title, columns, groups, ("codec", "the codec"),
        lambda row: names[row["codec"]], lambda row: _notes(row, names),
    )  # fmt: skip


def table(
    title: str,
    columns: Sequence[Column],
    groups: Mapping[str, Sequence[Row]],
    rows_are: tuple[str, str],
    name: Callable[[Row], str],
    notes: Callable[[Row], list[str]],
) -> dict[str, Any]:
    """What the page's template shows as a table; the first column orders the rows of a group.

    Args:
      title: of the table, for screen readers.
      columns: of numbers.
      groups: heading -> its rows, among which the best are marked.
      rows_are: heading and meaning of the names.
      name: of a row.
      notes: small lines below the name.
    """
    heading, about = rows_are
    head = [{"heading": heading, "about": about, "first": "ascending", "sort": "none"}]
    for column in columns:
        first = "descending" if column.best is max else "ascending"
        sort = "ascending" if column is columns[0] else "none"
        head.append(
            {"heading": column.heading, "about": column.about, "first": first, "sort": sort}
        )
    shown = []
    for group_heading, rows in groups.items():
        group = sorted(rows, key=lambda row: row.get(columns[0].key, float("inf")))
        lines = [
            {
                "name": name(row),
                "notes": notes(row),
                "cells": [_cell(row, column, group) for column in columns],
            }
            for row in group
        ]
        shown.append({"heading": group_heading, "rows": lines})
    return {"title": title, "columns": head, "groups": shown}


def _notes(row: Row, names: Mapping[str, str]) -> list[str]:
    notes = [row["codec"]] if row["codec"] != names[row["codec"]] else []
    if row.get("trained_bytes", row["bytes"]) != row["bytes"]:
        notes.append(f"cut from {counted(row['trained_bytes'], 'byte')}")
    if row.get("unit_norm"):
        notes.append("MSE of unit vectors")
    return notes


def _cell(row: Row, column: Column, group: Sequence[Row]) -> dict[str, Any]:
    key, show = column.key, column.show
    if row.get(key) is None:
        return {"value": "", "text": DASH, "note": "", "standing": ""}
    note = ""
    if f"{key}_interval" in row:
        low, high = (show(end) for end in results.interval(row, key))
        note = f"{low} to {high}"
    elif key == "entropy_bits" and "bits" in row:
        note = f"of {row['bits']:g}"
    elif key == "reading_bytes" and _bytes_beside(row):
        note = row.get("reading", "")
    found = standing(row, column, group) if column.best else ""
    return {"value": row[key], "text": show(row[key]), "note": note, "standing": found}


def standing(row: Row, column: Column, group: Sequence[Row]) -> str:
    """How a row compares at its rate: "best", "same" if not distinguishable from it, else "".

    A row that is alone at its rate is not called the best.
    """
    assert column.best is not None
    key = column.key
    having = [other for other in group if other.get(key) is not None]
    if len(having) < 2:
        return ""
    value = column.best(other[key] for other in having)
    if row[key] == value:
        return "best"
    low, high = results.interval(row, key)
    bests = [results.interval(other, key) for other in having if other[key] == value]
    return "same" if any(low <= best[1] and best[0] <= high for best in bests) else ""
