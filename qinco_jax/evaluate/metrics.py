"""Error of a codec, recall of nearest-neighbour search over decoded vectors, usage of its codes.

Ties: any database row as near to the query as its k-th neighbour is a right answer for rank k, and
rows that are equally near after decoding come in random order, over which the mean is taken.

Recall is that of distances to the reconstructions as they are and, given rows to choose it by, that
of the reading of distances that finds most (`readings`).
"""

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax import numbers
from qinco_jax.codecs.codec import Codec
from qinco_jax.config import named
from qinco_jax.errors import InputError
from qinco_jax.evaluate import readings
from qinco_jax.evaluate.neighbours import (
    BLOCK_ROWS,
    METRICS,
    QUERY_BLOCK,
    RANKS,
    Queries,
    distances,
    distances_to,
    merge_nearest,
    nearest_neighbours,
    padded,
    prepared,
)
from qinco_jax.evaluate.readings import Kept, Ranking
from qinco_jax.quantizers import precision
from qinco_jax.quantizers.transform import approximated
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Vectors, spans

Progress = Callable[[int], Any]

BY_READING = "reading_"  # before the name of a measure by the chosen reading
RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)  # ends of an interval
_log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])


class Estimate(NamedTuple):
    """A mean and its 95 % interval [low, high]."""

    value: float
    low: float
    high: float


class Chosen(NamedTuple):
    """A reading of distances: its kind, and the bytes of a code and of what it keeps beside it."""

    kind: str
    bytes: float


class Score(NamedTuple):
    """What `measure` found.

    Attributes:
      mse: squared error summed over dimensions, averaged over the database, with an interval by
        the normal distribution. For a codec with `unit_norm`, the error of x / |x|.
      relative_error: the error as a share of the variance of what is approximated.
      recall: by name of the queries, measure -> estimate with a bootstrap interval over queries.
        "recall@k" is the share of queries that find a nearest neighbour among the k nearest decoded
        rows, "k-recall@k" the share of the k nearest neighbours that are among them;
        "reading_recall@k" and so on are those by the chosen reading.
      losses: by name of the paired queries, measure -> how much smaller it is than for the main
        ones (`recall`'s first), with a bootstrap interval of the differences query by query.
      column_entropy_bits: entropy of each of the code's columns.
      dead_codewords: values of the code's columns that no row uses, in all columns.
      readings: by name of the queries, the reading that was chosen; empty if none was.
    """

    mse: Estimate
    relative_error: float
    recall: Mapping[str, Mapping[str, Estimate]]
    losses: Mapping[str, Mapping[str, Estimate]]
    column_entropy_bits: tuple[float, ...]
    dead_codewords: int
    readings: Mapping[str, Chosen] = MappingProxyType({})

    @property
    def entropy_bits(self) -> float:
        """Sum of the columns' entropies; entropy coding of each column needs no fewer bits."""
        return sum(self.column_entropy_bits)


def mse(x: Vectors, x_hat: Vectors) -> float:
    """The squared error of reconstructions, summed over dimensions and averaged over vectors.

    Args:
      x: [N, D] vectors of any real dtype.
      x_hat: [N, D] their reconstructions.

    Raises:
      InputError: different shapes, no vectors, NaN or Inf.
    """
    x, x_hat = _checked_pairs(x, x_hat)
    errors = [
        np.square(np.float64(x[span]) - np.float64(x_hat[span])).sum(axis=1)
        for span in spans(len(x), BLOCK_ROWS)
    ]
    return float(np.concatenate(errors).mean())


@precision.in_32_bits
def recall(
    queries: Vectors, database: Vectors, x_hat: Vectors, *, k: int = 1, metric: str = "l2"
) -> float:
    """The share of queries whose nearest neighbour is among the k nearest reconstructions.

    Args:
      queries: [Q, D] vectors of any real dtype.
      database: [N, D] vectors to find.
      x_hat: [N, D] their reconstructions, which are searched exhaustively.
      k: how many reconstructions each query finds, 1 to N.
      metric: "l2", "ip" or "cosine".

    Returns:
      R@k from 0 to 1. A row as near as the nearest neighbour is a right answer too.

    Raises:
      InputError: shapes that do not fit together, an unknown metric, k out of range, NaN, Inf or
        numbers beyond 1e15, whose squares float32 cannot add up.
    """
    database, x_hat = _checked_pairs(database, x_hat, checks.SQUARED_MAX)
    queries = checks.vectors(queries, database.shape[1], "the queries", "the database has")
    checks.finite(np.asarray(queries), what="the queries", limit=checks.SQUARED_MAX)
    k = numbers.integer(k, "k")
    named({name: name for name in METRICS}, metric, "metric")
    if not 1 <= k <= len(database) or len(queries) == 0:
        raise InputError(
            f"got {len(queries)} queries and k = {k}; give at least one query, and k from 1 to the "
            f"{len(database)} rows of the database"
        )
    best = distances_to(database, queries, nearest_neighbours(database, queries, 1, metric), metric)
    rows = nearest_neighbours(x_hat, queries, k, metric)
    found = distances_to(database, queries, rows, metric)
    return float((found.min(axis=1) <= best[:, 0]).mean())


def _checked_pairs(
    x: Vectors, x_hat: Vectors, limit: float = checks.FLOAT32_MAX
) -> tuple[Vectors, Vectors]:
    x, x_hat = checks.vectors(x, what="x"), checks.vectors(x_hat, what="x_hat")
    if x.shape != x_hat.shape or len(x.shape) != 2 or len(x) == 0:
        raise InputError(
            f"got vectors {x.shape} and reconstructions {x_hat.shape}; expected the same [N, D]"
        )
    for what, rows in (("x", x), ("x_hat", x_hat)):
        for span in spans(len(rows), BLOCK_ROWS):
            checks.finite(np.asarray(rows[span]), span.start, what, limit)
    return x, x_hat


def measure(
    codec: Codec,
    database: Vectors,
    query_sets: Sequence[Queries] = (),
    progress: Progress | None = None,
    known_codes: np.ndarray | None = None,
    trial_rows: np.ndarray | None = None,
) -> Score:
    """Encodes and decodes a database and searches the decoded rows exhaustively.

    Args:
      codec: what to measure.
      database: [N, D], read in blocks.
      query_sets: queries of this database, the main set first; queries are not compressed.
      progress: called with the number of rows done after each block.
      known_codes: [N, ...], the codes of the database; `None` encodes it.
      trial_rows: [T, D], other vectors, encoded to choose a reading of distances by; without them,
        or with less than 20, only the plain one is measured.
    """
    codes, errors, moments = [], [], np.zeros(1 + database.shape[1])
    kept: dict[str, Kept] = {}  # by metric
    if trial_rows is not None and query_sets:
        metrics = [queries.space.metric for queries in query_sets]
        for metric, reading in readings.choose(codec, metrics, trial_rows).items():
            kept[metric] = Kept(reading, np.zeros((len(database), 1), np.uint8))
    for block in spans(len(database), BLOCK_ROWS):
        x = checks.finite(np.asarray(database[block]), block.start, "the database")
        codes.append(np.asarray(codec.encode(x) if known_codes is None else known_codes[block]))
        goal = approximated(x, codec.unit_norm)
        x_hat = np.asarray(codec.decode(codes[-1]))
        for reading, levels in kept.values():
            levels[block] = readings.levels(reading, x, x_hat)
        error = goal - x_hat
        errors.append(np.square(error, dtype=np.float64).sum(axis=1))
        wide = goal.astype(np.float64)
        moments += np.append(np.square(wide).sum(), wide.sum(axis=0)) / len(database)
        if progress is not None:
            progress(len(x))
    all_codes, squared = np.concatenate(codes), np.concatenate(errors)
    variance = moments[0] - np.square(moments[1:]).sum()
    mse, margin = squared.mean(), 1.96 * squared.std() / len(squared) ** 0.5
    found = [
        _recall(codec, all_codes, database, queries, kept.get(queries.space.metric))
        for queries in query_sets
    ]
    return Score(
        Estimate(float(mse), float(mse - margin), float(mse + margin)),
        float(mse / variance) if variance > 0 else 0.0,
        {queries.name: bootstrap(own) for queries, own in zip(query_sets, found, strict=True)},
        {
            queries.name: bootstrap({name: found[0][name] - own[name] for name in own})
            for queries, own in zip(query_sets, found, strict=True)
            if queries.paired
        },
        *usage(all_codes, codec.column_sizes or _equal_sizes(all_codes, codec.bits)),
        {
            queries.name: Chosen(own.reading.kind, codec.bits / 8 + readings.num_bytes(own.reading))
            for queries in query_sets
            if (own := kept.get(queries.space.metric)) is not None
        },
    )


def _equal_sizes(codes: np.ndarray, bits: float) -> tuple[int, ...]:
    """How many values each column of codes [N, M] takes if all have the same number of bits."""
    return (round(2 ** (bits / codes.shape[1])),) * codes.shape[1]


def usage(codes: np.ndarray, column_sizes: tuple[int, ...]) -> tuple[tuple[float, ...], int]:
    """The entropy in bits of each column of codes [N, M], and the number of unused codewords.

    Args:
      codes: integers.
      column_sizes: how many values each column takes.
    """
    entropies, used = [], 0
    for column in codes.T:
        counts = np.unique(column, return_counts=True)[1]
        share = counts / len(codes)
        entropies.append(max(0.0, -float((share * np.log2(share)).sum())))
        used += len(counts)
    return tuple(entropies), sum(column_sizes) - used


def bootstrap(measures: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    """The mean of each measure [Q], one value per query, and a percentile bootstrap interval.

    All are of the same resamples of the queries.
    """
    values = np.stack(list(measures.values()), axis=1)
    draw, size = np.random.default_rng(0), len(values)
    means = [values[draw.integers(size, size=size)].mean(axis=0) for _ in range(RESAMPLES)]
    low, high = np.percentile(means, PERCENTILES, axis=0)
    every = np.stack([values.mean(axis=0), low, high], axis=1)
    return {name: Estimate(*own) for name, own in zip(measures, every.tolist(), strict=True)}


def _recall(
    codec: Codec, codes: np.ndarray, database: Vectors, queries: Queries, kept: Kept | None
) -> dict[str, np.ndarray]:
    """Measure -> its value [Q] for each query, by the plain reading and by another, if given."""
    rankings = {"": readings.plain(queries)}
    if kept is not None and readings.num_bytes(kept.reading):
        rankings[BY_READING] = readings.by(kept, queries)
    last = [min(k, len(codes)) - 1 for k in RANKS]
    edges = _decoded_reach(codec, codes, rankings.values(), last)
    counts = [np.zeros((len(queries.vectors), len(RANKS), 6), np.int32) for _ in rankings]
    for block in spans(len(codes), BLOCK_ROWS):
        x = padded(prepared(queries.space, database[block]))
        x_hat = np.asarray(codec.decode(codes[block]))
        for ranking, edge, count in zip(rankings.values(), edges, counts, strict=True):
            near = ranking.near(x_hat, block)
            for some in spans(len(edge), QUERY_BLOCK):
                count[some] += _count(
                    (queries.space.metric, ranking.metric), queries.vectors[some], x,
                    ranking.vectors[some], near, queries.reach[some], edge[some],
                    np.int32(block.stop - block.start),
                )  # fmt: skip
    found = {
        f"{prefix}{name}": values
        for prefix, count in zip(rankings, counts, strict=True)
        for name, values in _measures(count, last).items()
    }
    if kept is not None and BY_READING not in rankings:  # it is the plain one
        found |= {f"{BY_READING}{name}": values for name, values in found.items()}
    return found


def _measures(counts: np.ndarray, last: Sequence[int]) -> dict[str, np.ndarray]:
    """Measure -> its value [Q], by counts [Q, R, 6] of `_count`."""
    found = {}
    for rank, (k, at) in enumerate(zip(RANKS, last, strict=True)):
        before, tied, *right = counts[:, rank].T.astype(np.float64)
        free = at + 1 - before  # places that the tied rows share
        found[f"recall@{k}"] = _chance_of_any(right[0], right[1], tied, free)
        if k > 1:
            found[f"{k}-recall@{k}"] = (right[2] + right[3] * free / tied) / (at + 1)
    return found


def _decoded_reach(
    codec: Codec, codes: np.ndarray, rankings: Collection[Ranking], last: Sequence[int]
) -> list[np.ndarray]:
    """Of each ranking, distances [Q, R] of queries to the last row that counts at each rank."""
    best = [
        np.full((len(ranking.vectors), last[-1] + 1), np.inf, np.float32) for ranking in rankings
    ]
    for block in spans(len(codes), BLOCK_ROWS):
        x_hat = np.asarray(codec.decode(codes[block]))
        limits = np.asarray([block.start, block.stop], np.int32)
        for ranking, own in zip(rankings, best, strict=True):
            near = ranking.near(x_hat, block)
            for some in spans(len(own), QUERY_BLOCK):
                so_far = own[some], np.zeros_like(own[some], np.int32)
                own[some] = merge_nearest(
                    ranking.metric, so_far, ranking.vectors[some], near, limits
                )[0]
    return [own[:, last] for own in best]


@functools.partial(jax.jit, static_argnums=0)
def _count(
    metrics: tuple[str, str],
    vectors: jax.Array,
    x: jax.Array,
    asked: jax.Array,
    near: jax.Array,
    reach: jax.Array,
    edges: jax.Array,
    num_rows: jax.Array,
) -> jax.Array:
    """Counts rows of a padded block by their decoded distance and by whether they are right.

    By the first metric, `vectors` and `x` are truly near; by the second one, `asked` and `near`
    are as decoded (`Ranking`).

    Returns:
      [Q, R, 6] int32: rows nearer than the edge, and rows at the edge; of each, those that are
      truly as near as the nearest neighbour; of each, those truly as near as the k-th.
    """
    true, true_slack = distances(metrics[0], vectors, x)
    found, slack = distances(metrics[1], asked, near)
    there = (jnp.arange(len(x)) < num_rows)[None]
    nearest = true <= reach[:, :1] + true_slack
    counts = []
    for rank in range(len(RANKS)):
        edge = edges[:, rank, None]
        before = there & (found < edge - slack)
        tied = there & (jnp.abs(found - edge) <= slack)
        right = true <= reach[:, rank, None] + true_slack
        counts += [before, tied, *(a & b for a in (nearest, right) for b in (before, tied))]
    sums = jnp.stack([jnp.sum(mask, axis=1, dtype=jnp.int32) for mask in counts], axis=1)
    return sums.reshape(len(vectors), len(RANKS), 6)


def _chance_of_any(
    before: np.ndarray, right: np.ndarray, tied: np.ndarray, free: np.ndarray
) -> np.ndarray:
    """The chance [Q] that one of `right` of the `tied` rows gets one of the `free` places.

    1 if one of them is `before` the tied ones, else 1 - C(tied - right, free) / C(tied, free).
    """
    wrong = tied - right
    none = np.exp(_log_binomial(wrong, free) - _log_binomial(tied, free))
    return np.where(before > 0, 1.0, np.where(wrong < free, 1.0, 1 - none))


def _log_binomial(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Logarithm of C(n, k) of whole numbers k <= n, and a finite number for other k."""
    binomial: np.ndarray = (
        _log_gamma(n + 1) - _log_gamma(k + 1) - _log_gamma(np.maximum(n - k, 0) + 1)
    )
    return binomial
