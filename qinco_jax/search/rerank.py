"""Re-ranking: a shortlist of codes by the network's reconstructions."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.quantizers.batching import block_rows, map_rows
from qinco_jax.quantizers.coding import Model
from qinco_jax.search import distance
from qinco_jax.search.distance import Reading


@functools.partial(jax.jit, static_argnames="compute_dtype")
def prepared(model: Model, compute_dtype: str) -> Any:
    """What decoding a model's codes needs, its products in a dtype (`precision`)."""
    return model.prepare(compute_dtype)


def distances(
    prepared: Any,
    reading: Reading,
    origin: jax.Array,
    queries: np.ndarray,
    codes: np.ndarray,
    levels: np.ndarray,
) -> np.ndarray:
    """Distances [Q, S] float32 of queries [Q, D] to the codes of their shortlists.

    Args:
      prepared: of the model (`prepare`), or `Pairs`.
      reading: of the metric.
      origin: [D], what to subtract from what it decodes.
      queries: `distance.in_space`.
      codes: [Q, S, columns] int32.
      levels: [Q, S, V] int32, the bytes beside the codes.
    """
    num_queries, size, columns = codes.shape
    owner = np.repeat(np.arange(num_queries, dtype=np.int32), size)
    rows = np.concatenate(
        [codes.reshape(-1, columns), levels.reshape(len(owner), levels.shape[2]), owner[:, None]],
        axis=1, dtype=np.int32,
    )  # fmt: skip
    block = block_rows(2, 16 * len(origin))
    found = map_rows(_of_rows, (prepared, reading, origin, queries), rows, rows=block)
    return np.asarray(found).reshape(num_queries, size)


def _of_rows(given: tuple[Any, Reading, jax.Array, jax.Array], rows: jax.Array) -> jax.Array:
    prepared, reading, origin, queries = given
    end = rows.shape[1] - 1 - len(reading.low)
    codes, levels, owner = jnp.split(rows, [end, rows.shape[1] - 1], axis=1)
    x_hat = prepared.decode(codes) - origin[None]
    return distance.distances(reading, queries[owner[:, 0]], x_hat, levels)


def first(
    count: int, own: np.ndarray, scores: np.ndarray, ids: np.ndarray, *parts: np.ndarray
) -> list[np.ndarray]:
    """The `count` nearest of each query, as distances, scores, ids and so on; ties by id."""
    order = np.lexsort((ids, own), axis=1)[:, :count]
    rows = np.arange(len(own))[:, None]
    return [part[rows, order] for part in (own, scores, ids, *parts)]
