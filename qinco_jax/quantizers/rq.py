"""Residual quantization: train, beam encode, decode. QINCo's initializer and its baseline."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax import numbers
from qinco_jax.config import MAX_BEAM, MAX_CODEBOOK
from qinco_jax.errors import InputError
from qinco_jax.quantizers import beam, packing, precision
from qinco_jax.quantizers.batching import block_rows, is_traced, map_rows, of_one
from qinco_jax.quantizers.beam import Beam, Candidates
from qinco_jax.quantizers.distances import nearest, squared_distances
from qinco_jax.quantizers.kmeans import kmeans
from qinco_jax.quantizers.packing import code_dtype
from qinco_jax.quantizers.transform import (
    Transform,
    from_model_space,
    of_rows,
    reach,
    to_model_space,
)
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Vectors

Array = jax.Array | np.ndarray
ROWS_PER_CODEWORD = 256  # that k-means takes at most, unless it is told otherwise
Advance = Callable[[int, int], Any]
"""Shows progress: (done, total)."""


@flax.struct.dataclass
class RQ:
    """A residual quantizer; x is approximated by mean + scale * (sum_m codebooks[m, i_m]) R^T.

    Attributes:
      codebooks: [M, K, D] float32, in model space.
      mean: [D] float32.
      scale: [] float32.
      rotation: R [D, D] float32 (`Transform`); `None` is the identity.
      unit_norm: whether vectors are divided by their length first, static; then x / |x| is what is
        approximated.
      center: whether `mean` is the vectors', static; else it is 0.
    """

    codebooks: jax.Array
    mean: jax.Array
    scale: jax.Array
    rotation: jax.Array | None = None
    unit_norm: bool = flax.struct.field(pytree_node=False, default=False)
    center: bool = flax.struct.field(pytree_node=False, default=True)

    @property
    def transform(self) -> Transform:
        """From vectors to model space."""
        return Transform(self.mean, self.scale, self.rotation, self.unit_norm)


@precision.in_32_bits
def train(
    x: Vectors,
    num_steps: int = 8,
    codebook_size: int = 256,
    *,
    seed: int = 0,
    beam_size: int = 1,
    num_iters: int = 10,
    max_rows: int | None = None,
    unit_norm: bool = False,
    center: bool = True,
    rotate: bool = False,
    advance: Advance = lambda done, total: None,
) -> RQ:
    """Trains codebooks step by step by k-means on what the earlier steps leave over.

    Args:
      x: [N, D], any real dtype; a memory map or a `Stored` is sampled, not read whole. Where there
        are few, it overfits them less if they are moved towards their neighbours first
        (`training.mixing.at_least`); baselines' tables show it with and without.
      num_steps: M.
      codebook_size: K, at most N.
      seed: of the sample and the k-means.
      beam_size: B of the encoding between the steps; the residuals of a row's beam take turns in
        the k-means of the next step, so that the codebooks suit a beam search.
      num_iters: Lloyd iterations a step.
      max_rows: rows used at most; `None` means 256 for each codeword.
      unit_norm: divide vectors by their length; the quantizer approximates x / |x|.
      center: subtract the mean.
      rotate: rotate to the principal components, greatest variance first.
      advance: called with the number of steps done and M.

    Returns:
      The quantizer, with the transform that the sample asks for (`transform.of_rows`).

    Raises:
      InputError: a number out of range, fewer rows than codewords, or rows with NaN or Inf.
    """
    x = checks.vectors(x, what="the training vectors")
    if x.ndim != 2:
        raise InputError(f"the training vectors have shape {x.shape}; expected [N, D]")
    num_steps = numbers.integer(num_steps, "num_steps", 1)
    codebook_size = numbers.integer(codebook_size, "codebook_size", 1, MAX_CODEBOOK)
    beam_size = numbers.integer(beam_size, "beam_size", 1, MAX_BEAM)
    num_iters = numbers.integer(num_iters, "num_iters", 1)
    if max_rows is not None:
        max_rows = numbers.integer(max_rows, "max_rows", 1)
    seed = numbers.seed(seed)
    rows = _training_rows(x, codebook_size, max_rows, seed)
    found = of_rows(rows, unit_norm=unit_norm, center=center, rotate=rotate)
    target = _in_model_space(rows, found)
    books = codebooks(target, num_steps, codebook_size, seed, beam_size, num_iters, advance)
    return RQ(books, found.mean, found.scale, found.rotation, unit_norm, center)


def train_behind(
    centroids: np.ndarray,
    x: Vectors,
    num_steps: int,
    codebook_size: int,
    seed: int,
    advance: Advance = lambda done, total: None,
    **transform: bool,
) -> tuple[RQ, jax.Array]:
    """Trains codebooks on what the nearest of coarse centroids leave over (IVF).

    Args:
      centroids: [K_ivf, D] float32, in the space of the vectors.
      x: [N, D] training vectors, of which 256 for each codeword are used.
      num_steps: M.
      codebook_size: K, at most N.
      seed: of the sample and the k-means.
      advance: as of `train`.
      **transform: `unit_norm`, `center` and `rotate` as of `train`.

    Returns:
      The quantizer of the residuals, and the centroids in its model space.
    """
    rows = _training_rows(x, codebook_size, None, seed)
    found = of_rows(rows, **transform)
    coarse = _in_model_space(centroids, dataclasses.replace(found, unit_norm=False))
    target = map_rows(_left_over, coarse, _in_model_space(rows, found), rows=_block(1, coarse))
    books = codebooks(target, num_steps, codebook_size, seed, 1, 10, advance)
    options = transform["unit_norm"], transform["center"]
    return RQ(books, found.mean, found.scale, found.rotation, *options), coarse


@jax.jit
def _in_model_space(rows: jax.Array, transform: Transform) -> jax.Array:
    """`to_model_space` in one program."""
    return to_model_space(rows, transform)


def _block(work_per_row: int, codebook: jax.Array, beam_size: int = 1) -> int:
    """Rows per block where B residuals of each row are compared with K codewords."""
    return block_rows(work_per_row, 4 * beam_size * sum(codebook.shape))


def _left_over(centroids: jax.Array, rows: jax.Array) -> jax.Array:
    return rows - centroids[nearest(rows, centroids)[1]]


def _training_rows(x: Vectors, codebook_size: int, max_rows: int | None, seed: int) -> np.ndarray:
    rows = sample_rows(x, max_rows or ROWS_PER_CODEWORD * codebook_size, seed)
    rows = checks.finite(rows, what="the sampled training vectors")
    if len(rows) < codebook_size:
        raise InputError(
            f"{len(rows)} training vectors for {codebook_size} codewords; give at least as many "
            "vectors as codewords, or lower codebook_size"
        )
    return rows


def codebooks(
    target: jax.Array,
    num_steps: int,
    codebook_size: int,
    seed: int,
    beam_size: int,
    num_iters: int,
    advance: Advance,
) -> jax.Array:
    """Codebooks [M, K, D] of vectors in model space [N, D]; the arguments are those of `train`."""
    residual, books, key = target, [], jax.random.key(seed)
    advance(0, num_steps)
    for step in range(num_steps):
        books.append(_codebook(key, step, residual, codebook_size, num_iters))
        if beam_size == 1:  # one program for all steps
            residual = map_rows(_left_over, books[-1], residual, rows=_block(1, books[-1]))
        elif step + 1 < num_steps:
            so_far = RQ(jnp.stack(books), jnp.zeros_like(target[0]), jnp.float32(1))
            residual = map_rows(
                _residual_rows, so_far, target,
                rows=_block(beam_size, books[0], beam_size), options=(beam_size,),
            )  # fmt: skip
        jax.block_until_ready(residual)  # else it would be told before it is done
        advance(step + 1, num_steps)
    return jnp.stack(books)


@functools.partial(jax.jit, static_argnames=("codebook_size", "num_iters"))
def _codebook(
    key: jax.Array, step: int, residual: jax.Array, codebook_size: int, num_iters: int
) -> jax.Array:
    return kmeans(jax.random.fold_in(key, step), residual, codebook_size, num_iters)


def encode(model: RQ, x: Vectors, *, beam_size: int = 32) -> jax.Array:
    """Codes of vectors, by beam search.

    Args:
      model: of M steps and K codewords each.
      x: [N, D] or [D], any real dtype.
      beam_size: B; 1 is greedy.

    Returns:
      [N, M] or [M], uint8 for K <= 256, else uint16.

    Raises:
      InputError: wrong shape, dtype or beam size, K greater than 65,536; outside `jit` also NaN,
        Inf or numbers so large that float32 tells no codewords apart (`transform.reach`).
    """
    packing.check_size(model.codebooks.shape[1])
    x = checks.vectors(x, model.mean.shape[-1])
    beam_size = numbers.integer(beam_size, "beam_size", 1, MAX_BEAM)
    if x.ndim == 1:
        return of_one(functools.partial(encode, model, beam_size=beam_size), x)
    work = beam_size * max(1, model.codebooks.shape[1] // 256)
    return map_rows(
        _encode_rows, model, x,
        rows=_block(work, model.codebooks[0], beam_size),
        options=(beam_size,), check=functools.partial(checks.finite, limit=_limit(model)),
    )  # fmt: skip


def _limit(model: RQ) -> float:
    """The greatest magnitude of numbers that the quantizer can encode."""
    if is_traced(model):
        return checks.FLOAT32_MAX
    largest = np.abs(np.asarray(model.codebooks)).max()  # made by hand, it may be of any size
    return reach(model.transform, max(1.0, float(largest)))


def decode(model: RQ, codes: Array) -> jax.Array:
    """Reconstructions [N, D] or [D] float32 of codes [N, m] or [m], 1 <= m <= M.

    With `unit_norm` they approximate x / |x|: codes do not keep the lengths of vectors.

    Raises:
      InputError: wrong shape or dtype, or codes outside 0..K-1 (outside `jit`).
    """
    num_steps, codebook_size, dim = model.codebooks.shape
    codes = packing.checked(codes, num_steps)
    if codes.ndim == 1:
        return of_one(functools.partial(decode, model), codes)
    check = functools.partial(packing.check_range, codebook_size)
    rows = block_rows(1, 4 * num_steps * dim)
    return map_rows(_decode_rows, model, codes, rows=rows, check=check)


def prefix(model: RQ, num_steps: int) -> RQ:
    """The quantizer of the first `num_steps` steps, a lower rate.

    Raises:
      InputError: `num_steps` is not in 1..M.
    """
    num_steps = numbers.integer(num_steps, "num_steps", 1, len(model.codebooks))
    return dataclasses.replace(model, codebooks=model.codebooks[:num_steps])


def sample_rows(x: Vectors, max_rows: int, seed: int) -> np.ndarray:
    """At most `max_rows` rows of `x` [N, D] as numpy, drawn without replacement, in file order."""
    if x.shape[0] <= max_rows:
        return np.asarray(x)
    chosen = np.random.default_rng(seed).choice(x.shape[0], max_rows, replace=False)
    return np.asarray(x[np.sort(chosen)])


def propose(codebook: jax.Array, x: jax.Array, entries: Beam) -> Candidates:
    """All K codewords [K, D] for each entry of the beam of a vector x [D]."""
    error = squared_distances(x[None] - entries.x_hat, codebook)
    parent, index = jnp.divmod(jnp.arange(error.size, dtype=jnp.int32), codebook.shape[0])
    return Candidates(
        parent, index, error.reshape(-1),
        lambda best: entries.x_hat[parent[best]] + codebook[index[best]],
    )  # fmt: skip


def _search(model: RQ, rows: jax.Array, beam_size: int) -> Beam:
    first, rest = model.codebooks[0], model.codebooks[1:]

    def one(x: jax.Array) -> Beam:
        start = beam.start(x, first, len(model.codebooks), beam_size)
        return beam.search(x, start, rest, propose)

    return jax.vmap(one)(to_model_space(rows, model.transform))


def _encode_rows(model: RQ, rows: jax.Array, beam_size: int) -> jax.Array:
    return _search(model, rows, beam_size).codes[:, 0].astype(code_dtype(model.codebooks.shape[1]))


def _residual_rows(model: RQ, rows: jax.Array, beam_size: int) -> jax.Array:
    """What is left of each row by one of the entries of its beam, entries taken in turn."""
    found = _search(model, rows, beam_size)
    entry = jnp.arange(rows.shape[0]) % beam_size
    entry = jnp.where(jnp.isinf(found.error[jnp.arange(rows.shape[0]), entry]), 0, entry)
    return rows - jnp.take_along_axis(found.x_hat, entry[:, None, None], axis=1)[:, 0]


def _decode_rows(model: RQ, codes: jax.Array) -> jax.Array:
    steps = jnp.arange(codes.shape[-1])
    x_hat = jnp.sum(model.codebooks[steps[None], codes.astype(jnp.int32)], axis=-2)
    return from_model_space(x_hat, model.transform)
