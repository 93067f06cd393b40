"""What a training will take on this machine, from a measurement of some seconds."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from qinco_jax.config import QincoConfig
from qinco_jax.quantizers import additive, refit, rq
from qinco_jax.quantizers.qinco import Qinco
from qinco_jax.quantizers.transform import approximate
from qinco_jax.training import mixing, processes
from qinco_jax.training import step as training
from qinco_jax.training.initial_model import as_rq, gains_by_refits, initial_model
from qinco_jax.training.loop import validation_error
from qinco_jax.training.recipe import Recipe, length
from qinco_jax.training.start import DECIDING_ROWS, variance
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows

MEASURED_ROWS = 8192  # of k-means, whose time a row is greater for many rows
VALIDATED_ROWS = 2048
MEASURED_BATCHES = 3
CHECKPOINTS = 3  # that a run keeps


class Costs(NamedTuple):
    """What the pieces of a training take here, those of all parts of a product together.

    Attributes:
      start: seconds of the search for neighbours, of the residual k-means and of fitting codebooks
        anew, where that will be done. Where held-back rows decide whether rows are moved, of
        k-means both ways and of that decision.
      compiling: seconds, of all programs once.
      batch: seconds of one.
      validation: seconds of one.
      model_bytes: of the finished model in memory.
      state_bytes: of a checkpoint.
    """

    start: float
    compiling: float
    batch: float
    validation: float
    model_bytes: int
    state_bytes: int


class Estimate(NamedTuple):
    """What a training takes at most; it ends earlier if it stops improving.

    Attributes:
      rows: training vectors.
      batches: of the whole training.
      seconds: of compiling, of the start, of all batches and of all validations.
      model_bytes: of the finished model in memory.
      run_bytes: of the checkpoints and models in a run's folder, at most.
    """

    rows: int
    batches: int
    seconds: float
    model_bytes: int
    run_bytes: int


def estimate(x_train: Rows, x_val: Rows, config: QincoConfig, recipe: Recipe) -> Estimate:
    """Measures the pieces of a training on a few rows; the arguments are those of `costs`.

    Training of coarse centroids and OPQ are not counted, and the model is not trained.
    """
    found, parts = costs(x_train, x_val, config, recipe), config.num_parts
    _, per_epoch, batches = length(recipe, len(x_train))
    seconds, run_bytes = found.start + found.compiling, 2 * found.model_bytes
    if batches:
        seconds += batches * found.batch + (1 + batches / per_epoch) * found.validation
        run_bytes += CHECKPOINTS * found.state_bytes
    return Estimate(len(x_train), parts * batches, seconds, found.model_bytes, run_bytes)


def costs(x_train: Rows, x_val: Rows, config: QincoConfig, recipe: Recipe) -> Costs:
    """Measures the pieces of a training on a few rows.

    Args:
      x_train: [N, D] and
      x_val: [V, D], as of `split`.
      config: of the model.
      recipe: as of `settled`.
    """
    config = config.for_dim(x_train.shape[1])
    parts, part = config.num_parts, config.part
    few = max(part.codebook_size, min(MEASURED_ROWS, len(x_train)))
    rows = _of_part(checks.finite(approximate(x_train[:few], config.unit_norm)), part)
    model, initial, compiling = _timed(lambda: _initial(rows, part))
    start, model_bytes = _kmeans_rows(recipe, part, len(x_train)) * initial / few, _bytes(model)
    if recipe.mix != 0:
        search, compiled = searching(rows, len(x_train))
        start, compiling = start + search, compiling + compiled
    batch = validation = 0.0
    state_bytes = 0
    if recipe.num_epochs != 0:
        few_val = _of_part(
            checks.finite(approximate(x_val[:VALIDATED_ROWS], config.unit_norm)), part
        )
        error, validation, compiled = _timed(lambda: validation_error(model, few_val, recipe))
        compiling += compiled
        own, taken = validation_error(model, rows[: len(few_val)], recipe), _most_rows(part)
        error = of_more_rows(own, error, min(taken, len(rows)), min(taken, len(x_train)))
        if gains_by_refits(part, error, variance(model, few_val)):
            fitting, compiled = _refitting(model, rows)
            start, compiling = start + fitting, compiling + compiled
        if recipe.mix is None:  # of each kind of k-means on held-back rows, of one on its own
            start += 3 * validation * min(DECIDING_ROWS, len(x_val)) / len(few_val)
        validation *= len(x_val) / len(few_val)
        state_bytes, batch, compiled = _batch(model, recipe, rows, len(x_train))
        compiling += compiled
    return Costs(
        parts * start, parts * compiling, parts * batch, parts * validation,
        parts * model_bytes, parts * state_bytes,
    )  # fmt: skip


def searching(rows: np.ndarray, num_rows: int) -> tuple[float, float]:
    """Seconds of the search for the neighbours of `num_rows`, by that of [R, D]; and compiling."""
    _, seconds, compiling = _timed(lambda: mixing.nearest_others(rows))
    return seconds * (num_rows / len(rows)) ** 2, compiling


def of_more_rows(own: float, held_back: float, num_rows: int, more_rows: int) -> float:
    """The error on held-back rows to expect of codebooks that are trained on more rows.

    What codebooks learn by heart lowers the error on their own rows as much as it raises that on
    others, and is in inverse proportion to their number: with more rows both tend to their mean.

    Args:
      own: error of codebooks on rows that they were trained on, and
      held_back: on others.
      num_rows: that they were trained on.
      more_rows: that they will be.
    """
    return (own + held_back) / 2 + (held_back - own) / 2 * num_rows / more_rows


def _most_rows(part: QincoConfig) -> int:
    return rq.ROWS_PER_CODEWORD * part.codebook_size


def _kmeans_rows(recipe: Recipe, part: QincoConfig, num_rows: int) -> int:
    """Rows that the residual k-means takes, of both kinds where it is not known which."""
    most = _most_rows(part)
    plain, moved = min(num_rows, most), most
    return plain + moved if recipe.mix is None else moved if recipe.mix else plain


def _refitting(model: Qinco, rows: np.ndarray) -> tuple[float, float]:
    """Seconds of fitting all codebooks together, by one round on [R, D]; and compiling."""
    plain, sizes = as_rq(model), (model.num_steps, model.codebook_size, model.dim)
    codes, encoding, first = _timed(
        lambda: np.asarray(rq.encode(plain, rows, beam_size=refit.BEAM))
    )
    _, solving, second = _timed(lambda: additive.fit([(codes, rows)], *sizes))
    more = rq.ROWS_PER_CODEWORD * model.codebook_size / len(rows)
    return (refit.NOISY_ROUNDS + refit.QUIET_ROUNDS) * (more * encoding + solving), first + second


def _of_part(rows: np.ndarray, part: QincoConfig) -> np.ndarray:
    """The rows of the first sub-vectors of a product, else all columns."""
    return np.ascontiguousarray(rows[:, : part.dim], np.float32)


def _initial(rows: np.ndarray, config: QincoConfig) -> Qinco:
    centroids = None
    if config.num_centroids is not None:
        centroids = np.resize(rows, (config.num_centroids, rows.shape[1]))
    return jax.block_until_ready(initial_model(rows, config, 0, centroids))


def _batch(
    model: Qinco, recipe: Recipe, rows: np.ndarray, num_rows: int
) -> tuple[int, float, float]:
    """Bytes of the state of a training, and the seconds of a batch and of compiling it."""
    batch_size, _, total = length(recipe, num_rows)
    mesh = processes.mesh()
    state = processes.everywhere(training.init_state(model, recipe), mesh)
    _, count = processes.share()
    batch = jax.make_array_from_process_local_data(
        NamedSharding(mesh, PartitionSpec("data")),
        np.resize(rows, (batch_size // count, rows.shape[1])),
    )
    size = _bytes(state)

    def step() -> None:
        nonlocal state
        state, loss = training.train_step(state, batch, recipe, total, mesh)
        jax.block_until_ready(loss)

    _, seconds, compiling = _timed(step, MEASURED_BATCHES)
    return size, seconds, compiling


def _timed(function: Callable[[], Any], count: int = 1) -> tuple[Any, float, float]:
    """What a later call returns, its seconds (the median), and those of compiling it."""
    seconds = []
    for _ in range(1 + count):
        begin = time.perf_counter()
        found = function()
        seconds.append(time.perf_counter() - begin)
    first, *later = seconds
    typical = float(np.median(later))
    return found, typical, max(0.0, first - typical)


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
