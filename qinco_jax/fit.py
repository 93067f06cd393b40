"""The training loop: data, devices, checkpoints, resuming. One step of it is in `training.py`."""

import contextlib
import dataclasses
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from qinco_jax import checks, folders, models, qinco, rq, training
from qinco_jax.checkpoint import Checkpoints
from qinco_jax.config import QincoConfig
from qinco_jax.data.feed import Feed
from qinco_jax.data.stored import Rows, Vectors, lazily
from qinco_jax.errors import InputError
from qinco_jax.qinco import Qinco
from qinco_jax.training import Recipe, State
from qinco_jax.transform import approximated

Log = Callable[[Mapping[str, float]], None]

LOG_STEPS = 20
SAVE_SECONDS = 60.0
CHECKED_ROWS = 65536  # read at once where all rows are looked at
FINISHED, CHECKPOINTS = "model", "checkpoints"


class Interrupted(Exception):
    """Ctrl-C while training; the run is saved and the message says how to resume it."""


class Diverged(RuntimeError):
    """The loss became NaN or Inf; the message names the last good checkpoint."""


def train(
    x_train: Vectors,
    config: QincoConfig,
    recipe: Recipe = Recipe(),
    *,
    seed: int = 0,
    x_val: Vectors | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    log: Log | None = None,
    **changes: Any,
) -> Qinco:
    """Trains a model; the same arguments on the same machine give the same model, bit for bit.

    The vectors are read while it trains, converted to float32 there, and may be a memory map or a
    `Stored` of any size: of a set larger than `data.feed.POOL_BYTES`, blocks of neighbouring rows
    are read in a random order and shuffled within so many bytes. All local devices share each
    batch.

    Args:
      x_train: [N, D], any real dtype, N >= K.
      config: sizes of the model.
      recipe: how to train it.
      seed: of the initial model and of the data order.
      x_val: [V, D] validation vectors; `None` holds back the last rows of `x_train`.
      run_dir: folder of checkpoints and of the finished model. A run that was cut off resumes from
        it; a finished one is loaded, not trained again. `None` keeps nothing.
      log: called with records of numbers: `step`, `epoch`, `vectors` seen of `num_vectors`, and
        `loss`, learning `rate` and `waiting`, the share of the time since the last record that
        was spent waiting for vectors, while training, or `val_mse` at the end of an epoch.
      **changes: fields of the recipe to replace, such as `num_epochs=0` for the initial model,
        which equals the residual quantizer that it starts from.

    Returns:
      The model with the lowest validation error.

    Raises:
      InputError: unfit vectors, sizes or recipe, or a `run_dir` of another run.
      Interrupted: Ctrl-C, after saving.
      Diverged: the loss became NaN or Inf.
    """
    recipe = Recipe(**{**dataclasses.asdict(recipe), **changes})
    x_train, x_val = split(x_train, x_val, recipe)
    config = config.for_dim(x_train.shape[1])
    _check(x_train, x_val, config, recipe)
    if run_dir is None:
        return _fit(x_train, x_val, config, recipe, seed, None, log)

    folder = Path(run_dir)
    identity = _identity(x_train, config, recipe, seed)
    folders.claim(folder / "run.json", identity, (FINISHED, CHECKPOINTS))
    if (folder / FINISHED).exists():
        return models.load(folder / FINISHED)
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        model = _fit(x_train, x_val, config, recipe, seed, checkpoints, log)
    models.save(model, folder / FINISHED)
    return model


def _fit(
    x_train: Rows,
    x_val: Rows,
    config: QincoConfig,
    recipe: Recipe,
    seed: int,
    checkpoints: Checkpoints | None,
    log: Log | None,
) -> Qinco:
    """The loop. Resumes by: 1. newest state, 2. its step, 3. the batch of that step, 4. go on."""
    mesh = jax.make_mesh((jax.local_device_count(),), ("data",), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_rows = NamedSharding(mesh, PartitionSpec("data"))
    state = _restore(checkpoints, config, recipe)
    fresh = state is None
    if state is None:
        start = rq.train(
            x_train, config.num_steps, config.codebook_size, seed=seed, **config.transform
        )
        state = training.start(qinco.init(jax.random.key(seed), config, start), recipe)
    state = jax.device_put(state, everywhere)
    batch_size, steps_per_epoch, total_steps = training.length(recipe, len(x_train))
    step, saved_at, previous = int(state.step), time.monotonic(), None
    feed = Feed(x_train, seed, range(step, total_steps), batch_size, by_rows)
    reported_at, reported_wait = time.monotonic(), feed.waited

    def report(**values: float) -> None:
        nonlocal reported_at, reported_wait
        if log is not None:
            seen = {"vectors": step * batch_size, "num_vectors": total_steps * batch_size}
            log({"step": step, "epoch": step / steps_per_epoch, **seen, **values})
        reported_at, reported_wait = time.monotonic(), feed.waited

    def validate(model: Qinco) -> jax.Array:
        mse = _validate(model, x_val, recipe)
        if not np.isfinite(mse):
            raise Diverged(_how_to_recover(checkpoints, step))
        report(val_mse=mse)
        return jnp.float32(mse)

    with _interrupts(checkpoints is not None) as interrupted, feed:
        if fresh and total_steps:  # what is returned is never worse than where it started
            state = dataclasses.replace(state, best_mse=validate(state.model))
        while step < total_steps and not training.is_exhausted(state, recipe):
            state, loss = training.train_step(state, next(feed), recipe, total_steps, mesh)
            jax.block_until_ready(previous)  # if the loop ran far ahead of the devices, its waiting
            previous = loss  # for batches would not be theirs
            step += 1
            ends_epoch = step % steps_per_epoch == 0
            if ends_epoch or step % LOG_STEPS == 0:
                if not np.isfinite(loss):
                    raise Diverged(_how_to_recover(checkpoints, step))
                rate = float(training.rate(state, recipe, total_steps))
                waiting = (feed.waited - reported_wait) / (time.monotonic() - reported_at)
                report(loss=float(loss), rate=rate, waiting=waiting)
            if ends_epoch:
                key = jax.random.fold_in(jax.random.key(seed), step)
                state = training.end_epoch(state, validate(state.model), key, recipe)
            stop, waited = interrupted.is_set(), time.monotonic() - saved_at
            due = SAVE_SECONDS / 4 if ends_epoch else SAVE_SECONDS
            if stop or step == total_steps or waited > due:
                _save(checkpoints, state, step)
                saved_at = time.monotonic()
            if stop:
                raise Interrupted(
                    f"stopped at step {step} of {total_steps} and saved; the same command goes on "
                    "from there"
                )
    model = jax.device_get(state.best if total_steps else state.model)
    return jax.tree.map(jnp.asarray, model)


def split(x_train: Vectors, x_val: Vectors | None, recipe: Recipe) -> tuple[Rows, Rows]:
    """Training rows and validation rows: `x_val`, or the last rows of `x_train` held back.

    Returns:
      Views of what was passed, [N, D] and [V, D]; nothing is read.

    Raises:
      InputError: not vectors, or of different dimensions.
    """
    x_train = lazily(checks.vectors(x_train, what="x_train"))
    if x_train.ndim != 2:
        raise InputError(f"x_train has shape {x_train.shape}; expected [N, D]")
    if x_val is not None:
        x_val = lazily(checks.vectors(x_val, x_train.shape[1], "x_val"))
        if x_val.ndim != 2:
            raise InputError(f"x_val has shape {x_val.shape}; expected [V, D]")
        return x_train, x_val
    count = 0 if recipe.num_epochs == 0 else min(recipe.num_val, len(x_train) // 10)
    return x_train[: len(x_train) - count], x_train[len(x_train) - count :]


def _check(x_train: Rows, x_val: Rows, config: QincoConfig, recipe: Recipe) -> None:
    """Finds before training what would stop it later."""
    if len(x_train) < config.codebook_size:
        raise InputError(
            f"{len(x_train)} training vectors for {config.codebook_size} codewords; give at least "
            "as many vectors as codewords (a tenth is held back), or lower codebook_size"
        )
    if recipe.num_epochs != 0 and len(x_val) == 0:
        raise InputError("there are no validation vectors; give x_val or more training vectors")
    if config.num_candidates is None and recipe.train_candidates is not None:
        raise InputError("the recipe's train_candidates needs a config with num_candidates")
    if recipe.train_candidates is not None and recipe.train_candidates > config.codebook_size:
        raise InputError(
            f"the recipe's train_candidates must be at most {config.codebook_size}, got "
            f"{recipe.train_candidates}"
        )
    shares = recipe.num_updates * jax.local_device_count()
    batch_size, *_ = training.length(recipe, len(x_train))
    if recipe.batch_size % recipe.num_updates or batch_size == 0 or batch_size % shares:
        raise InputError(
            f"batches of {min(recipe.batch_size, len(x_train))} rows cannot be dealt to "
            f"{recipe.num_updates} updates on {jax.local_device_count()} devices; set batch_size "
            f"to a multiple of {shares}, at most the {len(x_train)} training vectors"
        )
    for what, x in (("the training vectors", x_train), ("the validation vectors", x_val)):
        for begin in range(0, len(x), CHECKED_ROWS):
            checks.finite(x[begin : begin + CHECKED_ROWS], begin, what)


def _restore(checkpoints: Checkpoints | None, config: QincoConfig, recipe: Recipe) -> State | None:
    if checkpoints is None:
        return None
    begin = functools.partial(training.start, recipe=recipe)
    return checkpoints.restore_latest(jax.eval_shape(begin, models.abstract(config)))


def _validate(model: Qinco, x_val: Rows, recipe: Recipe) -> float:
    """Squared error summed over dimensions, averaged over the rows, with the training's search.

    On one device, whatever the mesh, so that the choice of the best model does not depend on it.
    """
    model = qinco.network_dtype(model, jnp.dtype(recipe.compute_dtype))
    model = jax.device_put(model, jax.local_devices()[0])
    codes = np.asarray(qinco.encode(model, x_val, **recipe.search))
    errors = []
    for begin in range(0, len(x_val), CHECKED_ROWS):
        part = slice(begin, begin + CHECKED_ROWS)
        x = approximated(np.asarray(x_val[part]), model.normalize)
        error = x - np.asarray(qinco.decode(model, codes[part]))
        errors.append(np.square(error, dtype=np.float64).sum(axis=1))
    return float(np.concatenate(errors).mean())


def _save(checkpoints: Checkpoints | None, state: State, step: int) -> None:
    if checkpoints is None:
        return
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.model)):
        raise Diverged(_how_to_recover(checkpoints, step))
    checkpoints.save(step, state, float(state.best_mse))


def _how_to_recover(checkpoints: Checkpoints | None, step: int) -> str:
    kept = "nothing was kept"
    if checkpoints is not None and checkpoints.latest_step is not None:
        kept = f"the checkpoint of step {checkpoints.latest_step} is intact"
    return (
        f"the loss became NaN or Inf by step {step}; {kept}; start a new run with a lower "
        "learning_rate, or look for extreme values in the vectors"
    )


@contextlib.contextmanager
def _interrupts(enabled: bool) -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, where it can be caught; a second Ctrl-C stops at once."""
    event = threading.Event()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(*_: object) -> None:
        signal.signal(signal.SIGINT, previous)
        event.set()

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)


def _identity(x: Rows, config: QincoConfig, recipe: Recipe, seed: int) -> dict[str, Any]:
    """What makes a run this run and no other."""
    return {
        "seed": seed,
        "config": config.settings,
        "recipe": dataclasses.asdict(recipe),
        "data": folders.fingerprint(x),
    }
