"""More training rows than there are: each is moved part of the way towards one of its neighbours.

A network trained on few rows learns them by heart. Between near neighbours lie vectors that are as
likely as they are, and there are as many of these as one likes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from qinco_jax.errors import InputError
from qinco_jax.quantizers.batching import map_rows
from qinco_jax.quantizers.distances import smallest, squared_distances
from qinco_jax.seeds import MIXED_ROWS, seed_for
from qinco_jax.training import shuffle
from qinco_jax.training.recipe import MAX_MIXED
from qinco_jax.vectors.stored import Rows, Stored, derived

Best = tuple[jax.Array, jax.Array]
"""Squared distances and rows, [R, k]."""

MIX_NEIGHBOURS = 8
QUERIES, BLOCK = 256, 4096  # rows whose distances to each other are held at once
MAX_DRAWN = 2**23  # moved rows that differ; longer trainings see them again
SAME_LENGTH = 1e-3  # by how much the lengths of vectors that count as one may differ, relatively


def nearest_others(x: Rows, count: int = MIX_NEIGHBOURS) -> np.ndarray:
    """The rows nearest to each row, by L2 distance, exactly but for rounding.

    Args:
      x: [N, D], any real dtype, N >= 2; held in memory as float32.
      count: k, lowered to N - 1.

    Returns:
      [N, k] int32, nearest first, none the row itself.
    """
    rows = np.asarray(x, np.float32)
    rows = rows - rows.mean(axis=0, dtype=np.float64).astype(np.float32)  # loses less to rounding
    count = min(count, len(rows) - 1)
    found = np.asarray(map_rows(
        _nearest, jnp.asarray(rows), rows, rows=QUERIES, options=(count + 1,)
    ))  # fmt: skip
    own = found == np.arange(len(rows), dtype=np.int32)[:, None]
    own[~own.any(axis=1), -1] = True  # more copies of the row than neighbours: any one may go
    return found[~own].reshape(len(rows), count)


def _nearest(x: jax.Array, queries: jax.Array, count: int) -> jax.Array:
    """Rows [R, k] of `x` [N, D] nearest to queries [R, D]."""
    size = x.shape[0]
    block = min(BLOCK, size)
    number = jnp.arange(block, dtype=jnp.int32)

    def body(best: Best, begin: jax.Array) -> tuple[Best, None]:
        start = jnp.minimum(begin, size - block)  # the last overlaps
        error = squared_distances(queries, lax.dynamic_slice_in_dim(x, start, block))
        error = jnp.where((start + number >= begin)[None], error, jnp.inf)
        values, index = smallest(error, min(count, block))
        values = jnp.concatenate([best[0], values], axis=1)
        rows = jnp.concatenate([best[1], start + index], axis=1)
        values, index = smallest(values, count)
        return (values, jnp.take_along_axis(rows, index, axis=1)), None

    shape = queries.shape[0], count
    best = jnp.full(shape, jnp.inf), jnp.zeros(shape, jnp.int32)
    return lax.scan(body, best, jnp.arange(0, size, block, dtype=jnp.int32))[0][1]


def at_least(x: Rows, mix: float, seed: int, num_rows: int) -> Stored:
    """The rows of `x` [N, D] so many times over that they are `num_rows`, moved as `mixed` does.

    Raises:
      InputError: there are more than `MAX_MIXED`.
    """
    if len(x) > MAX_MIXED:
        raise InputError(
            f"{len(x):,} vectors are too many to move towards their neighbours (at most "
            f"{MAX_MIXED:,}), nor do so many need it; leave them as they are"
        )
    return mixed(x, nearest_others(x), mix, seed, -(-num_rows // len(x)))


def mixed(x: Rows, neighbours: np.ndarray, mix: float, seed: int, copies: int) -> Stored:
    """The rows of `x`, several times over, each time moved towards one of their neighbours.

    Where the rows have one length, so have the moved ones.

    Args:
      x: [N, D], any real dtype; held in memory.
      neighbours: [N, k] int32, rows of `x`.
      mix: rows are moved by a share of the way that is drawn between 0 and this.
      seed: of the run; a moved row is a function of it and of its own place.
      copies: C, lowered where C N exceeds `MAX_DRAWN`.

    Returns:
      [C N, D] float32, computed when they are read; row c N + n is `x[n]` moved.
    """
    rows, num_rows = np.asarray(x), len(x)
    copies = max(1, min(copies, MAX_DRAWN // num_rows))
    lengths = np.linalg.norm(rows.astype(np.float32), axis=1)
    one_length = np.ptp(lengths) <= SAME_LENGTH * lengths.max()
    key = seed_for(seed, MIXED_ROWS)

    def moved(numbers: np.ndarray) -> np.ndarray:
        number = numbers[:, 0]
        row, drawn = number % num_rows, shuffle.random_bits(key, number)
        chosen = neighbours[row, (drawn & np.uint64(0xFFFF)) % np.uint64(neighbours.shape[1])]
        share = np.float32(mix) * ((drawn >> np.uint64(40)).astype(np.float32) * np.float32(2**-24))
        start = rows[row].astype(np.float32)
        there = start + share[:, None] * (rows[chosen].astype(np.float32) - start)
        if one_length:
            own = np.maximum(np.linalg.norm(there, axis=1), np.finfo(np.float32).tiny)
            there *= (lengths[row] / own)[:, None]
        return there

    return derived(np.arange(copies * num_rows)[:, None], moved)
