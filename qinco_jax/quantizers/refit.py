"""Codebooks of a residual quantizer, fitted anew together: less error for the same codes.

Residual k-means fits each codebook to what the earlier ones leave over, and never returns to those.
Given the codes, all codebooks that minimize the error are one least-squares problem; new codes suit
the new codebooks, and so on (additive quantization; Faiss's `Train_refine_codebook`).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.quantizers import additive, rq
from qinco_jax.quantizers.rq import RQ
from qinco_jax.quantizers.transform import to_model_space
from qinco_jax.vectors.stored import Vectors

BEAM = 8  # B of the codes that codebooks are fitted to


def refitted(model: RQ, x: Vectors, num_rounds: int, seed: int) -> RQ:
    """The quantizer after rounds of encoding and of fitting all codebooks to the codes.

    Args:
      model: of M steps and K codewords each; M K is at most `additive.MAX_ROWS`.
      x: [N, D], any real dtype, of which 256 rows for each codeword are used.
      num_rounds: 2 or 3 take most of the gain.
      seed: of the sample.
    """
    num_steps, codebook_size, dim = model.codebooks.shape
    rows = rq.sample_rows(x, rq.ROWS_PER_CODEWORD * codebook_size, seed)
    target = np.asarray(to_model_space(jnp.asarray(rows, jnp.float32), model.transform))
    for _ in range(num_rounds):
        codes = np.asarray(rq.encode(model, rows, beam_size=BEAM))
        books = additive.fit([(codes, target)], num_steps, codebook_size, dim)
        model = dataclasses.replace(model, codebooks=jax.device_put(books))
    return model
