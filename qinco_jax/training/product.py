"""Training of a product: the models of its sub-vectors, one after another."""

import functools
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from qinco_jax.config import QincoConfig
from qinco_jax.quantizers.product import Product
from qinco_jax.quantizers.qinco import Qinco
from qinco_jax.quantizers.transform import approximated
from qinco_jax.training.loop import Log
from qinco_jax.vectors.stored import Rows, derived


def train_parts(
    x_train: Rows,
    x_val: Rows,
    config: QincoConfig,
    rotation: np.ndarray | None,
    num_steps: int,
    log: Log | None,
    train_part: Callable[[int, Rows, Rows, Log], Qinco],
) -> Product:
    """Trains the models of the sub-vectors one after another.

    Args:
      x_train: [N, D] training vectors.
      x_val: [V, D] validation vectors.
      config: of the product.
      rotation: [D, D], of `opq`; `None` is the identity.
      num_steps: batches that a part is trained on.
      log: as of `train`; its counts continue from part to part.
      train_part: (number, its sub-vectors of both, its log) -> the model of a part.
    """
    parts: list[Qinco] = []

    def log_part(record: Mapping[str, float]) -> None:
        if log is not None:
            done, vectors = len(parts), record["num_vectors"]
            log({
                **record,
                "step": record["step"] + done * num_steps,
                "vectors": record["vectors"] + done * vectors,
                "num_vectors": config.num_parts * vectors,
            })  # fmt: skip

    for number in range(config.num_parts):
        cut = functools.partial(_sub_vectors, config, rotation, number)
        parts.append(train_part(number, derived(x_train, cut), derived(x_val, cut), log_part))
    matrix = None if rotation is None else jnp.asarray(rotation)
    return Product(tuple(parts), matrix, config.unit_norm)


def _sub_vectors(
    config: QincoConfig, rotation: np.ndarray | None, number: int, rows: np.ndarray
) -> np.ndarray:
    """Sub-vectors [N, D / P] of vectors [N, D], as `product.sub_vectors` cuts them."""
    width = rows.shape[1] // config.num_parts
    columns = slice(number * width, (number + 1) * width)
    rows = approximated(rows, config.unit_norm) if config.unit_norm else rows
    if rotation is None:
        return rows[:, columns]
    return rows.astype(np.float32) @ rotation[:, columns]
