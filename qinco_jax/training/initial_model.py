"""What training starts from: the residual quantizer as a model, behind centroids if any."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.config import QincoConfig
from qinco_jax.errors import InputError
from qinco_jax.quantizers import refit, rq
from qinco_jax.quantizers.qinco import Qinco
from qinco_jax.quantizers.untrained import init
from qinco_jax.seeds import INITIAL_WEIGHTS, seed_for
from qinco_jax.training.loop import Advance, unseen
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows, Vectors, lazily

MAX_REFITTED = 4096  # codewords of all steps, which each round solves equations of
LEFT_OVER = 0.22  # share of the variance; where less is, trained models end no better for refits


def initial_model(
    x: Rows,
    config: QincoConfig,
    seed: int,
    centroids: np.ndarray | None,
    advance: Advance = unseen,
) -> Qinco:
    """The untrained model: residual k-means, behind the coarse codebook if there is one."""
    key = jax.random.key(seed_for(seed, INITIAL_WEIGHTS))
    sizes = config.num_steps, config.codebook_size
    tell = functools.partial(advance, doing="residual k-means")
    if config.num_centroids is None:
        start = rq.train(x, *sizes, seed=seed, advance=tell, **config.transform)
        return init(key, config, start)
    assert centroids is not None
    behind = rq.train_behind(centroids, x, *sizes, seed, advance=tell, **config.transform)
    return init(key, config, *behind)


def gains_by_refits(config: QincoConfig, error: float, variance: float) -> bool:
    """Whether training ends lower if it starts from codebooks that are fitted anew together.

    They have less error, but steps that depend less on each other, and networks learn from that
    dependence. The error counts for more where the residual quantizer leaves much over
    (docs/training.md, "Few vectors").

    Args:
      config: of the model; one behind a coarse codebook, or of too many codewords, stays as it is.
      error: of the residual quantizer, on vectors that it was not trained on.
      variance: of those, around its mean.
    """
    size = config.num_steps * config.codebook_size
    fits = config.num_centroids is None and config.num_steps > 1 and size <= MAX_REFITTED
    return fits and error > LEFT_OVER * variance


def refitted(model: Qinco, x: Rows, seed: int, advance: Advance = unseen) -> Qinco:
    """The untrained model with codebooks that are fitted anew together, on x [N, D]."""
    tell = functools.partial(advance, doing="fitting codebooks together")
    books = refit.refitted(as_rq(model), x, seed, tell).codebooks
    proposing = None if model.steps.preselect is None else books[1:]
    steps = dataclasses.replace(model.steps, codebook=books[1:], preselect=proposing)
    return dataclasses.replace(model, codebook=books[0], steps=steps)


def as_rq(model: Qinco) -> rq.RQ:
    """The residual quantizer that an untrained model is."""
    books = jnp.concatenate([model.codebook[None], model.steps.codebook])
    options = model.config.unit_norm, model.config.center
    return rq.RQ(books, model.mean, model.scale, model.rotation, *options)


def start_copies(config: QincoConfig, num_rows: int) -> int:
    """How many times over rows that are mixed give the residual k-means all that it takes."""
    return -(-rq.ROWS_PER_CODEWORD * config.codebook_size // num_rows)


def with_centroids(config: QincoConfig, centroids: Vectors) -> tuple[QincoConfig, np.ndarray]:
    """The config with their number, and centroids checked to be [K_ivf, D]."""
    centroids = checks.vectors(centroids, config.dim, "the centroids")
    asked = config.num_centroids or centroids.shape[0]
    if centroids.ndim != 2 or centroids.shape[0] != asked:
        raise InputError(
            f"the centroids have shape {centroids.shape}; the config has num_centroids = {asked}, "
            "so leave that out or give as many"
        )
    rows = checks.finite(lazily(centroids), what="the centroids").astype(np.float32)
    if config.unit_norm and (np.linalg.norm(rows, axis=1) > 1.001).any():
        raise InputError(
            "the model divides vectors by their length, but there are centroids longer than 1; "
            "train them on unit vectors (qinco centroids --unit-norm)"
        )
    return dataclasses.replace(config, num_centroids=asked), rows
