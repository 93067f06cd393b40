"""The training loop: devices, batches, validation, checkpoints, resuming."""

import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from qinco_jax.config import QincoConfig
from qinco_jax.errors import Diverged
from qinco_jax.interrupts import Interrupted, noticed
from qinco_jax.models import disk
from qinco_jax.models.orbax import Checkpoints
from qinco_jax.quantizers import coding
from qinco_jax.quantizers.qinco import Qinco
from qinco_jax.seeds import NEW_CODEWORDS, seed_for
from qinco_jax.training import processes
from qinco_jax.training import step as training
from qinco_jax.training.feed import Feed
from qinco_jax.training.recipe import Recipe, length
from qinco_jax.training.step import TrainState
from qinco_jax.vectors.stored import Rows

Log = Callable[[Mapping[str, float]], None]


class Advance(Protocol):
    """Shows progress: what is done, of how much (0 if unknown), and of which part of the work."""

    def __call__(self, done: float, total: float, doing: str = "") -> Any:
        """Called as often as there is something new."""


def unseen(done: float, total: float, doing: str = "") -> None:
    """An `Advance` that shows nothing."""


LOG_STEPS = 20
SAVE_SECONDS = 60.0
UNIMPROVED = (
    "no epoch improved on the start{where}, so the model is the one that training began with: "
    "train for more epochs, on more vectors, or with another learning_rate"
)


def fit(
    x_train: Rows,
    x_val: Rows,
    config: QincoConfig,
    recipe: Recipe,
    initial: Callable[[], Qinco],
    *,
    num_rows: int,
    seed: int,
    checkpoints: Checkpoints | None,
    log: Log | None,
) -> Qinco:
    """Trains the model of `initial`, or continues from the newest checkpoint.

    Resumes by: 1. newest state, 2. its step, 3. the batch of that step, 4. go on.

    Args:
      x_train: [N, D] checked training vectors, some times `num_rows`.
      x_val: [V, D] checked validation vectors.
      config: of the model that `initial` makes.
      recipe: how to train it.
      initial: makes the untrained model; called only where there is no checkpoint.
      num_rows: of an epoch.
      seed: of the data order and of new codewords.
      checkpoints: of the run, in the first process; `None` keeps none.
      log: as of `train`.

    Returns:
      The model with the lowest validation error; the last one where nothing is trained.

    Raises:
      Interrupted: Ctrl-C, after saving.
      Diverged: the loss became NaN or Inf.

    Warns:
      UserWarning: no epoch improved on the start.
    """
    batch_size, steps_per_epoch, total_steps = length(recipe, num_rows)
    if total_steps == 0:
        return initial()
    mesh = processes.mesh()
    by_rows = NamedSharding(mesh, PartitionSpec("data"))
    state = _restore(checkpoints, config, recipe)
    fresh = state is None
    if state is None:
        state = training.init_state(initial(), recipe)
    state = processes.everywhere(state, mesh)
    step, saved_at, previous = int(state.step), time.monotonic(), None
    steps, share = range(step, total_steps), processes.share()
    feed = Feed(x_train, seed, steps, batch_size, by_rows, share)
    report = _Report(log, feed, batch_size, steps_per_epoch, total_steps)

    def validate(model: Qinco) -> jax.Array:
        mse = validation_error(model, x_val, recipe)
        if not np.isfinite(mse):
            raise Diverged(_how_to_recover(checkpoints, step))
        report(step, val_mse=mse)
        # Placed like the rest of the state, or the next step is compiled anew.
        return processes.everywhere(np.float32(mse), mesh)

    kept = processes.told(lambda: checkpoints is not None)
    with noticed(kept) as interrupted, feed:
        if fresh:  # what is returned is never worse than where it started
            state = dataclasses.replace(state, best_mse=validate(state.model))
        exhausted = training.is_exhausted(state, recipe)
        while step < total_steps and not exhausted:
            state, loss = training.train_step(state, next(feed), recipe, total_steps, mesh)
            jax.block_until_ready(previous)  # if the loop ran far ahead of the devices, its waiting
            previous = loss  # for batches would not be theirs
            step += 1
            ends_epoch = step % steps_per_epoch == 0
            if ends_epoch or step % LOG_STEPS == 0:
                if not np.isfinite(loss):
                    raise Diverged(_how_to_recover(checkpoints, step))
                rate = float(training.rate(state, recipe, total_steps))
                report(step, loss=float(loss), rate=rate, waiting=report.waiting())
            if ends_epoch:
                key = jax.random.key(seed_for(seed, NEW_CODEWORDS, step))
                mse = validate(state.model)
                state = training.end_epoch(state, mse, key, recipe, len(x_train))
                exhausted = training.is_exhausted(state, recipe)  # elsewhere it would wait for it
            stop, waited = processes.stops(interrupted), time.monotonic() - saved_at
            due = SAVE_SECONDS / 4 if ends_epoch else SAVE_SECONDS
            if stop or step == total_steps or waited > due:
                _save(checkpoints, state, step)
                saved_at = time.monotonic()
            if stop:
                raise Interrupted(
                    f"stopped at step {step} of {total_steps} and saved; run the same command "
                    "again to resume"
                )
    if int(state.stale) * steps_per_epoch >= step and processes.is_first():
        where = "" if checkpoints is None else f" in {checkpoints.folder.parent}"  # of which part
        warnings.warn(UNIMPROVED.format(where=where), stacklevel=5)  # where `train` was called
    return jax.device_put(jax.device_get(state.best))


class _Report:
    """Logs where a training is."""

    def __init__(
        self, log: Log | None, feed: Feed, batch_size: int, steps_per_epoch: int, total_steps: int
    ) -> None:
        self._log, self._feed = log, feed
        self._batch_size, self._steps_per_epoch = batch_size, steps_per_epoch
        self._num_vectors = total_steps * batch_size
        self._at, self._waited = time.monotonic(), feed.waited

    def waiting(self) -> float:
        """The share of the time since the last report that was spent waiting for vectors."""
        return (self._feed.waited - self._waited) / (time.monotonic() - self._at)

    def __call__(self, step: int, **values: float) -> None:
        if self._log is not None:
            seen = {"vectors": step * self._batch_size, "num_vectors": self._num_vectors}
            self._log({"step": step, "epoch": step / self._steps_per_epoch, **seen, **values})
        self._at, self._waited = time.monotonic(), self._feed.waited


def _restore(
    checkpoints: Checkpoints | None, config: QincoConfig, recipe: Recipe
) -> TrainState | None:
    """The newest state; `None` if there is none, or in one process where nothing is kept."""
    step = processes.told(lambda: None if checkpoints is None else checkpoints.latest_step)
    if step is None:
        return None
    begin = functools.partial(training.init_state, recipe=recipe)
    abstract = jax.eval_shape(begin, disk.abstract(config))
    return processes.shared(
        lambda: cast(Checkpoints, checkpoints).restore_latest(abstract), abstract
    )


def validation_error(model: Qinco, x_val: Rows, recipe: Recipe) -> float:
    """Squared error summed over dimensions, averaged over the rows, with the training's search.

    Each process takes its share of the rows, on one device whatever the mesh, so that the choice of
    the best model does not depend on it.
    """
    model = jax.device_put(processes.here(model), jax.local_devices()[0])
    search = {**recipe.search, "compute_dtype": recipe.compute_dtype}
    part = x_val[processes.own_rows(len(x_val))]
    _, errors = coding.encode(model, part, **search, output="errors")
    return float(processes.gathered(np.asarray(errors), len(x_val)).mean(dtype=np.float64))


def _save(checkpoints: Checkpoints | None, state: TrainState, step: int) -> None:
    if checkpoints is None:
        return
    state = processes.here(state)  # for this process alone has checkpoints
    if not _is_finite(state.model):
        raise Diverged(_how_to_recover(checkpoints, step))
    checkpoints.save(step, state, float(state.best_mse))


@jax.jit
def _is_finite(model: Qinco) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(model)]).all()


def _how_to_recover(checkpoints: Checkpoints | None, step: int) -> str:
    kept = "nothing was kept"
    if checkpoints is not None and checkpoints.latest_step is not None:
        kept = f"the checkpoint of step {checkpoints.latest_step} is intact"
    return (
        f"the loss became NaN or Inf by step {step}; {kept}; start a new run with a lower "
        "learning_rate, or look for extreme values in the vectors"
    )
