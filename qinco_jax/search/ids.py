"""Ids of vectors: checked, and as Faiss selects by them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from qinco_jax import optional
from qinco_jax.errors import InputError
from qinco_jax.search import scan

MAX_ID = 2**63 - 2  # Faiss's ranges end before a number of 63 bits

Ids = Sequence[int] | np.ndarray
Filter = Sequence[int] | np.ndarray | range


def checked(ids: Ids) -> np.ndarray:
    """Ids [n] int64.

    Raises:
      InputError: not a list of integers from 0 to 2^63 - 2.
    """
    found = np.asarray(ids)
    if found.size == 0:
        return np.zeros(0, np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iu" or found.min() < 0 or found.max() > MAX_ID:
        span = f", from {found.min()} to {found.max()}" if found.dtype.kind in "iu" else ""
        raise InputError(
            f"the ids are {found.dtype} {found.shape}{span}; give a list of integers from 0 to "
            "2^63 - 2"
        )
    return np.ascontiguousarray(found, np.int64)


def selector(filter: Filter) -> Any:
    """A Faiss selector of ids, which keeps what it points to."""
    faiss = optional.faiss(scan.WANTED)
    if isinstance(filter, range) and filter.step == 1:
        first, last = np.clip([filter.start, filter.stop], 0, MAX_ID + 1).tolist()
        return faiss.IDSelectorRange(first, last)
    return faiss.IDSelectorBatch(checked(np.asarray(filter)))
