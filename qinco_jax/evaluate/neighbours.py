"""Exact nearest neighbours by L2 distance, inner product or cosine, in blocks of bounded memory.

Distances are the squared L2 distance, minus the inner product and minus the cosine.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.codecs.codec import Array
from qinco_jax.config import named
from qinco_jax.errors import InputError
from qinco_jax.quantizers.distances import matmul, smallest, squared_distances
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Vectors, spans

BLOCK_ROWS = 8192
QUERY_BLOCK = 1024
RANKS = (1, 10, 100)
METRICS = {"l2": "squared L2 distance", "ip": "inner product", "cosine": "cosine"}
ROUNDING = 1e-6  # of the squared norms: how far two computations of a distance may differ
CHECKED_QUERIES, MAX_WRONG = 200, 0.05  # of a given ground truth; rounding may swap near ties


class Space(NamedTuple):
    """How distances are measured.

    Attributes:
      metric: "l2", "ip" or "cosine".
      center: [D] float32, subtracted from all vectors under "l2", so that distances lose less to
        rounding.
    """

    metric: str
    center: np.ndarray


class Queries(NamedTuple):
    """A set of queries to a database, with the distances of the right answers.

    Attributes:
      name: for display.
      space: how distances are measured.
      vectors: [Q, D] float32, `prepared` for the space.
      reach: [Q, R] float32, distance of each query to its k-th neighbour for the k of `RANKS`, or
        to the last one of a smaller database.
      paired: whether the n-th query is the main set's n-th, with noise or by another metric.
    """

    name: str
    space: Space
    vectors: np.ndarray
    reach: np.ndarray
    paired: bool = False


def queries_of(
    vectors: Vectors,
    database: Vectors,
    metric: str = "l2",
    groundtruth: Array | None = None,
    name: str = "queries",
) -> Queries:
    """Searches a database for the neighbours of vectors, or takes them from a ground truth.

    Args:
      vectors: [Q, D] queries of any real dtype.
      database: [N, D], read in blocks.
      metric: "l2", "ip" or "cosine".
      groundtruth: [Q, k] integers, the database rows nearest to each query, nearest first. Checked
        on some queries; used if it has as many columns as the ranks need, else computed.
      name: for display.

    Raises:
      InputError: vectors, metric or ground truth do not fit the database.
    """
    checks.vectors(vectors, database.shape[1], f"the set {name!r}", "the database has")
    if len(vectors) == 0 or len(database) == 0:
        raise InputError(
            f"the set {name!r}: {len(vectors)} queries of {len(database)} database rows; give at "
            "least one of each"
        )
    space = space_of(named({m: m for m in METRICS}, metric, "metric"), database)
    some = checks.finite(np.asarray(vectors), 0, f"the set {name!r}", checks.SQUARED_MAX)
    ready = prepared(space, some)
    last = [min(k, len(database)) - 1 for k in RANKS]
    if groundtruth is not None:
        truth = np.asarray(groundtruth)
        _check(truth, ready, database, space, len(database))
        if truth.shape[1] > last[-1]:
            return Queries(name, space, ready, _reach(truth[:, last], ready, database, space))
    return Queries(name, space, ready, _search(ready, database, space, last[-1] + 1)[0][:, last])


def check_truth(
    groundtruth: Array, queries: Vectors, database: Vectors, metric: str, num_rows: int
) -> None:
    """Looks for better answers than those of a ground truth, for some queries.

    Args:
      groundtruth: [Q, k] integers, the database rows nearest to each query, nearest first.
      queries: [Q, D], of any real dtype.
      database: [N, D].
      metric: "l2", "ip" or "cosine".
      num_rows: the first rows of the database, in which to look.

    Raises:
      InputError: there are such, so it belongs to another database or metric.
    """
    some = checks.finite(np.asarray(queries), 0, "the queries", checks.SQUARED_MAX)
    space = space_of(metric, database)
    _check(np.asarray(groundtruth), prepared(space, some), database, space, num_rows)


def nearest_neighbours(
    database: Vectors, vectors: Vectors, count: int = 1, metric: str = "l2"
) -> np.ndarray:
    """Database rows nearest to each query, nearest first and ties to the first.

    Args:
      database: [N, D], read in blocks.
      vectors: [Q, D] queries.
      count: k, at most N.
      metric: "l2", "ip" or "cosine".

    Returns:
      [Q, k] int32.
    """
    space = space_of(metric, database)
    return _search(prepared(space, np.asarray(vectors)), database, space, count)[1]


def distances_to(
    database: Vectors, vectors: Vectors, rows: np.ndarray, metric: str = "l2"
) -> np.ndarray:
    """Distances [Q, k] float32 of queries [Q, D] to the rows [Q, k] of a database [N, D]."""
    space = space_of(metric, database)
    return _reach(rows, prepared(space, np.asarray(vectors)), database, space)


def space_of(metric: str, database: Vectors) -> Space:
    """The space of a metric, with the mean of a database's first rows as the center under "l2"."""
    if metric != "l2":
        return Space(metric, np.zeros(database.shape[1], np.float32))
    head = np.asarray(database[:BLOCK_ROWS], np.float32)
    return Space(metric, head.mean(axis=0, dtype=np.float64).astype(np.float32))


def prepared(space: Space, x: Vectors) -> np.ndarray:
    """Vectors [N, D] of any real dtype as `distances` takes them, float32."""
    x = np.asarray(x, np.float32)
    if space.metric == "cosine":
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return x - space.center


def distances(metric: str, vectors: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Distances between prepared vectors [Q, D] and [N, D], and how exact they are.

    Returns:
      [Q, N] distances, and [Q, N] the difference up to which two of them count as equal.
    """
    squares = jnp.sum(jnp.square(vectors), axis=1)[:, None], jnp.sum(jnp.square(x), axis=1)[None]
    found = squared_distances(vectors, x) if metric == "l2" else -matmul(vectors, x.T)
    return found, ROUNDING * (squares[0] + squares[1])


def padded(x: np.ndarray, size: int = BLOCK_ROWS) -> np.ndarray:
    """Rows [N, D] filled up with zeros to [size, D], the one shape to compile."""
    return np.pad(x, ((0, size - len(x)), (0, 0)))


def _search(
    vectors: np.ndarray, database: Vectors, space: Space, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Distances and rows [Q, count] nearest to prepared vectors [Q, D], nearest first."""
    best = np.full((len(vectors), count), np.inf, np.float32)
    rows = np.zeros((len(vectors), count), np.int32)
    for block in spans(len(database), BLOCK_ROWS):
        part = np.asarray(database[block])
        part = checks.finite(part, block.start, "the database", checks.SQUARED_MAX)
        x = padded(prepared(space, part))
        for some in spans(len(vectors), QUERY_BLOCK):
            so_far = (best[some], rows[some])
            limits = np.asarray([block.start, block.stop], np.int32)
            best[some], rows[some] = merge_nearest(space.metric, so_far, vectors[some], x, limits)
    return best, rows


@functools.partial(jax.jit, static_argnums=0)
def merge_nearest(
    metric: str,
    so_far: tuple[jax.Array, jax.Array],
    vectors: jax.Array,
    x: jax.Array,
    limits: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The nearest rows among those found so far and a padded block.

    Args:
      metric: for which the vectors are prepared.
      so_far: distances and rows [Q, k].
      vectors: [Q, D].
      x: [R, D], of which the first `limits[1] - limits[0]` are rows of the database.
      limits: [2] int32, the block's first row and the row behind its last.

    Returns:
      Distances and rows [Q, k], nearest first, ties to the first row.
    """
    row = limits[0] + jnp.arange(len(x), dtype=jnp.int32)
    found, _ = distances(metric, vectors, x)
    found = jnp.where((row < limits[1])[None], found, jnp.inf)
    best, index = smallest(jnp.concatenate([so_far[0], found], axis=1), so_far[0].shape[1])
    rows = jnp.concatenate([so_far[1], jnp.broadcast_to(row[None], found.shape)], axis=1)
    return best, jnp.take_along_axis(rows, index, axis=1)


def _check(
    truth: np.ndarray, vectors: np.ndarray, database: Vectors, space: Space, num_rows: int
) -> None:
    """Raises `InputError` if a ground truth contradicts the first rows of a database.

    Checked on some queries.
    """
    if truth.ndim != 2 or truth.dtype.kind not in "iu" or len(truth) != len(vectors):
        raise InputError(
            f"the ground truth is {truth.dtype} {truth.shape}; expected integers "
            f"[{len(vectors)}, k], one row per query"
        )
    if truth.min() < 0 or truth.max() >= len(database):
        raise InputError(
            f"the ground truth names row {truth.max()} (lowest {truth.min()}) of a database of "
            f"{len(database)} rows; give the one made for this database, or none"
        )
    checked = np.linspace(0, len(truth) - 1, min(CHECKED_QUERIES, len(truth))).astype(int)
    claimed = _reach(truth[checked, :1], vectors[checked], database, space)[:, 0]
    exact, rows = _search(vectors[checked], database[:num_rows], space, 1)
    scale = np.abs(claimed) + np.abs(exact[:, 0])
    nearest = prepared(space, np.stack([database[int(row)] for row in rows[:, 0]]))
    squares = np.square(vectors[checked]).sum(axis=1) + np.square(nearest).sum(axis=1)
    wrong = claimed > exact[:, 0] + 1e-3 * scale + ROUNDING * squares  # a query may be a row
    if wrong.mean() > MAX_WRONG:
        query = checked[np.argmax(wrong)]
        raise InputError(
            f"the ground truth says that row {truth[query, 0]} is nearest to query {query}, but by "
            f"{METRICS[space.metric]} row {rows[np.argmax(wrong), 0]} is nearer, as for "
            f"{wrong.mean():.0%} of the queries tried; it belongs to another database or metric"
        )


def _reach(truth: np.ndarray, vectors: np.ndarray, database: Vectors, space: Space) -> np.ndarray:
    """Distances [Q, k] of prepared vectors [Q, D] to the database rows `truth` [Q, k]."""
    found = np.zeros(truth.shape, np.float32)
    for some in spans(len(truth), QUERY_BLOCK):
        for column, rows in enumerate(truth[some].T):
            x = prepared(space, database[rows])
            if space.metric == "l2":
                found[some, column] = np.square(vectors[some] - x).sum(axis=1)
            else:
                found[some, column] = -(vectors[some] * x).sum(axis=1)
    return found
