"""Which reading of distances finds most of rows, the last of which ask for the others."""

import jax.numpy as jnp
import numpy as np

from qinco_jax.search import distance
from qinco_jax.search.distance import Measured, Reading

MAX_QUERIES = 500
RANKS = 1, 10
FEWEST_ROWS = 2 * RANKS[-1]


def choose(metric: str, rows: Measured, origin: np.ndarray) -> Reading:
    """The reading of the metric's kinds by which the reconstructions of rows find most.

    Recall@1 and @10 count the same; of equal ones it is the first of `distance.kinds`.
    """
    found = [distance.fit(metric, kind, rows, origin) for kind in distance.kinds(metric, rows.x)]
    return max(found, key=lambda reading: recall(reading, rows, rows.x_hat))


def recall(reading: Reading, rows: Measured, x_hat: np.ndarray | None = None) -> float:
    """Mean of recall@1 and @10 of the rows' last queries among the others.

    By the distances to reconstructions [N, D]; without any, by the scan's scores.
    """
    count = len(rows.x) - max(1, min(MAX_QUERIES, len(rows.x) // 10))
    queries, x = rows.x[count:], rows.x[:count]
    products = queries @ x.T
    exact = products if reading.metric != "l2" else products - np.square(x).sum(axis=1) / 2
    best = exact.argmax(axis=1)
    kept = Measured(x, rows.x_hat[:count], rows.rough[:count])
    levels = distance.to_bytes(reading, distance.values(reading.metric, reading.kind, kept))
    if x_hat is None:
        scores = -(queries @ kept.rough.T + distance.scan_adds(reading, levels))
    else:
        scores = np.asarray(
            distance.all_distances(
                reading, jnp.asarray(queries), jnp.asarray(x_hat[:count]), jnp.asarray(levels)
            )
        )
    rank = (scores < np.take_along_axis(scores, best[:, None], axis=1)).sum(axis=1)
    return float(np.mean([(rank < k).mean() for k in RANKS]))
