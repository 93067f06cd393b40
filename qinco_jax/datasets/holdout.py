"""Training vectors and queries for data sets without any: rows of the database, taken out of it."""

from collections.abc import Callable

import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.vectors.stored import Rows, Stored

MAX_QUERIES = 1000


def cut_training(
    rows: Rows, groundtruth: np.ndarray | None, every: int = 10
) -> tuple[Stored, Stored, np.ndarray | None]:
    """Splits a database: every tenth row becomes a training vector, the rest stay.

    Args:
      rows: [N, D], the database, which is not read.
      groundtruth: [Q, k] integers, its rows nearest to each query, nearest first; or `None`.
      every: row i becomes a training vector if i % `every` is `every` - 1.

    Returns:
      The training vectors [N // every, D]; the database [S, D] of the other rows, renumbered; and
      its ground truth [Q, j] without the training rows, where j is the smallest number of neighbors
      that a query keeps (`None` if j = 0).

    Raises:
      InputError: there are fewer rows than `every`.
    """
    count = len(rows)
    if count < every:
        raise InputError(
            f"the database needs at least {every} rows to take training vectors from, but has only "
            f"{count}; provide separate training vectors"
        )
    size = getattr(rows, "block_rows", 1)
    train = _Chosen(rows, count // every, lambda row: row * every + every - 1)
    rest = _Chosen(rows, count - count // every, lambda row: row + row // (every - 1))
    parts = Stored([train], -(-size // every)), Stored([rest], max(1, size - size // every))
    return *parts, None if groundtruth is None else _renumbered(groundtruth, every)


def hold_back_queries(database: Rows) -> tuple[Rows, Rows]:
    """Splits a database [N, D]: the rest, and its last rows, at most 1,000 or a tenth."""
    count = len(database) - min(MAX_QUERIES, len(database) // 10)
    return database[:count], database[count:]


class _Chosen:
    """Selected rows: row i is row `number(i)` of `rows` [N, D]."""

    def __init__(self, rows: Rows, count: int, number: Callable[[np.ndarray], np.ndarray]) -> None:
        self.shape, self.dtype = (count, rows.shape[1]), rows.dtype
        self._rows, self._number = rows, number

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._rows[self._number(np.arange(rows.start, rows.stop))]


def _renumbered(groundtruth: np.ndarray, every: int) -> np.ndarray | None:
    stays = groundtruth % every != every - 1
    order = np.argsort(~stays, axis=1, kind="stable")[:, : stays.sum(axis=1).min()]
    ids = np.take_along_axis(groundtruth, order, axis=1)
    return ids - ids // every if ids.shape[1] else None
