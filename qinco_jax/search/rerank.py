"""Distances by the network's reconstructions of a shortlist of codes."""

from typing import Any

import jax
import numpy as np

from qinco_jax.quantizers.batching import block_rows, map_rows
from qinco_jax.search import distance
from qinco_jax.search.distance import Reading


def distances(
    prepared: Any, reading: Reading, queries: np.ndarray, codes: np.ndarray, levels: np.ndarray
) -> np.ndarray:
    """Distances [Q, S] float32 of queries [Q, D] to the codes of their shortlists.

    Args:
      prepared: of the model (`prepare`).
      reading: of the metric.
      queries: of unit length under "cosine".
      codes: [Q, S, columns] int32.
      levels: [Q, S] int32, the bytes beside the codes.
    """
    num_queries, size, columns = codes.shape
    owner = np.repeat(np.arange(num_queries, dtype=np.int32), size)
    rows = np.concatenate(
        [codes.reshape(-1, columns), levels.reshape(-1, 1), owner[:, None]], axis=1, dtype=np.int32
    )
    found = map_rows(_of_rows, (prepared, reading, queries), rows, rows=block_rows(2))
    return np.asarray(found).reshape(num_queries, size)


def _of_rows(given: tuple[Any, Reading, jax.Array], rows: jax.Array) -> jax.Array:
    prepared, reading, queries = given
    x_hat = prepared.decode(rows[:, :-2])
    return distance.distances(reading, queries[rows[:, -1]], x_hat, rows[:, -2])
