"""The results of an evaluation as one HTML page that needs nothing beside it."""

import base64
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qinco_jax.evaluate import plots, summary
from qinco_jax.evaluate.report import Row
from qinco_jax.evaluate.summary import Evaluation
from qinco_jax.files import replacing

RECALL = re.compile(r"(?:(\d+)-)?recall@(\d+)")
INTERVAL = "over the vectors for MSE, over the queries for recall; of several seeds, all of theirs"
ABOUT = {
    "rates": "Error and recall against the size of a code. Bars are the intervals of the table; "
    "points of one rate stand side by side to be seen.",
    "times": "Quality against the time that encoding and decoding take.",
    "search": "Quality against the cost of search: A candidates are tried for each of B beams.",
    "shift": "What codecs lose of recall@1 on other queries. A bar whose interval crosses zero "
    "shows no loss.",
    "growth": "How the time for a vector grows with each size, the others held.",
    "growth-training": "How the time of training grows with each size, the others held.",
    "growth-memory": "How peak memory grows with each size, the others held.",
}


class Column(NamedTuple):
    """A column of figures.

    Attributes:
      key: of the figure in a row.
      heading: above it.
      about: what it means.
      show: figure -> text.
      best: which figure is the best; `None` where there is no better and worse to be claimed.
    """

    key: str
    heading: str
    about: str
    show: Callable[[float], str]
    best: Callable[[Iterable[float]], float] | None = None


def write_page(folder: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Path:
    """Draws an evaluation's plots (`plots.draw_all`) and writes its page, `report.html` by default.

    Args:
      folder: holds `results.jsonl`, and may hold `costs.jsonl` and `growth.jsonl`.
      path: file to write.

    Returns:
      The file written.

    Raises:
      InputError: a file is missing or damaged.
    """
    import jinja2

    evaluation = summary.load(folder)
    target = Path(folder) / "report.html" if path is None else Path(path)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(Path(__file__).with_name("page.html").read_text("utf-8"))
    text = template.render(
        title=evaluation.title,
        summary=_summary(evaluation),
        interval=INTERVAL,
        scores=_scores(evaluation),
        shifts=_shifts(evaluation),
        queries=_first(evaluation, "queries", "the main queries"),
        plots=[
            {"about": ABOUT[name], "image": base64.b64encode(image.read_bytes()).decode()}
            for name, image in plots.draw_all(folder).items()
        ],
        made=_made(evaluation),
        settings=_settings(evaluation),
    )
    with replacing(target) as partial:
        partial.write_text(text, encoding="utf-8")
    return target


def _first(evaluation: Evaluation, key: str, otherwise: str) -> str:
    return next((str(row[key]) for row in evaluation.rows if key in row), otherwise)


def _summary(evaluation: Evaluation) -> str:
    codecs = {row["codec"] for row in evaluation.points}
    sizes = dict.fromkeys(f"{row['bytes']:g}" for row in evaluation.points)
    parts = [f"{len(codecs)} codec{'s' * (len(codecs) > 1)} at {', '.join(sizes)} bytes per vector"]
    for key, text in (
        ("train_rows", "trained on {:,} vectors"),
        ("database_rows", "measured on a database of {:,}"),
        ("num_queries", "searched with {:,} queries"),
    ):
        counts = sorted({row[key] for row in evaluation.rows if row.get(key)})
        parts += [text.format(counts[-1])] if counts else []
    return "; ".join(parts) + "."


def _scores(evaluation: Evaluation) -> dict[str, Any]:
    columns = [column for column in _columns(evaluation.points) if _has(evaluation.points, column)]
    return _table("Results", columns, evaluation.points, evaluation.names)


def _has(rows: Sequence[Row], column: Column) -> bool:
    return any(row.get(column.key) is not None for row in rows)


def _columns(rows: Sequence[Row]) -> list[Column]:
    found = {key: RECALL.fullmatch(key) for row in rows for key in row}
    matches = [match for match in found.values() if match]
    matches.sort(key=lambda match: (int(match[1] or 0), int(match[2])))
    kinds = {bool(row.get("unit_norm")) for row in rows}  # errors of vectors, and of unit vectors
    best = min if len(kinds) == 1 else None
    return [
        Column("mse", "MSE", "mean squared error, summed over dimensions", _digits, best),
        *(
            Column(
                match[0],
                f"{match[1]}-R@{match[2]}" if match[1] else f"R@{match[2]}",
                f"share of the {match[1]} true nearest neighbours among the {match[2]} found"
                if match[1]
                else f"queries whose true nearest neighbour is among the {match[2]} found",
                lambda value: f"{100 * value:.1f}",
                max,
            )
            for match in matches
        ),
        Column("entropy_bits", "bits used", "entropy of the codewords' use, of the bits", _short),
        Column("dead_codewords", "dead", "codewords that no vector uses", _short),
        Column("encode_us", "encode µs", "time to encode a vector", _short),
        Column("decode_us", "decode µs", "time to decode a vector", _short),
        Column("train_seconds", "train s", "time of training", _short),
        Column("peak_mib", "peak MiB", "peak memory", _short),
        Column("model_bytes", "model kB", "size of the model", lambda v: _short(v / 1000)),
    ]


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _shifts(evaluation: Evaluation) -> dict[str, Any] | None:
    """The losses as rows of their own, so that they are shown as results are."""
    rows: list[Row] = []
    for row in evaluation.points:
        losses = summary.shifts(row)
        if losses:
            same = {key: row[key] for key in ("codec", "bytes", "trained_bytes") if key in row}
            values = {name: value for name, (value, _) in losses.items()}
            ends = {f"{name}_interval": ends for name, (_, ends) in losses.items()}
            rows.append({**same, **values, **ends})
    names = dict.fromkeys(name for row in evaluation.points for name in summary.shifts(row))
    about = "loss of recall@1 on these queries, percentage points"
    columns = [Column(name, name, about, lambda v: f"{100 * v:z.1f}") for name in names]
    return _table("Other queries", columns, rows, evaluation.names) if rows else None


def _table(
    title: str, columns: Sequence[Column], rows: Sequence[Row], names: Mapping[str, str]
) -> dict[str, Any]:
    """What the page's template shows as a table; within a rate the first column orders rows."""
    head = [{"heading": "codec", "about": "the codec", "first": "ascending", "sort": "none"}]
    for column in columns:
        first = "descending" if column.best is max else "ascending"
        sort = "ascending" if column is columns[0] else "none"
        head.append(
            {"heading": column.heading, "about": column.about, "first": first, "sort": sort}
        )
    rates = []
    for size in dict.fromkeys(row["bytes"] for row in rows):
        group = [row for row in rows if row["bytes"] == size]
        group.sort(key=lambda row: row.get(columns[0].key, float("inf")))
        shown = [
            {
                "name": names[row["codec"]],
                "notes": _notes(row, names),
                "cells": [_cell(row, column, group) for column in columns],
            }
            for row in group
        ]
        rates.append({"heading": f"{size:g} bytes per vector", "rows": shown})
    return {"title": title, "columns": head, "rates": rates}


def _notes(row: Row, names: Mapping[str, str]) -> list[str]:
    notes = [row["codec"]] if row["codec"] != names[row["codec"]] else []
    if row.get("trained_bytes", row["bytes"]) != row["bytes"]:
        notes.append(f"cut from {row['trained_bytes']:g} bytes")
    if row.get("unit_norm"):
        notes.append("MSE of unit vectors")
    return notes


def _cell(row: Row, column: Column, group: Sequence[Row]) -> dict[str, Any]:
    key, show = column.key, column.show
    if row.get(key) is None:
        return {"value": "", "text": "—", "note": "", "standing": ""}
    note = ""
    if f"{key}_interval" in row:
        low, high = (show(end) for end in summary.interval(row, key))
        note = f"{low} to {high}"
    elif key == "entropy_bits" and "bits" in row:
        note = f"of {row['bits']:g}"
    standing = _standing(row, column, group) if column.best else ""
    return {"value": row[key], "text": show(row[key]), "note": note, "standing": standing}


def _standing(row: Row, column: Column, group: Sequence[Row]) -> str:
    """Whether a row is the best of its rate, the same as far as can be told, or neither."""
    assert column.best is not None
    key = column.key
    having = [other for other in group if other.get(key) is not None]
    value = column.best(other[key] for other in having)
    if row[key] == value:
        return "best"
    (low, high) = summary.interval(row, key)
    bests = [summary.interval(other, key) for other in having if other[key] == value]
    return "same" if any(low <= best[1] and best[0] <= high for best in bests) else ""


def _made(evaluation: Evaluation) -> dict[str, str]:
    """Every value that the results give for how they were made."""
    keys = {
        "dataset": "data set",
        "train_rows": "training vectors",
        "database_rows": "database vectors",
        "num_queries": "queries",
        "queries": "main queries",
        "seed": "seeds",
        "versions": "versions",
        "machine": "machine",
        "revision": "revision",
    }
    made = {}
    for key, name in keys.items():
        values = dict.fromkeys(_text(row[key]) for row in evaluation.rows if key in row)
        if values:
            made[name] = "; ".join(values)
    return made


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    if isinstance(value, int):
        return f"{value:,}"
    return "unknown" if value is None else str(value)


def _settings(evaluation: Evaluation) -> dict[str, list[str]]:
    """Each settings that occur, as text -> the codecs and rates that had them."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in evaluation.rows:
        if row.get("settings"):
            text = json.dumps(row["settings"], indent=2, ensure_ascii=False)
            sizes = found.setdefault(text, {}).setdefault(evaluation.names[row["codec"]], [])
            sizes.append(f"{row['bytes']:g}")
    return {
        text: [
            f"{name} at {', '.join(dict.fromkeys(sizes))} bytes" for name, sizes in codecs.items()
        ]
        for text, codecs in found.items()
    }
