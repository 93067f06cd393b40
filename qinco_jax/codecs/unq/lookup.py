"""Search over codes by distances that are sums of table entries, in blocks."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from qinco_jax.quantizers import packing
from qinco_jax.quantizers.distances import smallest
from qinco_jax.vectors.stored import spans

BLOCK_ROWS = 8192


def nearest(tables: jax.Array, codes: np.ndarray, count: int) -> np.ndarray:
    """The rows of a database with the smallest sums of table entries.

    Args:
      tables: [M, K, Q] float32; the distance of row i to query q is
        sum_m tables[m, codes[i, m], q].
      codes: [N, M] integers; a memory map is read block by block.
      count: rows to find for each query, at most N.

    Returns:
      [Q, count] int64, nearest first.

    Raises:
      InputError: codes outside 0..K-1.
    """
    _, codebook_size, num_queries = tables.shape
    distances = jnp.full((num_queries, count), jnp.inf)
    index = jnp.zeros((num_queries, count), jnp.int32)
    for span in spans(len(codes), BLOCK_ROWS):
        part = packing.check_range(codebook_size, codes[span], span.start)
        padded = np.pad(part, ((0, BLOCK_ROWS - len(part)), (0, 0)))
        distances, index = _merge(tables, padded, span.start, len(part), distances, index)
    return np.asarray(index, np.int64)


@jax.jit
def _merge(
    tables: jax.Array,
    codes: jax.Array,
    begin: jax.Array,
    num_rows: jax.Array,
    distances: jax.Array,
    index: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The best [Q, count] of those so far and of the first rows of a block of codes."""
    here = lax.fori_loop(
        0, codes.shape[1], lambda m, total: total + tables[m, codes[:, m]],
        jnp.zeros((len(codes), tables.shape[-1])),
    )  # fmt: skip
    rows = jnp.arange(len(codes))
    here = jnp.where((rows < num_rows)[:, None], here, jnp.inf).T
    numbers = jnp.broadcast_to((begin + rows)[None], here.shape)
    both = jnp.concatenate([distances, here], axis=1)
    distances, position = smallest(both, distances.shape[1])
    return distances, jnp.take_along_axis(jnp.concatenate([index, numbers], 1), position, axis=1)
