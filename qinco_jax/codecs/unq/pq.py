"""Product quantization of principal directions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.quantizers.distances import matmul, smallest, squared_distances
from qinco_jax.quantizers.kmeans import kmeans

ERROR_ROWS = 8192


class ProductQuantizer(NamedTuple):
    """K centroids in each of M parts of W = ceil(D / M) dimensions.

    Attributes:
      directions: [M, D, W], orthonormal; columns that a part does not use are 0.
      codebooks: [M, K, W].
      errors: [M], mean squared error per dimension.
    """

    directions: jax.Array
    codebooks: jax.Array
    errors: jax.Array


def train(key: jax.Array, x: jax.Array, num_steps: int, codebook_size: int) -> ProductQuantizer:
    """Rotates vectors [N, D] to their principal directions and trains k-means on M parts.

    Directions are assigned in order of variance, each to the part with the smallest product of
    variances so far, so that the parts' errors are similar (Ge et al., CVPR 2013, Sec. 3.2).

    Args:
      key: PRNG key of the k-means.
      x: [N, D] float32, N >= K, of mean 0.
      num_steps: M.
      codebook_size: K.
    """
    directions = jnp.asarray(_directions(np.asarray(x), num_steps))
    codebooks, errors = [], []
    for step, columns in enumerate(directions):
        part = matmul(x, columns)
        codebooks.append(kmeans(jax.random.fold_in(key, step), part, codebook_size))
        nearest, _ = smallest(squared_distances(part[:ERROR_ROWS], codebooks[-1]), 1)
        errors.append(jnp.mean(nearest) / part.shape[1])
    return ProductQuantizer(directions, jnp.stack(codebooks), jnp.stack(errors))


def _directions(x: np.ndarray, num_steps: int) -> np.ndarray:
    num_rows, dim = x.shape
    variances, directions = np.linalg.eigh(x.T.astype(np.float64) @ x / num_rows)
    width = -(-dim // num_steps)
    parts = np.zeros((num_steps, dim, width), np.float32)
    counts, volumes = np.zeros(num_steps, int), np.zeros(num_steps)
    for variance, direction in zip(variances[::-1], directions.T[::-1], strict=True):
        part = np.argmin(np.where(counts < width, volumes, np.inf))
        parts[part, :, counts[part]] = direction
        counts[part] += 1
        volumes[part] += np.log(max(variance, 1e-12))
    return parts
