"""Scores of several codecs on one set: computed, written as json lines, shown as a table."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qinco_jax.codecs.codec import Codec
from qinco_jax.errors import InputError
from qinco_jax.evaluate.metrics import Estimate, Progress, Score, measure
from qinco_jax.evaluate.neighbours import RANKS, Queries
from qinco_jax.files import replacing
from qinco_jax.vectors.stored import Vectors

Row = Mapping[str, Any]


def score(
    codecs: Iterable[Codec],
    database: Vectors,
    questions: Sequence[Queries] = (),
    progress: Callable[[Codec], Progress] | None = None,
) -> list[Row]:
    """One row for each codec: its name, bytes, and what `metrics.measure` finds.

    The field `unit_norm` tells whether the error is that of unit vectors.
    """
    rows: list[Row] = []
    for codec in codecs:
        found = measure(codec, database, questions, None if progress is None else progress(codec))
        what = {"codec": codec.name, "bytes": codec.bits / 8, "unit_norm": codec.unit_norm}
        rows.append({**what, **figures(found, questions)})
    return rows


def figures(score: Score, questions: Sequence[Queries]) -> Row:
    """A score as fields of a row: measures of the main queries, and of the others by name."""
    found = {
        asked.name: {
            name: value
            for measure, estimate in {
                **score.recall[asked.name],
                **{f"{key}_loss": loss for key, loss in score.losses.get(asked.name, {}).items()},
            }.items()
            for name, value in _spread(measure, estimate).items()
        }
        for asked in questions
    }
    main = questions[0].name if questions else None
    return {
        **_spread("mse", score.mse),
        "relative_error": score.relative_error,
        "queries": main,
        **(found.pop(main) if main is not None else {}),
        "other_queries": found,
        "entropy_bits": score.entropy_bits,
        "column_entropy_bits": score.column_entropy_bits,
        "dead_codewords": score.dead_codewords,
    }


def _spread(name: str, estimate: Estimate) -> Row:
    return {name: estimate.value, f"{name}_interval": [estimate.low, estimate.high]}


def write(rows: Iterable[Row], path: str | os.PathLike[str]) -> None:
    """Writes rows as json lines, beside their place first."""
    with replacing(path) as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path: str | os.PathLike[str], keys: Sequence[str] = ()) -> list[Row]:
    """Rows that `write` wrote; raises `InputError` if there are none or one has not all `keys`."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); evaluate into this folder") from None
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line.replace('"normalize":', '"unit_norm":'))  # older files
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict) or any(row.get(key) is None for key in keys):
            wanted = " and ".join(repr(key) for key in keys)
            raise InputError(
                f"{path}, line {number} is no result with {wanted}; delete the line, "
                "or the file and evaluate again"
            )
        rows.append(row)
    if not rows:
        raise InputError(f"{path} holds no results; delete it and evaluate again")
    return rows


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table, ordered by rate, that also reads well in a terminal."""
    columns = ["codec", "bytes", "MSE"]
    ranks = [k for k in RANKS if all(f"recall@{k}" in row for row in rows)]
    lines = [columns + [f"R@{k}" for k in ranks]]
    for row in sorted(rows, key=lambda row: row["bytes"]):
        recall = [f"{100 * row[f'recall@{k}']:.1f}" for k in ranks]
        lines.append([row["codec"], f"{row['bytes']:g}", f"{row['mse']:.6g}", *recall])
    widths = np.max([[len(cell) for cell in line] for line in lines], axis=0)
    text = [
        "| " + " | ".join(_cell(line, column, widths) for column in range(len(widths))) + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths))
    return "\n".join([text[0], rule + "|", *text[1:]])


def _cell(line: Sequence[str], column: int, widths: Sequence[int]) -> str:
    return line[column].ljust(widths[0]) if column == 0 else line[column].rjust(widths[column])
