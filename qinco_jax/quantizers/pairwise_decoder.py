"""The pairwise additive decoder of QINCo2 (arXiv 2501.03078, Sec. 3): a sum of table rows.

Each row belongs to the values of two codes at once, which an ordinary additive decoder cannot say.
"""

import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.quantizers import packing
from qinco_jax.quantizers.batching import block_rows, map_rows

MAX_STEPS = 2**15

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
      num_steps: M, static.
    """

    coarse_codes: jax.Array
    pairs: jax.Array
    tables: jax.Array
    num_steps: int = flax.struct.field(pytree_node=False)

    @property
    def codebook_size(self) -> int:
        """K."""
        return math.isqrt(self.tables.shape[1])


def checked(coarse_codes: Array, pairs: Array, tables: Array, *, num_steps: int) -> PairwiseDecoder:
    """A decoder of arrays that come from elsewhere.

    Args:
      coarse_codes: [K_ivf, P] integers.
      pairs: [2, T] integers.
      tables: [T, K * K, D] floats.
      num_steps: M, which the arrays do not tell.

    Raises:
      InputError: shapes, dtypes or values that do not fit each other.
    """
    shapes = coarse_codes.shape, pairs.shape, tables.shape
    if [len(shape) for shape in shapes] != [2, 2, 3] or 0 in sum(shapes, ()):
        raise InputError(f"the shapes are {shapes}; expected [K_ivf, P], [2, T] and [T, K * K, D]")
    size, (num_tables, cells, _) = math.isqrt(tables.shape[1]), tables.shape
    if pairs.shape != (2, num_tables) or size * size != cells:
        raise InputError(f"the shapes {shapes} do not fit: expected [2, T] and [T, K * K, D]")
    if type(num_steps) is not int or not 1 <= num_steps < MAX_STEPS:
        raise InputError(f"num_steps must be an integer from 1 to {MAX_STEPS - 1}: M of the codes")
    pool = num_steps + coarse_codes.shape[1]
    for name, codes, end in (
        ("coarse codes", coarse_codes, size),
        (f"pairs for {num_steps} steps", pairs, pool),
    ):
        if not np.issubdtype(codes.dtype, np.integer) or codes.min() < 0 or codes.max() >= end:
            raise InputError(f"the {name} are not all integers in 0..{end - 1}")
    if not np.issubdtype(tables.dtype, np.floating) or not np.isfinite(tables).all():
        raise InputError("the tables are not all finite numbers")
    return PairwiseDecoder(
        jnp.asarray(coarse_codes, jnp.int32),
        jnp.asarray(pairs, jnp.int32),
        jnp.asarray(tables, jnp.float32),
        num_steps,
    )


def decode(decoder: PairwiseDecoder, codes: Array) -> jax.Array:
    """Approximate vectors less their coarse centroids, in the space of the vectors.

    Args:
      decoder: of K_ivf centroids, M steps and K codewords.
      codes: [N, 1 + M] integers, the number of the centroid first, all M columns; N may be 0.
        Under `jit` their values are not checked.

    Returns:
      [N, D] float32, the sum over t of `tables[t, pool[a_t] * K + pool[b_t]]`.

    Raises:
      InputError: wrong shape or dtype, or codes outside of 0..K_ivf-1 and 0..K-1.
    """
    codes, columns = packing.checked(codes, MAX_STEPS), 1 + decoder.num_steps
    if codes.ndim != 2 or codes.shape[1] != columns:
        raise InputError(f"codes have shape {codes.shape}; this decoder takes [N, {columns}]")
    sizes = (len(decoder.coarse_codes), *(decoder.codebook_size,) * decoder.num_steps)
    check = functools.partial(packing.check_range, sizes)
    rows = block_rows(decoder.pairs.shape[1], 8 * decoder.tables.shape[-1])
    return map_rows(decode_rows, decoder, codes, rows=rows, check=check)


def decode_rows(decoder: PairwiseDecoder, codes: jax.Array) -> jax.Array:
    """`decode` of codes [R, 1 + M] that are right, inside of a program."""
    codes = codes.astype(jnp.int32)
    pool = jnp.concatenate([codes[:, 1:], decoder.coarse_codes[codes[:, 0]]], axis=1).T

    def add(x_hat: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        place, pair = inputs
        first, second = pool[pair]
        # Not a scan over the tables, which would copy each of them whole.
        return x_hat + decoder.tables[place, first * decoder.codebook_size + second], None

    zeros = jnp.zeros((codes.shape[0], decoder.tables.shape[-1]))
    places = jnp.arange(len(decoder.tables))
    x_hat, _ = jax.lax.scan(add, zeros, (places, decoder.pairs.T))
    return x_hat
