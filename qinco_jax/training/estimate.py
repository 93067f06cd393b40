"""What a training will take on this machine, from a measurement of some seconds."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from qinco_jax.config import QincoConfig
from qinco_jax.quantizers import coding
from qinco_jax.quantizers.qinco import Qinco
from qinco_jax.quantizers.transform import approximate
from qinco_jax.training import step as training
from qinco_jax.training.initial_model import initial_model
from qinco_jax.training.recipe import Recipe, length
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows

MEASURED_ROWS = 2048
CHECKPOINTS = 3  # that a run keeps


class Estimate(NamedTuple):
    """What a training takes at most; it ends earlier if it stops improving.

    Attributes:
      rows: training vectors.
      batches: of the whole training.
      seconds: of the residual k-means, of all batches and of all validations, without compiling.
      model_bytes: of the finished model in memory.
      run_bytes: of the checkpoints and models in a run's folder, at most.
    """

    rows: int
    batches: int
    seconds: float
    model_bytes: int
    run_bytes: int


def estimate(x_train: Rows, x_val: Rows, config: QincoConfig, recipe: Recipe) -> Estimate:
    """Measures the parts of a training on a few rows; `x_train` and `x_val` as of `split`.

    Training of coarse centroids is not counted, and the model is not trained.
    """
    config = config.for_dim(x_train.shape[1])
    parts, part = config.num_parts, config.part
    few = max(part.codebook_size, min(MEASURED_ROWS, len(x_train)))
    rows = _of_part(checks.finite(approximate(x_train[:few], config.unit_norm)), part)
    model, initial = _timed(lambda: _initial(rows, part))
    batch_size, per_epoch, batches = length(recipe, len(x_train))
    start, model_bytes = initial * len(x_train) / few, parts * _bytes(model)
    run_bytes, seconds = 2 * model_bytes, parts * start
    if batches:
        few_val = _of_part(checks.finite(approximate(x_val[:few], config.unit_norm)), part)
        search = {**recipe.search, "compute_dtype": recipe.compute_dtype}
        _, validation = _timed(lambda: np.asarray(coding.encode(model, few_val, **search)))
        state_bytes, batch = _one_batch(model, recipe, batches, rows, batch_size)
        validation *= len(x_val) / max(1, len(few_val)) * (1 + batches / per_epoch)
        seconds += parts * (batches * batch + validation)
        run_bytes += CHECKPOINTS * parts * state_bytes
    return Estimate(len(x_train), parts * batches, seconds, model_bytes, run_bytes)


def _of_part(rows: np.ndarray, part: QincoConfig) -> np.ndarray:
    """The rows of the first sub-vectors of a product, else all columns."""
    return np.ascontiguousarray(rows[:, : part.dim], np.float32)


def _initial(rows: np.ndarray, config: QincoConfig) -> Qinco:
    centroids = None
    if config.num_centroids is not None:
        centroids = np.resize(rows, (config.num_centroids, rows.shape[1]))
    return jax.block_until_ready(initial_model(rows, config, 0, centroids))


def _one_batch(
    model: Qinco, recipe: Recipe, total: int, rows: np.ndarray, batch_size: int
) -> tuple[int, float]:
    """Bytes of the state of a training, and the seconds that a batch takes. Ends the model."""
    mesh = jax.make_mesh((jax.local_device_count(),), ("data",), axis_types=(AxisType.Auto,))
    state = jax.device_put(training.init_state(model, recipe), NamedSharding(mesh, PartitionSpec()))
    batch = jax.device_put(
        np.resize(rows, (batch_size, rows.shape[1])), NamedSharding(mesh, PartitionSpec("data"))
    )

    size = _bytes(state)

    def step() -> None:
        nonlocal state
        state, loss = training.train_step(state, batch, recipe, total, mesh)
        jax.block_until_ready(loss)

    _, seconds = _timed(step)
    return size, seconds


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What a second call returns, and its seconds; the first one compiles."""
    function()
    begin = time.perf_counter()
    found = function()
    return found, time.perf_counter() - begin


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
