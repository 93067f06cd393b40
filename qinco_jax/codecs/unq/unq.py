"""UNQ (Morozov and Babenko, ICCV 2019, arXiv 1908.03883), written from the paper.

An encoder network maps a vector to M spaces, in each of which the codeword with the greatest inner
product gives a code; a decoder network maps the chosen codewords back to a vector (Sec. 3).
"""

import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.codecs.codec import Codec
from qinco_jax.codecs.size import size
from qinco_jax.codecs.unq import lookup, network
from qinco_jax.codecs.unq.network import Network
from qinco_jax.errors import InputError
from qinco_jax.quantizers import packing
from qinco_jax.quantizers.batching import block_rows, is_traced, map_rows, of_one
from qinco_jax.quantizers.distances import matmul, smallest
from qinco_jax.quantizers.packing import code_dtype
from qinco_jax.quantizers.transform import Transform, from_model_space, reach, to_model_space
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Vectors

Array = jax.Array | np.ndarray

QUERY_BLOCK = 128


@flax.struct.dataclass
class UNQ:
    """A model of M codes of K values each; C is the dimension of the learned spaces.

    Attributes:
      mean: [D] float32, subtracted from every vector.
      scale: [] float32, divides it after that.
      encoder: network from D to M C dimensions.
      codebooks: [M, K, C].
      log_temperatures: [M], log tau_m.
      decoder: network from M C to D dimensions.
    """

    mean: jax.Array
    scale: jax.Array
    encoder: Network
    codebooks: jax.Array
    log_temperatures: jax.Array
    decoder: Network

    @property
    def transform(self) -> Transform:
        """From vectors to model space."""
        return Transform(self.mean, self.scale)


def encode(model: UNQ, x: Vectors) -> jax.Array:
    """Codes of vectors: in every space the codeword with the greatest inner product (Sec. 3).

    Args:
      model: of M codes of K values each.
      x: [N, D] or [D], any real dtype.

    Returns:
      [N, M] or [M], uint8 for K <= 256, else uint16.

    Raises:
      InputError: wrong shape or dtype; outside `jit` also NaN, Inf or numbers so large that
        float32 keeps too few of their digits (`transform.reach`).
    """
    x = checks.vectors(x, model.mean.shape[-1])
    if x.ndim == 1:
        return of_one(functools.partial(encode, model), x)
    num_steps, codebook_size, _ = model.codebooks.shape
    work = max(1, num_steps * codebook_size // 512)
    rows = block_rows(work, 4 * (num_steps * codebook_size + _width(model)))
    limit = checks.FLOAT32_MAX if is_traced(model) else reach(model.transform)
    check = functools.partial(checks.finite, limit=limit)
    return map_rows(_encode_rows, model, x, rows=rows, check=check)


def decode(model: UNQ, codes: Array) -> jax.Array:
    """Reconstructions of codes by the decoder network (Sec. 3).

    Args:
      model: of M codes of K values each.
      codes: [N, M] or [M] integers.

    Returns:
      [N, D] or [D] float32.

    Raises:
      InputError: wrong shape or dtype, or codes outside 0..K-1 (outside `jit`).
    """
    codes = _full_codes(model, codes)
    if codes.ndim == 1:
        return of_one(functools.partial(decode, model), codes)
    check = functools.partial(packing.check_range, model.codebooks.shape[1])
    rows = block_rows(1, 4 * _width(model))
    return map_rows(_decode_rows, model, codes, rows=rows, check=check)


def search(model: UNQ, codes: Array, queries: Array, k: int, shortlist: int = 500) -> np.ndarray:
    """The rows nearest to queries in two stages (Sec. 3).

    The first finds a shortlist by d2(q, i) = -sum_m <net(q)_m, c_{m, i_m}>, a sum of table entries;
    the second orders it by d1(q, i) = ||q - decode(i)||. Queries and codes are processed in blocks.

    Args:
      model: of M codes of K values each.
      codes: [N, M] integers, the codes of the database.
      queries: [Q, D], any real dtype.
      k: rows to find, 1 to N.
      shortlist: rows that are decoded for each query, at least `k`; N makes the search exhaustive.

    Returns:
      [Q, k] int64, numbers of rows of the database, nearest first.

    Raises:
      InputError: wrong shapes, dtypes or values; k or shortlist out of range.
    """
    codes = np.asarray(_full_codes(model, codes))
    queries = np.asarray(checks.vectors(queries, len(model.mean), "queries"))
    if codes.ndim != 2 or queries.ndim != 2 or not 1 <= k <= min(shortlist, len(codes)):
        raise InputError(
            f"got codes of shape {codes.shape}, queries of shape {queries.shape}, k {k} and "
            f"shortlist {shortlist}; expected [N, M], [Q, D] and 1 <= k <= N and shortlist"
        )
    shortlist, found = min(shortlist, len(codes)), []
    for begin in range(0, len(queries), QUERY_BLOCK):
        block = checks.finite(queries[begin : begin + QUERY_BLOCK], begin, "queries")
        padded = np.pad(np.float32(block), ((0, QUERY_BLOCK - len(block)), (0, 0)))
        listed = lookup.nearest(_tables(model, padded), codes, shortlist)
        used, position = np.unique(listed, return_inverse=True)
        x_hat = np.asarray(decode(model, codes[used]))[position.reshape(listed.shape)]
        best = np.asarray(_order(padded, x_hat, k))
        found.append(np.take_along_axis(listed, best, axis=1)[: len(block)])
    return np.concatenate(found) if found else np.zeros((0, k), np.int64)


def codec(model: UNQ) -> Codec:
    """The model as a codec of M log2(K) bits; its size is that of all its arrays."""
    num_steps, codebook_size, _ = model.codebooks.shape
    bits = num_steps * math.log2(codebook_size)
    functions = functools.partial(encode, model), functools.partial(decode, model)
    return Codec("UNQ", bits, *functions, size(model))


def _width(model: UNQ) -> int:
    """Numbers of a row that exist at the same time in a network, about."""
    return sum(model.decoder.first.shape) + model.decoder.last.shape[1]


def _full_codes(model: UNQ, codes: Array) -> Array:
    num_steps = len(model.codebooks)
    codes = packing.checked(codes, num_steps)
    if codes.shape[-1] != num_steps:
        raise InputError(
            f"codes have {codes.shape[-1]} columns; UNQ decodes all {num_steps} of its codes"
        )
    return codes


def _of_encoder(model: UNQ, x: jax.Array) -> jax.Array:
    """net(x) [N, M C] of vectors [N, D]."""
    return network.apply(model.encoder, to_model_space(x, model.transform), training=False)[0]


def products(model: UNQ, flat: jax.Array) -> jax.Array:
    """<net(x)_m, c_mk> [M, N, K] of the encoder's output [N, M C]."""
    num_steps, _, code_dim = model.codebooks.shape
    spaces = flat.reshape(-1, num_steps, code_dim).swapaxes(0, 1)
    return jax.vmap(matmul)(spaces, model.codebooks.swapaxes(1, 2))


def _encode_rows(model: UNQ, rows: jax.Array) -> jax.Array:
    index = jnp.argmax(products(model, _of_encoder(model, rows)), axis=-1)
    return index.T.astype(code_dtype(model.codebooks.shape[1]))


def _decode_rows(model: UNQ, codes: jax.Array) -> jax.Array:
    steps = jnp.arange(len(model.codebooks))
    codewords = model.codebooks[steps[None], codes.astype(jnp.int32)]
    x_hat, _ = network.apply(model.decoder, codewords.reshape(len(codes), -1), training=False)
    return from_model_space(x_hat, model.transform)


@jax.jit
def _tables(model: UNQ, queries: jax.Array) -> jax.Array:
    """-<net(q)_m, c_mk> [M, K, Q] of queries [Q, D]."""
    return -products(model, _of_encoder(model, queries)).swapaxes(1, 2)


@functools.partial(jax.jit, static_argnames="k")
def _order(queries: jax.Array, x_hat: jax.Array, k: int) -> jax.Array:
    """Positions [Q, k] of the reconstructions [Q, S, D] nearest to each query [Q, D]."""
    return smallest(jnp.sum(jnp.square(queries[:, None] - x_hat), axis=-1), k)[1]
