"""Error of a codec and recall of nearest-neighbour search over what it decodes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax import checks
from qinco_jax.codec import Codec
from qinco_jax.distances import squared_distances

Array = jax.Array | np.ndarray
Progress = Callable[[int], Any]

BLOCK_ROWS = 8192
QUERY_BLOCK = 1024
RANKS = (1, 10, 100)
FAR = 1e17  # a coordinate that nothing is near to, whose square float32 still holds


class Score(NamedTuple):
    """What `measure` found.

    Attributes:
      mse: squared error summed over dimensions, averaged over the database.
      recall: rank k -> share of the queries whose true nearest neighbour is among the k nearest
        decoded vectors; empty without queries.
    """

    mse: float
    recall: dict[int, float]


def measure(
    codec: Codec,
    database: Array,
    queries: Array | None = None,
    nearest: Array | None = None,
    progress: Progress | None = None,
) -> Score:
    """Encodes and decodes a database and searches it exhaustively by squared L2 distance.

    Vectors equally near after decoding share their ranks: a query counts by the chance that a
    random order of them puts its neighbour among the first k.

    Args:
      codec: what to measure.
      database: [N, D], read in blocks.
      queries: [Q, D], not compressed; `None` measures the error alone.
      nearest: [Q] index of each query's true nearest neighbour in `database`.
      progress: called with the number of rows done after each block.
    """
    codes, squares = [], 0.0
    for block in _blocks(len(database)):
        x = checks.finite(np.asarray(database[block]), block.start, "the database")
        codes.append(np.asarray(codec.encode(x)))
        error = x.astype(np.float32) - np.asarray(codec.decode(codes[-1]))
        squares += float(np.sum(np.square(error), dtype=np.float64))
        if progress is not None:
            progress(len(x))
    mse = squares / len(database)
    if queries is None or nearest is None:
        return Score(mse, {})
    all_codes = np.concatenate(codes)
    target = np.asarray(codec.decode(all_codes[np.asarray(nearest)]))
    nearer, as_near = _ranks(codec, all_codes, np.asarray(queries, np.float32), target)
    chance = {k: np.clip((k - nearer) / as_near, 0, 1) for k in RANKS}
    return Score(mse, {k: float(np.mean(share)) for k, share in chance.items()})


def nearest_neighbours(database: Array, queries: Array) -> np.ndarray:
    """Index [Q] of the database row [N, D] nearest to each query [Q, D], ties to the first."""
    best = np.full(len(queries), np.inf, np.float32)
    found = np.zeros(len(queries), np.int64)
    center = _center(database)
    queries = np.asarray(queries, np.float32) - center
    for block in _blocks(len(database)):
        x = _padded(np.asarray(database[block], np.float32) - center)
        for part in _query_blocks(queries):
            distances, index = _closest(queries[part], x)
            better = np.asarray(distances) < best[part]
            best[part] = np.where(better, distances, best[part])
            found[part] = np.where(better, np.asarray(index) + block.start, found[part])
    return found


def _ranks(
    codec: Codec, codes: np.ndarray, queries: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How many decoded rows are nearer to each query than its target, and how many as near."""
    nearer = np.zeros(len(queries), np.int64)
    as_near = np.zeros(len(queries), np.int64)
    center = _center(target)
    queries, target = queries - center, target - center
    for block in _blocks(len(codes)):
        x_hat = _padded(np.asarray(codec.decode(codes[block])) - center)
        for part in _query_blocks(queries):
            less, equal = _count(queries[part], target[part], x_hat)
            nearer[part] += np.asarray(less)
            as_near[part] += np.asarray(equal)
    return nearer, np.maximum(as_near, 1)


def _center(x: Array) -> np.ndarray:
    """A point [D] amid the vectors; distances from there lose less to rounding."""
    return np.asarray(x[:BLOCK_ROWS], np.float32).mean(axis=0, dtype=np.float64).astype(np.float32)


@jax.jit
def _count(queries: jax.Array, target: jax.Array, x_hat: jax.Array) -> tuple[jax.Array, jax.Array]:
    reference = jnp.sum(jnp.square(queries - target), axis=-1)[:, None]
    distances = squared_distances(queries, x_hat)
    # The two ways to compute a distance differ by rounding in proportion to the squared norms.
    scale = (
        jnp.sum(jnp.square(queries), axis=-1)[:, None] + jnp.sum(jnp.square(x_hat), axis=-1)[None]
    )
    slack = 1e-6 * scale
    equal = jnp.abs(distances - reference) <= slack
    return jnp.sum((distances < reference) & ~equal, axis=-1), jnp.sum(equal, axis=-1)


@jax.jit
def _closest(queries: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    distances = squared_distances(queries, x)
    return jnp.min(distances, axis=-1), jnp.argmin(distances, axis=-1)


def _blocks(num_rows: int) -> Iterator[slice]:
    for begin in range(0, num_rows, BLOCK_ROWS):
        yield slice(begin, min(begin + BLOCK_ROWS, num_rows))


def _query_blocks(queries: Sequence[Any] | Array) -> Iterator[slice]:
    for begin in range(0, len(queries), QUERY_BLOCK):
        yield slice(begin, min(begin + QUERY_BLOCK, len(queries)))


def _padded(x: np.ndarray) -> np.ndarray:
    """Rows filled up to a block, the one shape to compile, with vectors far from everything."""
    rest = BLOCK_ROWS - len(x)
    return np.pad(x, ((0, rest), (0, 0)), constant_values=FAR) if rest else x
