"""k-means under jit. Empty clusters are refilled from the rows that are served worst."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from qinco_jax.quantizers.distances import matmul, smallest, squared_distances


@functools.partial(jax.jit, static_argnames=("num_clusters", "num_iters"))
def kmeans(key: jax.Array, x: jax.Array, num_clusters: int, num_iters: int = 10) -> jax.Array:
    """Lloyd's algorithm from randomly chosen rows, drawn towards the mean (`drawn_in`).

    Args:
      key: PRNG key.
      x: [N, D] float32, N >= `num_clusters`.
      num_clusters: K.
      num_iters: Lloyd iterations.

    Returns:
      [K, D] float32 centroids. A cluster that runs empty moves to one of the rows farthest from
      their centroids, a different row for each.
    """
    chosen = jax.random.choice(key, x.shape[0], (num_clusters,), replace=False)

    def iterate(_: int, centroids: jax.Array) -> jax.Array:
        sums, counts, error = _assign(x, centroids)
        means = sums / jnp.maximum(counts, 1.0)[:, None]
        worst = smallest(-error, num_clusters)[1]
        empty = counts == 0
        rank = jnp.cumsum(empty) - 1
        return jnp.where(empty[:, None], x[worst[rank]], means)

    return lax.fori_loop(0, num_iters, iterate, drawn_in(x[chosen], jnp.mean(x, axis=0)))


def drawn_in(rows: jax.Array, mean: jax.Array) -> jax.Array:
    """Rows [K, D] moved towards the mean [D] of all, to start K centroids from.

    Where they are, in many dimensions, all but the few nearest to the mean are too far from every
    other row and stay alone in their clusters. For normal vectors a share 1 - K^(-2 / D) of the
    variance is left to codewords (the rate-distortion function), and (D + 2) / D times that if each
    counts once (their density, by Zador); in few dimensions that is all of it.
    """
    num_clusters, dim = rows.shape
    share = (1 - num_clusters ** (-2 / dim)) * (dim + 2) / dim
    return mean[None] + min(1.0, share) ** 0.5 * (rows - mean[None])


def _assign(
    x: jax.Array, centroids: jax.Array, block: int = 4096
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums [K, D] and counts [K] of the rows nearest to each centroid, and each row's error [N]."""
    num_rows, num_clusters = x.shape[0], centroids.shape[0]
    block = min(block, num_rows)
    num_blocks = -(-num_rows // block)
    padded = jnp.pad(x, ((0, num_blocks * block - num_rows), (0, 0)))
    weight = (jnp.arange(num_blocks * block) < num_rows).astype(x.dtype)

    def body(
        totals: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        rows, weight = inputs
        distances = squared_distances(rows, centroids)
        one_hot = jax.nn.one_hot(jnp.argmin(distances, -1), num_clusters) * weight[:, None]
        sums, counts = totals
        totals = sums + matmul(one_hot.T, rows), counts + jnp.sum(one_hot, axis=0)
        return totals, jnp.min(distances, -1)

    start = jnp.zeros_like(centroids), jnp.zeros(num_clusters, x.dtype)
    blocks = padded.reshape(num_blocks, block, -1), weight.reshape(num_blocks, block)
    (sums, counts), error = lax.scan(body, start, blocks)
    return sums, counts, error.reshape(-1)[:num_rows]
