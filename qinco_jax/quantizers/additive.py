"""The additive decoder of codes: one table a column, fitted by least squares (QINCo2, Sec. 3.4).

It approximates a vector by a sum of table rows, sum_m T_m[i_m], less exactly than the network, but
so cheaply that every code of a list can be looked at.
"""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.errors import InputError

MAX_ROWS = 16_384  # of all tables; the normal equations take the square of it


def fit(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], num_columns: int, codebook_size: int, dim: int
) -> np.ndarray:
    """Tables T [C, K, D] float32 that minimize sum |t - sum_m T_m[i_m]|^2 over all rows.

    One pass over the rows adds up the normal equations, so any number of rows is fitted exactly.
    Each table row is drawn to the mean as by one more vector, which settles what few rows say
    little about.

    Args:
      blocks: pairs of codes [R, C] in 0..K-1 and what they stand for [R, D].
      num_columns: C, 0 or more.
      codebook_size: K.
      dim: D.

    Raises:
      InputError: the tables have more than `MAX_ROWS` rows in all.
    """
    size = num_columns * codebook_size
    if size > MAX_ROWS:
        raise InputError(
            f"{num_columns} columns of {codebook_size} codewords have {size} table rows, and at "
            f"most {MAX_ROWS} can be fitted; use a model of fewer steps or smaller codebooks"
        )
    gram, products = np.zeros((size, size)), np.zeros((size, dim))
    total, count = np.zeros(dim), 0
    for codes, targets in blocks:
        _add_counts(gram, codes, codebook_size)
        found = _sums(jnp.asarray(codes, jnp.int32), jnp.asarray(targets), codebook_size)
        products += np.asarray(found, np.float64).reshape(size, dim)
        total += targets.sum(axis=0, dtype=np.float64)
        count += len(targets)
    mean = total / max(1, count)
    counts = np.diagonal(gram).copy()
    gram[np.diag_indices(size)] += 1
    tables = np.linalg.solve(gram, products - counts[:, None] * mean)
    tables[:codebook_size] += mean
    return tables.reshape(num_columns, codebook_size, dim).astype(np.float32)


def decode(tables: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Approximations [N, D] float32 of codes [N, C]."""
    found = np.zeros((len(codes), tables.shape[2]), np.float32)
    for table, column in zip(tables, codes.T, strict=True):
        found += table[column]
    return found


def _add_counts(gram: np.ndarray, codes: np.ndarray, codebook_size: int) -> None:
    """Adds to [C K, C K] how often each two codewords occur together."""
    columns = [column.astype(np.int64) for column in codes.T]
    for a, first in enumerate(columns):
        for b, second in enumerate(columns[: a + 1]):
            cells = first * codebook_size + second
            pairs = np.bincount(cells, minlength=codebook_size**2).reshape(codebook_size, -1)
            rows = slice(a * codebook_size, (a + 1) * codebook_size)
            others = slice(b * codebook_size, (b + 1) * codebook_size)
            gram[rows, others] += pairs
            if a != b:
                gram[others, rows] += pairs.T


@functools.partial(jax.jit, static_argnums=2)
def _sums(codes: jax.Array, targets: jax.Array, codebook_size: int) -> jax.Array:
    """Sums [C, K, D] of the targets [R, D] of each codeword."""
    zeros = jnp.zeros((codebook_size, targets.shape[1]), jnp.float32)
    return jax.lax.map(lambda column: zeros.at[column].add(targets), codes.T)
