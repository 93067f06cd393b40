"""Beam search over quantization steps: one scan, shared by RQ and QINCo.

Everything is written for a single vector x [D]; callers `vmap` it. A quantizer is the function
`propose` that scores candidates for the entries of a beam.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from qinco_jax.quantizers.distances import smallest, squared_distances


@flax.struct.dataclass
class Beam:
    """The partial codes kept for one vector, best first.

    Attributes:
      codes: [B, m] int32, columns of steps not yet taken are 0.
      x_hat: [B, D] float32, their reconstructions.
      error: [B] float32, squared distances to x; inf marks an entry that is not there (B > K).
    """

    codes: jax.Array
    x_hat: jax.Array
    error: jax.Array


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What a quantizer proposes: C extensions of the entries of a beam.

    Attributes:
      parent: [C] int32, the entry that each extends.
      index: [C] int32, the codeword that it takes.
      error: [C] float32, squared distance to x then.
      x_hat: maps chosen candidates [B] to their reconstructions [B, D].
    """

    parent: jax.Array
    index: jax.Array
    error: jax.Array
    x_hat: Callable[[jax.Array], jax.Array]


Propose = Callable[[Any, jax.Array, Beam], Candidates]


def root(x_hat: jax.Array, num_columns: int) -> Beam:
    """The beam of one entry before any step, at the reconstruction x_hat [D]."""
    codes = jnp.zeros((1, num_columns), jnp.int32)
    return Beam(codes, x_hat[None], jnp.zeros(1))


def start(x: jax.Array, codebook: jax.Array, num_steps: int, beam_size: int) -> Beam:
    """The beam after step 1: the codewords [K, D] nearest to x [D], min(B, K) of them."""
    index = jnp.arange(codebook.shape[0], dtype=jnp.int32)
    error = squared_distances(x, codebook)
    every = Candidates(jnp.zeros_like(index), index, error, lambda best: codebook[best])
    return expand(root(jnp.zeros_like(x), num_steps), every, 0, beam_size)


def expand(beam: Beam, candidates: Candidates, column: jax.Array | int, beam_size: int) -> Beam:
    """Keeps the best B of the C candidates, whose indices become a column of the codes.

    Where C < B the beam is filled up with entries that are not there.
    """
    absent = jnp.isinf(beam.error)[candidates.parent]
    errors = jnp.where(absent, jnp.inf, candidates.error)
    error, best = smallest(errors, min(beam_size, errors.shape[0]))
    codes = beam.codes[candidates.parent[best]].at[:, column].set(candidates.index[best])
    missing = (0, beam_size - error.shape[0])
    return Beam(
        jnp.pad(codes, (missing, (0, 0))),
        jnp.pad(candidates.x_hat(best), (missing, (0, 0))),
        jnp.pad(error, missing, constant_values=jnp.inf),
    )


def search(x: jax.Array, first: Beam, steps: Any, propose: Propose) -> Beam:
    """Beam search for one vector (QINCo2, Sec. 3.2).

    Args:
      x: [D] float32.
      first: the beam of B entries that the steps start from.
      steps: pytree of arrays with a leading axis, scanned over, one step for each of the last
        columns of the codes.
      propose: (one element of `steps`, x, the beam) -> at least B `Candidates`.

    Returns:
      The final beam; its first entry is the encoding.
    """
    beam_size, num_columns = first.codes.shape
    num_steps = jax.tree.leaves(steps)[0].shape[0]

    def body(beam: Beam, inputs: tuple[jax.Array, Any]) -> tuple[Beam, None]:
        column, step = inputs
        return expand(beam, propose(step, x, beam), column, beam_size), None

    columns = jnp.arange(num_columns - num_steps, num_columns)
    return lax.scan(body, first, (columns, steps))[0]
