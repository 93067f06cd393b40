"""Codebooks of a residual quantizer, fitted anew together: less error at the same rate.

Residual k-means fits each codebook to what the earlier ones leave over, and never returns to those.
Given the codes, all codebooks that minimize the error are one least-squares problem; new codes suit
the new codebooks, and so on. Noise that is added to the codebooks, and lowered from round to round,
leads out of poor local minima (SR-D of LSQ++, Martinez et al., ECCV 2018).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.quantizers import additive, rq
from qinco_jax.quantizers.rq import RQ
from qinco_jax.quantizers.transform import to_model_space
from qinco_jax.seeds import CODEBOOK_NOISE, seed_for
from qinco_jax.vectors.stored import Vectors

BEAM = 4  # B of the codes that codebooks are fitted to; 8 takes twice the time and gains nothing
NOISY_ROUNDS, QUIET_ROUNDS = 16, 3
NOISE = 0.4  # its deviation in the first round, as a share of a codebook's


def refitted(
    model: RQ, x: Vectors, seed: int, advance: rq.Advance = lambda done, total: None
) -> RQ:
    """The quantizer after rounds of encoding and of fitting all codebooks to the codes.

    Args:
      model: of M steps and K codewords each; M K is at most `additive.MAX_ROWS`.
      x: [N, D], any real dtype, of which 256 rows for each codeword are used.
      seed: of the sample and of the noise.
      advance: called with the number of rounds done and of all.
    """
    num_steps, codebook_size, dim = model.codebooks.shape
    rows = rq.sample_rows(x, rq.ROWS_PER_CODEWORD * codebook_size, seed)
    target = np.asarray(to_model_space(jnp.asarray(rows, jnp.float32), model.transform))
    random = np.random.default_rng(seed_for(seed, CODEBOOK_NOISE))
    total = NOISY_ROUNDS + QUIET_ROUNDS
    for number in range(1, total + 1):
        codes = np.asarray(rq.encode(model, rows, beam_size=BEAM))
        books = additive.fit([(codes, target)], num_steps, codebook_size, dim)
        if number < NOISY_ROUNDS:
            temperature = NOISE * (1 - number / NOISY_ROUNDS) ** 0.5
            deviation = temperature * books.std(axis=1, keepdims=True)
            books += deviation * random.standard_normal(books.shape, np.float32)
        model = dataclasses.replace(model, codebooks=jax.device_put(books))
        advance(number, total)
    return model
