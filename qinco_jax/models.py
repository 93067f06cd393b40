"""Finished models on disk: `save` and `load`."""

import os

import jax
import jax.numpy as jnp

from qinco_jax import checkpoint, qinco
from qinco_jax.coding import Model
from qinco_jax.config import QincoConfig
from qinco_jax.product import Product
from qinco_jax.qinco import Qinco
from qinco_jax.rq import RQ
from qinco_jax.version import __version__


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Saves a model as the new folder `path`: an Orbax checkpoint with the config beside it.

    Raises:
      InputError: `path` exists.
      OSError: it cannot be written; then nothing is left behind.
    """
    metadata = {"version": __version__, "config": model.config.settings}
    checkpoint.write_tree(path, model, metadata)


def load(path: str | os.PathLike[str]) -> Model:
    """Loads a model that `save` wrote.

    Raises:
      InputError: no model there, or a file of it is missing or damaged.
    """
    config = QincoConfig(**checkpoint.read_metadata(path)["config"])
    return checkpoint.read_tree(path, abstract(config))


def abstract(config: QincoConfig) -> Model:
    """The model of a config with `jax.ShapeDtypeStruct` for arrays; `config.dim` must be set."""
    return jax.eval_shape(lambda: _blank(config))


def _blank(config: QincoConfig) -> Model:
    if config.num_parts == 1:
        return _blank_qinco(config)
    parts = tuple(_blank_qinco(config.part) for _ in range(config.num_parts))
    return Product(parts, jnp.eye(config.dim) if config.opq else None, config.normalize)


def _blank_qinco(config: QincoConfig) -> Qinco:
    dim, centroids = config.dim, config.num_centroids
    assert dim is not None
    books = jnp.zeros((config.num_steps, config.codebook_size, dim))
    rotation = jnp.eye(dim) if config.rotate else None
    rq = RQ(books, jnp.zeros(dim), jnp.ones(()), rotation, config.normalize, config.center)
    coarse = None if centroids is None else jnp.zeros((centroids, dim))
    return qinco.init(jax.random.key(0), config, rq, coarse)
