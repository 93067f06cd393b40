"""Codecs beside each other on a set, at several rates: one folder of tables, plots and a page."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from qinco_jax.codecs import named
from qinco_jax.datasets.catalog import Dataset
from qinco_jax.errors import InputError
from qinco_jax.evaluate import page, report, sweep
from qinco_jax.evaluate.neighbours import Queries, blocks, queries_of
from qinco_jax.training import loop, runs
from qinco_jax.training.step import Recipe
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows, Vectors, lazily

IDENTITY = "evaluation.json"


def compare(
    data: Dataset,
    codecs: Sequence[str],
    rates: Sequence[float],
    folder: str | os.PathLike[str],
    *,
    seeds: Sequence[int] = (0,),
    metrics: Sequence[str] = ("l2",),
    noise: Sequence[float] = (),
    shifted: Mapping[str, Vectors] | None = None,
    eval_rows: int | None = None,
    settings: Sequence[str] = (),
    stage: sweep.Stage = sweep.silent,
) -> list[report.Row]:
    """Trains codecs on the same vectors and measures them on the same database.

    What is finished in the folder is skipped, what was interrupted goes on, and several processes
    may work on one folder. It gets `results.jsonl`, `costs.jsonl`, plots and `report.html`.

    A model with `unit_norm` approximates x / |x|: its error is that of unit vectors, its rows say
    `unit_norm`, and no codec is called the best where both kinds of error occur. Recall is by the
    set's own queries and what is decoded, for all codecs alike; by "cosine" it is fair to both.

    Args:
      data: a set from `datasets.load`. Without a database, rows held back from training are used.
      codecs: specifications, such as "opq", "rq:B=32", "unq", "small@16:A=4:B=8" (`contenders`).
      rates: bytes per vector.
      folder: belongs to this set and these queries from the first call on.
      seeds: every codec is trained with each.
      metrics: "l2", "ip", "cosine"; the first one's recall is the main one.
      noise: further queries with normal noise of so many standard deviations of the database.
      shifted: further queries [Q, D] by name, of another distribution than the database.
      eval_rows: measure on so many rows at the head of the database; `None` takes all.
      settings: `NAME=VALUE` of sizes and recipes of our own models.
      stage: shows progress.

    Returns:
      The folder's results, one row for each codec, rate and seed.

    Raises:
      InputError: an unknown codec, rate or setting, unfit vectors, or another set's folder.
    """
    folder = Path(folder)
    if not codecs or not rates or not seeds or not metrics:
        raise InputError("name at least one codec, one rate, one seed and one metric")
    rates = [float(rate) for rate in rates]
    entries = named.contenders(codecs, rates, data.train.shape[1], settings)
    x_train, held_back = loop.split(data.train, data.validation, Recipe())
    whole = held_back if data.database is None else data.database
    database = whole[:eval_rows]
    for block in blocks(len(database)):  # now, not after hours of training
        checks.finite(database[block], block.start, "the database")
    extra = shifted or {}
    identity = {
        "dataset": data.name,
        "train": runs.fingerprint(x_train),
        "database": runs.fingerprint(database),
        "queries": None if data.queries is None else runs.fingerprint(data.queries),
        "metrics": list(metrics),
        "noise": list(noise),
        "shifted": {name: runs.fingerprint(lazily(x)) for name, x in extra.items()},
    }
    questions = _questions(data, database, len(whole), metrics, noise, extra)
    runs.claim(folder / IDENTITY, identity, (sweep.RESULTS, sweep.COSTS))
    field = sweep.Field(data.name, x_train, database, questions)
    sweep.run(entries, field, folder, seeds, stage)
    page.write_page(folder)
    return sweep.read(folder / sweep.RESULTS)


def _questions(
    data: Dataset,
    database: Rows,
    num_rows: int,
    metrics: Sequence[str],
    noise: Sequence[float],
    shifted: Mapping[str, Vectors],
) -> list[Queries]:
    """The set's own queries by each metric, then noisy and foreign ones by the first."""
    first, found = metrics[0], []
    if data.queries is None:
        if noise or shifted:
            raise InputError(f"{data.name} has no queries; give some to compare others with")
        return []
    for metric in metrics:
        # A ground truth is that of all rows, and of the metric that the set was made for.
        truth = data.groundtruth if len(database) == num_rows and metric == first else None
        own = queries_of(data.queries, database, metric, truth, metric)
        found.append(own._replace(paired=metric != first))
    spread = np.asarray(database[:10_000], np.float64).std(axis=0)
    scale = float(np.sqrt(np.square(spread).mean()))
    for level in noise:
        shape = data.queries.shape
        x = np.asarray(data.queries) + level * scale * np.random.default_rng(0).normal(size=shape)
        noisy = queries_of(x, database, first, None, f"noise {level:g}, {first}")
        found.append(noisy._replace(paired=True))
    for name, other in shifted.items():
        found.append(queries_of(other, database, first, None, f"{name}, {first}"))
    return found
