"""What training starts from: the residual quantizer as a model, behind centroids if any."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.config import QincoConfig
from qinco_jax.errors import InputError
from qinco_jax.quantizers import additive, refit, rq
from qinco_jax.quantizers.qinco import Qinco
from qinco_jax.quantizers.untrained import init
from qinco_jax.training.loop import Advance, unseen
from qinco_jax.training.seeds import INITIAL_WEIGHTS, seed_for
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows, Vectors, lazily

REFITS = 3  # a fourth hardly lowers the error of other rows
REFIT_BELOW = 40  # rows for each codeword; of more, trained models end no better for it


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


def refitted(model: Qinco, x: Rows, num_rows: int, seed: int) -> Qinco:
    """The untrained model of very few rows with codebooks that are fitted anew together.

    A model behind a coarse codebook, or with too many codewords to fit, stays as it is.

    Args:
      model: of K codewords a step.
      x: [N, D], moved towards their neighbours: as they are, they would be learned by heart.
      num_rows: how many there are before they are moved; with `REFIT_BELOW` K the model stays.
      seed: of the run.
    """
    config = model.config
    if config.num_centroids is not None or num_rows >= REFIT_BELOW * config.codebook_size:
        return model
    if config.num_steps * config.codebook_size > additive.MAX_ROWS:
        return model
    books = jnp.concatenate([model.codebook[None], model.steps.codebook])
    options = config.unit_norm, config.center
    start = rq.RQ(books, model.mean, model.scale, model.rotation, *options)
    books = refit.refitted(start, x, REFITS, seed).codebooks
    proposing = None if model.steps.preselect is None else books[1:]
    steps = dataclasses.replace(model.steps, codebook=books[1:], preselect=proposing)
    return dataclasses.replace(model, codebook=books[0], steps=steps)


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
