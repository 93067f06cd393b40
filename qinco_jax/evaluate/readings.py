"""The reading of distances that finds most with a codec, beside the plain one (`search.distance`).

The plain one, by which papers report recall, takes reconstructions as they are. Another one may
keep a byte beside each code: of the vector's length, or of a scale. Which one finds most is tried
on training vectors, so the database and the queries that are reported have no part in the choice.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np

from qinco_jax.codecs.codec import Codec
from qinco_jax.datasets.dataset import Dataset
from qinco_jax.evaluate.neighbours import Queries, padded, prepared
from qinco_jax.search import distance, trial
from qinco_jax.search.distance import Measured, Reading
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows

TRIAL_ROWS = 5_000


class Kept(NamedTuple):
    """A reading, and the bytes [N, 1] that it keeps of the rows of a database."""

    reading: Reading
    levels: np.ndarray


class Ranking(NamedTuple):
    """Queries, and what they rank instead of the rows of a database.

    Attributes:
      metric: of `neighbours.distances` between `vectors` and what `near` gives.
      vectors: [Q, D] float32.
      near: reconstructions [R, D] of a block of rows, and which rows -> [BLOCK_ROWS, D] float32,
        `padded`.
    """

    metric: str
    vectors: np.ndarray
    near: Callable[[np.ndarray, slice], np.ndarray | jax.Array]


def trial_rows(data: Dataset, held_back: Rows) -> np.ndarray:
    """The last training vectors that are not measured, at most 5,000 and in random order.

    Where the set has a database but no validation vectors, training holds them back.

    Args:
      data: the set as it was loaded.
      held_back: [V, D], the rows that stand in for a database if the set has none.

    Raises:
      InputError: one of them holds NaN or Inf.
    """
    taken = len(held_back) if data.database is None and data.validation is None else 0
    end = len(data.train) - taken
    begin = max(0, end - TRIAL_ROWS)
    rows = checks.finite(np.asarray(data.train[begin:end]), begin, "the training vectors")
    return np.random.default_rng(0).permutation(rows)


def choose(codec: Codec, metrics: Iterable[str], rows: np.ndarray) -> dict[str, Reading]:
    """Metric -> the reading that finds most of rows [T, D]; nothing if they are too few to tell."""
    if len(rows) < trial.FEWEST_ROWS:
        return {}
    x_hat = np.asarray(codec.decode(codec.encode(rows)))
    found = {}
    for metric in dict.fromkeys(metrics):
        origin = distance.origin_of(metric, rows)
        if codec.unit_norm:  # its reconstructions lie about 0, wherever the vectors do
            origin = np.zeros_like(origin)
        found[metric] = trial.choose(metric, _measured(metric, origin, rows, x_hat), origin)
    return found


def num_bytes(reading: Reading) -> int:
    """How many bytes beside a code its distance depends on; a scan of an index may need more."""
    return 0 if reading.kind == "reconstruction" else 1


def levels(reading: Reading, x: np.ndarray, x_hat: np.ndarray) -> np.ndarray:
    """The byte [N, 1] that a reading keeps of vectors [N, D] with reconstructions [N, D]."""
    rows = _measured(reading.metric, np.asarray(reading.origin), x, x_hat)
    found = distance.values(reading.metric, reading.kind, rows)
    return distance.to_bytes(reading, found)[:, :1]


def plain(queries: Queries) -> Ranking:
    """Ranks reconstructions as they are."""
    space = queries.space
    return Ranking(
        space.metric, queries.vectors, lambda x_hat, rows: padded(prepared(space, x_hat))
    )


def by(kept: Kept, queries: Queries) -> Ranking:
    """Ranks reconstructions in the order of a reading's distances."""
    reading, origin = kept.reading, np.asarray(kept.reading.origin)

    def near(x_hat: np.ndarray, rows: slice) -> jax.Array:
        placed = _placed(reading.metric, origin, x_hat)
        return distance.stretched(reading, padded(placed), padded(kept.levels[rows]))

    asked = queries.vectors + (queries.space.center - origin)
    return Ranking(distance.ranked_by(reading), asked, near)


def _measured(metric: str, origin: np.ndarray, x: np.ndarray, x_hat: np.ndarray) -> Measured:
    placed = _placed(metric, origin, x_hat)
    return Measured(distance.in_space(x, metric, origin), placed, placed)


def _placed(metric: str, origin: np.ndarray, x_hat: np.ndarray) -> np.ndarray:
    """Reconstructions [N, D] in the space of the distances, where a reading sets their lengths."""
    x_hat = np.asarray(x_hat, np.float32)
    return x_hat - origin if metric == "l2" else x_hat
