"""The rotation of optimized product quantization (Ge et al., CVPR 2013), trained by Faiss."""

import numpy as np

from qinco_jax import optional
from qinco_jax.quantizers.rq import sample_rows
from qinco_jax.vectors.stored import Vectors

MIN_ROWS, MAX_ROWS = 256, 65_536
"""Training vectors that Faiss needs, and uses at most."""


def opq_rotation(x: Vectors, num_parts: int, seed: int) -> np.ndarray:
    """The rotation R [D, D] float32 of optimized product quantization: x R is cut into sub-vectors.

    Args:
      x: [N, D] training vectors; at most 65,536 are used, as Faiss does.
      num_parts: of equal length.
      seed: of the sample.

    Raises:
      InputError: Faiss is not installed.
    """
    faiss = optional.faiss("rotations by OPQ")
    rows = sample_rows(x, MAX_ROWS, seed).astype(np.float32)
    matrix = faiss.OPQMatrix(rows.shape[1], num_parts)
    matrix.train(rows)
    return faiss.vector_to_array(matrix.A).reshape(rows.shape[1], rows.shape[1]).T.copy()
