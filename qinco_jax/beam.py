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

from qinco_jax.distances import smallest, squared_distances


@flax.struct.dataclass
class Beam:
    """The partial codes kept for one vector, best first.

    Attributes:
      codes: [B, M] int32, columns of steps not yet taken are 0.
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


def start(x: jax.Array, codebook: jax.Array, num_steps: int, beam_size: int) -> Beam:
    """The beam after step 1: the codewords [K, D] nearest to x [D], min(B, K) of them."""
    count = min(beam_size, codebook.shape[0])
    error, index = smallest(squared_distances(x, codebook), count)
    pad = (0, beam_size - count)
    index = jnp.pad(index, pad)
    codes = jnp.zeros((beam_size, num_steps), jnp.int32).at[:, 0].set(index)
    return Beam(codes, codebook[index], jnp.pad(error, pad, constant_values=jnp.inf))


def expand(beam: Beam, candidates: Candidates, step: jax.Array | int, beam_size: int) -> Beam:
    """Keeps the best B of the C candidates as the beam after step number `step` (from 0)."""
    absent = jnp.isinf(beam.error)[candidates.parent]
    error, best = smallest(jnp.where(absent, jnp.inf, candidates.error), beam_size)
    codes = beam.codes[candidates.parent[best]].at[:, step].set(candidates.index[best])
    return Beam(codes, candidates.x_hat(best), error)


def search(x: jax.Array, codebook: jax.Array, steps: Any, propose: Propose, beam_size: int) -> Beam:
    """Beam search for one vector (QINCo2, Sec. 3.2).

    Args:
      x: [D] float32.
      codebook: [K, D], the plain codebook of step 1.
      steps: pytree of arrays with a leading axis of M - 1, scanned over.
      propose: (one element of `steps`, x, the beam) -> at least B `Candidates`.
      beam_size: B.

    Returns:
      The final beam; its first entry is the encoding.
    """
    num_rest = jax.tree.leaves(steps)[0].shape[0]

    def body(beam: Beam, inputs: tuple[jax.Array, Any]) -> tuple[Beam, None]:
        number, step = inputs
        return expand(beam, propose(step, x, beam), number, beam_size), None

    first = start(x, codebook, num_rest + 1, beam_size)
    return lax.scan(body, first, (jnp.arange(1, num_rest + 1), steps))[0]
