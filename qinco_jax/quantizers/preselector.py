"""Pre-selection for a model that was trained without it, or with less of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax import numbers
from qinco_jax.errors import InputError
from qinco_jax.quantizers import coding, network, precision, product, qinco
from qinco_jax.quantizers.coding import M
from qinco_jax.quantizers.product import Product
from qinco_jax.quantizers.qinco import Qinco
from qinco_jax.quantizers.rq import sample_rows
from qinco_jax.quantizers.transform import to_model_space
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Vectors, lazily

Array = jax.Array | np.ndarray

CONTEXTS = 64
ROWS = 64  # for each codeword


@precision.in_32_bits
def fit_preselector(model: M, x: Vectors, *, num_candidates: int | None = None) -> M:
    """The model with pre-selection codebooks S fitted to the codes that it finds without them.

    S_m[i] becomes the mean of the residuals x - x_hat_{m-1} that step m codes as i, which
    minimizes the pre-selection's part of the training loss (QINCo2, Sec. 3). A codeword's mean
    codeword f_m(C_m[i], .) over some contexts counts as one more residual, so that a codeword that
    no vector takes has a place, too.

    Args:
      model: of K codewords a step; trained with pre-selection or not. Of a `Product`, every part.
      x: [N, D], vectors like those that it will encode; they are encoded by exhaustive greedy
        search. `ROWS` times K of them, drawn at random, are used at most.
      num_candidates: A that the new model encodes with, less than K; `None` means 16, or K - 1
        where K is smaller. The beam stays.

    Returns:
      The model with S [M - 1, K, D].

    Raises:
      InputError: no vectors, invalid ones, or A out of range.
    """
    coding.require_model(model, "fit_preselector(model, x)")
    x = lazily(checks.vectors(x, model.dim))
    codebook_size = model.codebook_size
    if x.ndim != 2 or x.shape[0] == 0:
        raise InputError(f"x has shape {x.shape}; expected [N, D] with at least one vector")
    most = codebook_size - 1
    if num_candidates is None:
        num_candidates = min(16, most)
    num_candidates = numbers.integer(num_candidates, "num_candidates", 1, most)
    x = sample_rows(x, ROWS * codebook_size, seed=0)
    if isinstance(model, Product):
        subs = product.sub_vectors(jnp.asarray(np.asarray(x)), model)
        parts = [
            fit_preselector(part, sub, num_candidates=num_candidates)
            for part, sub in zip(model.parts, subs, strict=True)
        ]
        return dataclasses.replace(model, parts=tuple(parts))
    codes = coding.encode(model, x, num_candidates=codebook_size, beam_size=1)
    steps = dataclasses.replace(
        model.steps, preselect=_means(model, jnp.asarray(np.asarray(x)), codes)
    )
    config = dataclasses.replace(model.config, num_candidates=num_candidates)
    return dataclasses.replace(model, steps=steps, config=config)


@jax.jit
def _means(model: Qinco, x: jax.Array, codes: jax.Array) -> jax.Array:
    """S [M - 1, K, D] of vectors [N, D] and their codes [N, M]."""
    x_hat = qinco.reconstructions(model, codes)[:-1]
    residual = to_model_space(x, model.transform)[None] - x_hat
    index = codes[:, 1:].astype(jnp.int32).T
    contexts = x_hat[:, :: max(1, x.shape[0] // CONTEXTS)][:, :CONTEXTS]
    typical = jax.vmap(functools.partial(network.mean_codewords, model.config.form))(
        model.steps, contexts
    )

    def of_step(residual: jax.Array, index: jax.Array, typical: jax.Array) -> jax.Array:
        sums = typical.at[index].add(residual)
        counts = jnp.ones(len(typical)).at[index].add(1.0)
        return sums / counts[:, None]

    return jax.vmap(of_step)(residual, index, typical)
