"""The pairwise additive decoder of QINCo2 (arXiv 2501.03078, Sec. 3): a sum of table rows.

Each row belongs to the values of two codes at once, which an ordinary additive decoder cannot say.
"""

import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax import checks
from qinco_jax.errors import InputError
from qinco_jax.rows import block_rows, map_rows

Array = jax.Array | np.ndarray


@flax.struct.dataclass
class PairwiseDecoder:
    """T tables for pairs among the M codes of a vector and the P codes of its coarse centroid.

    The pool of a vector is its codes 1 to M and then, from `coarse_codes`, those of its centroid.

    Attributes:
      coarse_codes: [K_ivf, P] int32 in 0..K-1, small codes of each coarse centroid.
      pairs: [2, T] int32, the two places in the pool that each table is for.
      tables: [T, K * K, D] float32; the row of codes i, j at the first and second place is the cell
        i * K + j.
    """

    coarse_codes: jax.Array
    pairs: jax.Array
    tables: jax.Array

    @property
    def codebook_size(self) -> int:
        """K."""
        return math.isqrt(self.tables.shape[1])


def checked(coarse_codes: Array, pairs: Array, tables: Array) -> PairwiseDecoder:
    """A decoder of arrays that come from elsewhere.

    Args:
      coarse_codes: [K_ivf, P] integers.
      pairs: [2, T] integers.
      tables: [T, K * K, D] floats.

    Raises:
      InputError: shapes, dtypes or values that do not fit each other.
    """
    shapes = coarse_codes.shape, pairs.shape, tables.shape
    if [len(shape) for shape in shapes] != [2, 2, 3] or 0 in sum(shapes, ()):
        raise InputError(f"the shapes are {shapes}; expected [K_ivf, P], [2, T] and [T, K * K, D]")
    size, (num_tables, cells, _) = math.isqrt(tables.shape[1]), tables.shape
    if pairs.shape != (2, num_tables) or size * size != cells:
        raise InputError(f"the shapes {shapes} do not fit: expected [2, T] and [T, K * K, D]")
    for name, codes, end in (("coarse codes", coarse_codes, size), ("pairs", pairs, 2**15)):
        if not np.issubdtype(codes.dtype, np.integer) or codes.min() < 0 or codes.max() >= end:
            raise InputError(f"the {name} are not all integers in 0..{end - 1}")
    if not np.issubdtype(tables.dtype, np.floating) or not np.isfinite(tables).all():
        raise InputError("the tables are not all finite numbers")
    return PairwiseDecoder(
        jnp.asarray(coarse_codes, jnp.int32),
        jnp.asarray(pairs, jnp.int32),
        jnp.asarray(tables, jnp.float32),
    )


def decode(decoder: PairwiseDecoder, codes: Array) -> jax.Array:
    """Approximate vectors less their coarse centroids, in the space of the vectors.

    Args:
      decoder: of K_ivf centroids and K codewords.
      codes: [N, 1 + M] integers, the number of the centroid first; N may be 0. Under `jit` they
        are not checked.

    Returns:
      [N, D] float32, the sum over t of `tables[t, pool[a_t] * K + pool[b_t]]`.

    Raises:
      InputError: wrong shape or dtype, fewer columns than the pairs name, or codes outside of
        0..K_ivf-1 and 0..K-1.
    """
    num_centroids, small = decoder.coarse_codes.shape
    codes = checks.codes(codes, 2**15)
    if codes.ndim != 2:
        raise InputError(f"codes have shape {codes.shape}; expected [N, 1 + M]")
    num_steps = codes.shape[1] - 1
    if not isinstance(decoder.pairs, jax.core.Tracer):
        needed = int(decoder.pairs.max()) + 1 - small
        if num_steps < needed:
            raise InputError(
                f"codes have {codes.shape[1]} columns; the decoder's pairs need {1 + needed}"
            )
    sizes = (num_centroids, *(decoder.codebook_size,) * num_steps)
    check = functools.partial(checks.codes_below, sizes)
    rows = block_rows(decoder.pairs.shape[1])
    return map_rows(_itself, _decode_rows, decoder, codes, rows=rows, check=check)


def _itself(decoder: PairwiseDecoder) -> PairwiseDecoder:
    return decoder


def _decode_rows(decoder: PairwiseDecoder, codes: jax.Array) -> jax.Array:
    codes = codes.astype(jnp.int32)
    pool = jnp.concatenate([codes[:, 1:], decoder.coarse_codes[codes[:, 0]]], axis=1).T

    def add(x_hat: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        pair, table = inputs
        first, second = pool[pair]
        return x_hat + table[first * decoder.codebook_size + second], None

    zeros = jnp.zeros((codes.shape[0], decoder.tables.shape[-1]))
    x_hat, _ = jax.lax.scan(add, zeros, (decoder.pairs.T, decoder.tables))
    return x_hat
