"""Compares codecs on a data set at several rates: one folder of results, plots and a page."""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from qinco_jax import numbers
from qinco_jax.codecs import named
from qinco_jax.codecs.codec import Contender
from qinco_jax.config import named as named_in
from qinco_jax.datasets.dataset import Dataset
from qinco_jax.datasets.holdout import hold_back_queries
from qinco_jax.errors import InputError
from qinco_jax.evaluate import readings, report, sweep
from qinco_jax.evaluate.neighbours import BLOCK_ROWS, METRICS, Queries, check_truth, queries_of
from qinco_jax.evaluate.progress import Stage, silent
from qinco_jax.evaluate.results import COSTS, RESULTS, Row
from qinco_jax.files import path_of
from qinco_jax.quantizers import precision
from qinco_jax.training import run_folder
from qinco_jax.training.recipe import Recipe
from qinco_jax.training.train import split
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows, Vectors, fingerprint, lazily, spans

IDENTITY = "evaluation.json"
MAX_NOISE = 10**6


class Asked(NamedTuple):
    """What a comparison is asked for, checked."""

    contenders: list[Contender]
    seeds: list[int]
    metrics: list[str]
    noise: list[float]


@precision.in_32_bits
def compare(
    data: Dataset,
    codecs: Sequence[str],
    rates: Sequence[float],
    folder: str | os.PathLike[str],
    *,
    seeds: Sequence[int] = (0,),
    metrics: Sequence[str] | None = None,
    noise: Sequence[float] = (),
    shifted: Mapping[str, Vectors] | None = None,
    eval_rows: int | None = None,
    settings: Sequence[str] = (),
    stage: Stage = silent,
) -> list[Row]:
    """Trains codecs on the same vectors and measures them on the same database.

    What the folder already has is skipped, interrupted training is resumed, and several processes
    may share a folder. It gets `results.jsonl`, `costs.jsonl`, plots and `report.html`.

    A model with `unit_norm` approximates x / |x|: its error is that of unit vectors, its rows say
    `unit_norm`, and if both kinds of error occur, no codec is marked as the best. Recall compares
    decoded vectors with the set's own queries for all codecs; "cosine" is fair to both kinds.

    Recall is reported twice: by the distances to the decoded vectors, as papers do, and by the
    reading of distances that finds most on training vectors, which may keep a byte beside each code
    (fields "reading_..."; "reading_bytes" counts it).

    Args:
      data: a set from `datasets.load`; without a database, rows held back from training are used,
        and without queries, the last rows of the database, at most 1,000 or a tenth.
      codecs: specifications, such as "opq", "rq:B=32", "unq", "small@16:A=4:B=8"; see
        `codecs.named`.
      rates: bytes per vector.
      folder: for this set and these queries only; created if it does not exist.
      seeds: every codec is trained with each.
      metrics: "l2", "ip", "cosine"; the first one's recall is the main one. `None` takes the set's
        own, or "l2" where its files name none.
      noise: standard deviations, relative to the database's, of normal noise for further queries.
      shifted: further queries [Q, D] by name, from another distribution than the database.
      eval_rows: measure on the first rows of the database only; `None` takes all.
      settings: `NAME=VALUE`, sizes and recipes of this library's models.
      stage: shows progress.

    Returns:
      All results in the folder, one row for each codec, rate and seed.

    Raises:
      InputError: no set, an unknown codec, rate, seed, metric or setting, invalid vectors, or
        another set's folder.
    """
    folder = path_of(folder)
    asked = checked(
        data, codecs, rates, seeds=seeds, metrics=metrics, noise=noise, shifted=shifted,
        settings=settings,
    )  # fmt: skip
    contenders, seeds, metrics, noise = asked
    x_train, held_back = split(data.train, data.validation, Recipe())
    trial_rows = readings.trial_rows(data, held_back)
    whole = held_back if data.database is None else data.database
    if data.queries is None:
        whole, queries = hold_back_queries(whole)
        data = data._replace(queries=queries if len(queries) else None)
    database = whole[:eval_rows]
    for block in spans(len(database), BLOCK_ROWS):  # before training, which may take hours
        checks.finite(database[block], block.start, "the database")
    extra = shifted or {}
    identity = {
        "dataset": data.name,
        "train": fingerprint(x_train),
        "database": fingerprint(database),
        "queries": None if data.queries is None else fingerprint(data.queries),
        "metrics": list(metrics),
        "noise": list(noise),
        "shifted": {name: fingerprint(lazily(x)) for name, x in extra.items()},
    }
    query_sets = _query_sets(data, database, whole, metrics, noise, extra)
    run_folder.claim(folder / IDENTITY, identity, (RESULTS, COSTS))
    benchmark = sweep.Benchmark(data.name, x_train, database, query_sets, trial_rows)
    sweep.run(contenders, benchmark, folder, seeds, stage)
    report.write_page(folder)
    return sweep.read(folder / RESULTS)


def checked(
    data: Dataset,
    codecs: Sequence[str],
    rates: Sequence[float],
    *,
    seeds: Sequence[int] = (0,),
    metrics: Sequence[str] | None = None,
    noise: Sequence[float] = (),
    shifted: Mapping[str, Vectors] | None = None,
    settings: Sequence[str] = (),
) -> Asked:
    """What `compare` is asked for; raises `InputError` where it would before it does any work."""
    if not isinstance(data, Dataset):
        raise InputError(
            f"an object of type {type(data).__name__} is not a data set; call "
            "compare(data, codecs, rates, folder) with data = qinco_jax.datasets.load(path)"
        )
    metrics = [data.metric or "l2"] if metrics is None else metrics
    given = {"codecs": codecs, "rates": rates, "seeds": seeds, "metrics": metrics, "noise": noise}
    for name, values in given.items():
        if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
            raise InputError(f"{name} must be a list, got {numbers.shown(values)}")
        values = list(values)
        if not values and name != "noise":
            raise InputError(f"{name} must not be empty; name at least one")
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise InputError(f"{name} has {twice[0]} more than once; name it once")
    dim = data.train.shape[1]
    for name, x in (shifted or {}).items():
        checks.vectors(x, dim, f"the set {name!r}", "the training vectors have")
    sizes = [numbers.real(rate, "a rate", above=True) for rate in rates]
    return Asked(
        named.contenders(codecs, sizes, dim, settings),
        [numbers.seed(seed) for seed in seeds],
        [named_in({name: name for name in METRICS}, metric, "metric") for metric in metrics],
        [numbers.real(level, "noise", 0, MAX_NOISE) for level in noise],
    )


def _query_sets(
    data: Dataset,
    database: Rows,
    whole: Rows,
    metrics: Sequence[str],
    noise: Sequence[float],
    shifted: Mapping[str, Vectors],
) -> list[Queries]:
    """The set's own queries by each metric, then noisy and shifted ones by the first."""
    first, found = metrics[0], []
    if data.queries is None:
        if noise or shifted:
            raise InputError(
                f"{data.name} has no queries to compare `noise` and `shifted` with; add some"
            )
        return []
    for metric in metrics:
        # A set's ground truth is of all rows, by the metric that the set was made for.
        truth = data.groundtruth if metric == (data.metric or first) else None
        if truth is not None and len(database) < len(whole):
            check_truth(truth, data.queries, whole, metric, len(database))
            truth = None
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
