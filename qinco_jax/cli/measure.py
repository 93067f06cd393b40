"""What is measured: options for the data, which rows and queries, and the scores."""

from collections.abc import Callable

import click
import numpy as np

from qinco_jax import datasets
from qinco_jax.codecs import ours
from qinco_jax.codecs.codec import Codec
from qinco_jax.datasets.holdout import hold_back_queries
from qinco_jax.errors import counted
from qinco_jax.evaluate import results
from qinco_jax.evaluate.neighbours import METRICS, Queries, queries_of
from qinco_jax.quantizers import coding
from qinco_jax.quantizers.coding import Model
from qinco_jax.training.logs import stage_bar
from qinco_jax.training.recipe import Recipe
from qinco_jax.vectors.stored import Rows, Vectors


def data_options(eval_rows: int | None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds the options that name a data set, and the default of how much of it is measured."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in (
            click.option("--eval-rows", default=eval_rows, show_default=True, metavar="N",
                         type=click.IntRange(min=1), help="measure on the first N database rows"),
            click.option("--groundtruth", help="file of the queries' true neighbours"),
            click.option("--queries", help="file of queries"),
            click.option("--database", help="vectors to measure on"),
            click.option("--dataset", default="sift-photos", show_default=True,
                         metavar="NAME|PATH",
                         help="a named set, a folder with train.* and maybe database.*, queries.* "
                              "and groundtruth.*, or training vectors: a file, pattern or folder"),
        ):  # fmt: skip
            command = option(command)
        return command

    return add


def load(files: dict[str, str | None]) -> datasets.Dataset:
    """The data set that those options name."""
    given = {name: path for name, path in files.items() if path is not None}
    return datasets.load(given.pop("dataset"), **given)


def complete(data: datasets.Dataset, held_back: Rows) -> datasets.Dataset:
    """The data set with rows held back from training as its database, if it has none, and queries.

    Says so. Queries are rows that are taken out of the database.
    """
    if data.database is None:
        click.echo(f"no database: measured on the {which(held_back, data)}")
        data = data._replace(database=held_back)
    if data.queries is not None:
        return data
    assert data.database is not None
    database, queries = hold_back_queries(data.database)
    if len(queries) == 0:
        return data
    click.echo(
        f"no queries: the last {len(queries):,} of the {len(data.database):,} vectors to measure "
        "on are the queries; --queries FILE gives your own"
    )
    return data._replace(database=database, queries=queries)


def questions(data: datasets.Dataset, eval_rows: int, unit_norm: bool) -> list[Queries]:
    """The set's queries to the first rows of its database, with the right answers.

    They ask by the set's metric, and by cosine if the codecs keep angles, not lengths.

    Raises:
      InputError: the ground truth belongs to another database or metric.
    """
    assert data.database is not None
    if data.queries is None:
        return []
    own = data.metric or "l2"
    metric, database = "cosine" if unit_norm else own, data.database[:eval_rows]
    known = len(database) == len(data.database) and metric == own
    return [queries_of(data.queries, database, metric, data.groundtruth if known else None)]


def measure(
    every: list[Codec],
    data: datasets.Dataset,
    eval_rows: int,
    questions: list[Queries],
    trial_rows: np.ndarray,
    known_codes: np.ndarray | None = None,
) -> list[results.Row]:
    """Scores codecs on the first rows of a database, with a progress bar for each.

    Readings of distances are chosen by `trial_rows` [T, D]. `known_codes` are the codes of the
    measured rows; `None` encodes them.
    """
    assert data.database is not None
    database = data.database[:eval_rows]
    whole = "" if len(database) == len(data.database) else f"the first {len(database):,} of "
    asked = "no queries" if data.queries is None else counted(len(data.queries), "query", "queries")
    how = f" by {METRICS[questions[0].space.metric]}" if questions else ""
    unit = "; the error is that of unit vectors" if any(codec.unit_norm for codec in every) else ""
    click.echo(f"measured on {whole}{len(data.database):,} vectors with {asked}{how}{unit}")
    return results.score(every, database, questions, stage_bar, known_codes, trial_rows)


def two_errors(model: Model, recipe: Recipe, held_back: Vectors) -> str:
    """How the error that training shows differs from the table's, as text."""
    search = ours.search_text(coding.search_of(model, **recipe.search))
    parts = ", part by part" * (model.config.num_parts > 1)
    return (
        f"val_mse of training is the error on the {len(held_back):,} validation vectors, searched "
        f"with {search}{parts}; MSE in the table is the error on the vectors named next, searched "
        "with the A and B in each line"
    )


def which(held_back: Vectors, data: datasets.Dataset) -> str:
    """Which rows stand in for a database, as text."""
    if data.validation is not None:
        return f"{len(held_back):,} validation vectors, by which training chooses the best epoch"
    if len(held_back) == len(data.train):
        return f"{len(held_back):,} training vectors, so the errors are too low"
    return (
        f"last {len(held_back):,} of the {len(data.train):,} training vectors, which training "
        "holds back to choose the best epoch"
    )
