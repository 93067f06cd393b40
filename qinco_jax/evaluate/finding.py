"""What an evaluation found, in a sentence: the best codec at each rate."""

from collections.abc import Sequence

from qinco_jax.evaluate import tables
from qinco_jax.evaluate.results import Evaluation, Row
from qinco_jax.evaluate.tables import Column
from qinco_jax.words import counted

MEASURES = {"mse": "lowest error", "recall@1": "highest recall@1"}
NONE_SHARED = "No two codecs were measured at the same rate, so none is called the best."
MIXED = "Errors are not compared, since some are of vectors and others of unit vectors."


def of(evaluation: Evaluation) -> str:
    """The codecs with the lowest error and the highest recall@1 at each rate that several have.

    Of a single codec, its error and recall at its lowest and its highest rate.
    """
    points = evaluation.points
    columns = [column for column in tables.columns(points) if column.key in MEASURES]
    if len({row["codec"] for row in points}) == 1:
        return _alone(points, columns, evaluation.names[points[0]["codec"]])
    sizes = [row["bytes"] for row in points]
    if len(set(sizes)) == len(sizes):
        return NONE_SHARED
    said = [
        f"{MEASURES[column.key].capitalize()}: {leaders}."
        for column in columns if column.best and (leaders := _leaders(evaluation, column))
    ]  # fmt: skip
    return " ".join(said if all(column.best for column in columns) else [*said, MIXED])


def _alone(points: Sequence[Row], columns: Sequence[Column], name: str) -> str:
    ends = points[:1] if len(points) == 1 else [points[0], points[-1]]
    kind = "error of unit vectors" if points[0].get("unit_norm") else "mean squared error"
    said = []
    for column in columns:
        what, unit = (kind, "") if column.key == "mse" else (column.key, " %")
        values = [
            f"{column.show(row[column.key])}{unit} at {counted(row['bytes'], 'byte')}"
            for row in ends if row.get(column.key) is not None
        ]  # fmt: skip
        said += [f"{what}: {listed(values)}"] if values else []
    return f"{name} alone was measured; {'; '.join(said)}."


def _leaders(evaluation: Evaluation, column: Column) -> str:
    """Which codecs lead in a column, and at which rates; "" if no rate has two to compare."""
    found: dict[str, list[str]] = {}
    for size in dict.fromkeys(row["bytes"] for row in evaluation.points):
        group = [
            row for row in evaluation.points
            if row["bytes"] == size and row.get(column.key) is not None
        ]  # fmt: skip
        names: dict[str, list[str]] = {"best": [], "same": [], "": []}
        for row in group:
            names[tables.standing(row, column, group)].append(evaluation.names[row["codec"]])
        if len(group) > 1:
            leaders = _one_of(names["best"] + names["same"], len(group))
            found.setdefault(leaders, []).append(f"{size:g}")
    return "; ".join(f"{who} at {at_bytes(sizes)}" for who, sizes in found.items())


def at_bytes(sizes: Sequence[str]) -> str:
    """Rates as text: "1 byte", "2, 4 and 8 bytes"."""
    return f"{listed(sizes)} {'byte' if list(sizes) == ['1'] else 'bytes'}"


def _one_of(names: Sequence[str], of: int) -> str:
    first, *others = names
    if not others:
        return first
    if len(names) == of > 2:
        return f"all {of}, too close to tell apart,"
    rest = others[0] if len(others) == 1 else f"one of {len(others)} others"
    return f"{first} or {rest}, too close to tell apart,"


def listed(texts: Sequence[str]) -> str:
    """Texts as a sentence has them: "a, b and c"."""
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last
