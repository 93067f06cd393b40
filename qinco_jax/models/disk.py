"""Finished models on disk: `save` and `load`."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from qinco_jax import kinds
from qinco_jax.config import QincoConfig
from qinco_jax.errors import InputError
from qinco_jax.models import orbax, safetensors
from qinco_jax.quantizers import precision
from qinco_jax.quantizers.coding import Model
from qinco_jax.quantizers.product import Product
from qinco_jax.quantizers.qinco import Qinco
from qinco_jax.quantizers.rq import RQ
from qinco_jax.quantizers.untrained import init
from qinco_jax.remote import paths
from qinco_jax.remote.copies import fetched, written
from qinco_jax.remote.paths import AnyPath
from qinco_jax.version import __version__

PYTORCH = ".pt", ".pth"
IDENTITY, FINISHED = kinds.RUN, "model"  # in the folder of a run: what it trains, and the result


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Saves a model: as the new file `path` if that ends in `.safetensors`, else as a new folder.

    The folder is an Orbax checkpoint with the config beside it. The file is for programs without
    JAX: `qinco_jax.models.safetensors` says how to read it. For a path such as `s3://bucket/model`
    it is written on this machine and then uploaded, of a folder the config last.

    Raises:
      InputError: `path` exists, or a server refuses it.
      OSError: it cannot be written; then nothing is left behind.
    """
    if not isinstance(model, Model):
        raise InputError(f"a {type(model).__name__} cannot be saved; pass a Qinco or a Product")
    write_tree = safetensors.write_tree if _is_file(path) else orbax.write_tree
    with written(path) as local:
        write_tree(local, model, {"version": __version__, "config": model.config.settings})


@precision.in_32_bits
def load(path: str | os.PathLike[str]) -> Model:
    """Loads a model that `save` wrote, a folder or a `.safetensors` file.

    Args:
      path: its place, or the folder of a finished run, whose model is loaded. Of a URL a copy in
        ~/.cache/qinco_jax-remote, or in QINCO_CACHE_DIR, is loaded, which is made anew when the
        model has changed.

    Raises:
      InputError: there is no model, or it is damaged or incomplete, or its training is unfinished,
        or a server fails.
    """
    path = fetched(place_of(path))
    if path.suffix in PYTORCH:
        raise InputError(
            f"{path} is a PyTorch file; load it with qinco_jax.load_pytorch, or convert it with "
            "`qinco convert`"
        )
    read_tree = safetensors.read_tree if _is_file(path) else orbax.read_tree
    return read_tree(path, lambda metadata: _abstract_of(metadata, path))


def place_of(path: str | os.PathLike[str]) -> AnyPath:
    """Where a model lies that is named by its own path or by the folder of its run.

    Raises:
      InputError: it is a run's that is not finished.
    """
    path = paths.place_of(path)
    place = path / FINISHED if (path / IDENTITY).exists() else path
    if place.name == FINISHED and place.with_name(IDENTITY).exists() and not place.exists():
        raise InputError(
            f"the training in {place.parent} is unfinished, so it has no model yet; run the same "
            "`qinco train` command again, which continues it"
        )
    return place


def _is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a model is one file, by the path's suffix, and not a folder."""
    return paths.place_of(path).suffix == safetensors.SUFFIX


def _abstract_of(metadata: Mapping[str, Any], path: str | os.PathLike[str]) -> Model:
    """The abstract model of a file's metadata, which may be anything."""
    try:
        config = QincoConfig.from_settings(metadata["config"])
        if config.dim is None:
            raise ValueError("dim is missing")
        return abstract(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} has an invalid config ({error}); take the model from a backup or train it "
            "again"
        ) from error


def abstract(config: QincoConfig) -> Model:
    """The model of a config with `jax.ShapeDtypeStruct` for arrays; `config.dim` must be set."""
    return jax.eval_shape(lambda: _blank(config))


def _blank(config: QincoConfig) -> Model:
    if config.num_parts == 1:
        return _blank_qinco(config)
    parts = tuple(_blank_qinco(config.part) for _ in range(config.num_parts))
    return Product(parts, jnp.eye(config.dim) if config.opq else None, config.unit_norm)


def _blank_qinco(config: QincoConfig) -> Qinco:
    dim, centroids = config.dim, config.num_centroids
    assert dim is not None
    books = jnp.zeros((config.num_steps, config.codebook_size, dim))
    rotation = jnp.eye(dim) if config.rotate else None
    rq = RQ(books, jnp.zeros(dim), jnp.ones(()), rotation, config.unit_norm, config.center)
    coarse = None if centroids is None else jnp.zeros((centroids, dim))
    return init(jax.random.key(0), config, rq, coarse)
