"""What is measured: options for the data, which rows and queries, and the scores."""

from collections.abc import Callable

import click
import numpy as np

from qinco_jax import datasets
from qinco_jax.cli.numbers import Integer
from qinco_jax.codecs import ours
from qinco_jax.codecs.codec import Codec
from qinco_jax.datasets.holdout import hold_back_queries
from qinco_jax.evaluate import neighbours, results
from qinco_jax.evaluate.neighbours import METRICS, Queries, queries_of
from qinco_jax.quantizers import coding
from qinco_jax.quantizers.coding import Model
from qinco_jax.training import run_folder
from qinco_jax.training.logs import stage_bar
from qinco_jax.training.recipe import Recipe
from qinco_jax.vectors.stored import Rows, Vectors
from qinco_jax.words import counted

HELD_BACK = "which training holds back to choose the best epoch"


def data_options(eval_rows: int | None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds the options that name a data set, and the default of how much of it is measured."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in (
            click.option("--eval-rows", default=eval_rows, show_default=True, metavar="N",
                         type=Integer(1), help="measure on the first N database rows"),
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


def complete(data: datasets.Dataset, held_back: Rows, role: str = HELD_BACK) -> datasets.Dataset:
    """The data set with rows held back from training as its database, if it has none, and queries.

    Says so, and what part the rows had in training. Queries are rows that are taken out of the
    database.
    """
    if data.database is None:
        click.echo(f"no database: measured on the {which(held_back, data, role)}")
        data = data._replace(database=held_back)
    if data.queries is not None:
        return data
    assert data.database is not None
    database, queries = hold_back_queries(data.database)
    if len(queries) == 0:
        return data
    last = "last one" if len(queries) == 1 else f"last {len(queries):,}"
    click.echo(
        f"no queries: the {last} of the {len(data.database):,} vectors to measure on "
        f"{'is the query' if len(queries) == 1 else 'are the queries'}; --queries FILE gives your "
        "own"
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
    if not known:
        check_truth(data, eval_rows, unit_norm)
    return [queries_of(data.queries, database, metric, data.groundtruth if known else None)]


def check_truth(data: datasets.Dataset, eval_rows: int, unit_norm: bool) -> None:
    """Looks for better answers than those of a ground truth among the rows to measure.

    Where a set names no metric, the ground truth for models with `unit_norm` may be by any.

    Raises:
      InputError: the ground truth belongs to another database or metric.
    """
    if data.metric is None and unit_norm:
        return
    if data.groundtruth is not None and data.database is not None and data.queries is not None:
        neighbours.check_truth(
            data.groundtruth, data.queries, data.database, data.metric or "l2", eval_rows
        )


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
    asked = "no queries (--queries FILE gives some)"
    if data.queries is not None:
        asked = counted(len(data.queries), "query", "queries")
    how = f" by {METRICS[questions[0].space.metric]}" if questions else ""
    unit = "; the error is that of unit vectors" if any(codec.unit_norm for codec in every) else ""
    vectors = counted(len(data.database), "vector")
    click.echo(f"measured on {whole}{vectors} with {asked}{how}{unit}")
    return results.score(every, database, questions, stage_bar, known_codes, trial_rows)


def two_errors(model: Model, recipe: Recipe, held_back: Vectors) -> str:
    """How the error that training shows differs from the table's, as text."""
    search = ours.search_text(coding.search_of(model, **recipe.search))
    parts = ", part by part" * (model.config.num_parts > 1)
    return (
        f"val_mse of training is the error on the {counted(len(held_back), 'validation vector')}, "
        f"searched with {search}{parts}; MSE in the table is the error on the vectors named next, "
        "searched with the A and B in each line"
    )


def role_of(model: str, data: datasets.Dataset, held_back: Rows) -> str:
    """What part the last training vectors had in the training of a model, by its run's folder.

    Says so if the first vectors of the set's database were trained on.
    """
    if data.database is not None and (seen := run_folder.trained_rows(model, data.database)):
        click.echo(
            f"the model was trained on the first {seen:,} of the {len(data.database):,} vectors of "
            "the database, so their error is lower than that of the rest"
        )
    seen = run_folder.trained_rows(model, data.train)
    if seen is None:
        return "which training holds back by default"
    if seen == 0:
        return "whereas the model was trained on others, or on these in another form"
    if seen <= len(data.train) - len(held_back):
        return "which its training held back to choose the best epoch"
    return "on which the model was trained, so the errors are too low"


def which(held_back: Vectors, data: datasets.Dataset, role: str) -> str:
    """Which rows stand in for a database, and what part they had in training, as text."""
    if data.validation is not None:
        vectors = counted(len(held_back), "validation vector")
        return f"{vectors}, by which training chooses the best epoch"
    if len(held_back) == len(data.train):
        return f"{counted(len(held_back), 'training vector')}, so the errors are too low"
    last = "last one" if len(held_back) == 1 else f"last {len(held_back):,}"
    return f"{last} of the {len(data.train):,} training vectors, {role}"
