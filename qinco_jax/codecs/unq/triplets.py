"""Triplets of an anchor, a near neighbour and a farther one, mined exactly in a sample."""

import jax
import jax.numpy as jnp
from jax import lax

from qinco_jax.quantizers.distances import smallest, squared_distances

RANKS, NEAR_RANKS = 200, 3
BLOCK_ROWS = 256


@jax.jit
def neighbours(sample: jax.Array) -> jax.Array:
    """The R = min(200, S - 1) nearest other rows of each row of a sample.

    Args:
      sample: [S, D] float32, S >= 2.

    Returns:
      [S, R] int32, nearest first.
    """
    count = min(RANKS, len(sample) - 1)

    def of_row(row: jax.Array) -> jax.Array:
        distances = squared_distances(sample[row], sample).at[row].set(jnp.inf)
        return smallest(distances, count)[1]

    return lax.map(of_row, jnp.arange(len(sample)), batch_size=BLOCK_ROWS)


def draw(key: jax.Array, neighbours: jax.Array, count: int) -> jax.Array:
    """Random triplets from the neighbours [S, R] of a sample.

    Returns:
      Rows [3, count] of the sample: anchors, one of the three nearest to each, and one of the
      farther half of its neighbours, which are ranks 101 to 200 unless the sample is small.
    """
    keys, (num_rows, ranks) = jax.random.split(key, 3), neighbours.shape
    anchor = jax.random.randint(keys[0], (count,), 0, num_rows)
    near = jax.random.randint(keys[1], (count,), 0, min(NEAR_RANKS, ranks))
    far = jax.random.randint(keys[2], (count,), ranks // 2, ranks)
    return jnp.stack([anchor, neighbours[anchor, near], neighbours[anchor, far]])
