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

from qinco_jax import optional
from qinco_jax.config import QincoConfig
from qinco_jax.errors import InputError
from qinco_jax.models import disk
from qinco_jax.models.orbax import Checkpoints
from qinco_jax.quantizers import coding, opq, qinco, rq
from qinco_jax.quantizers.coarse import train_centroids
from qinco_jax.quantizers.coding import Model
from qinco_jax.quantizers.product import Product
from qinco_jax.quantizers.qinco import Qinco
from qinco_jax.quantizers.transform import approximated
from qinco_jax.training import runs
from qinco_jax.training import step as training
from qinco_jax.training.feed import Feed
from qinco_jax.training.step import Recipe, State
from qinco_jax.vectors import checks, formats
from qinco_jax.vectors.stored import Rows, Vectors, derived, lazily

Log = Callable[[Mapping[str, float]], None]

LOG_STEPS = 20
SAVE_SECONDS = 60.0
CHECKED_ROWS = 65536  # read at once where all rows are looked at
FINISHED, CHECKPOINTS, ROTATION = "model", "checkpoints", "rotation.npy"
CENTROIDS = "centroids.npy"


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
    centroids: Vectors | None = None,
    **changes: Any,
) -> Model:
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
      centroids: [K_ivf, D], the frozen coarse codebook of an IVF-QINCo, in the space of the
        vectors, or of x / |x| if the config has `unit_norm`; `None` trains the config's
        `num_centroids`, if any (`train_centroids`).
      **changes: fields of the recipe to replace, such as `num_epochs=0` for the initial model,
        which equals the residual quantizer that it starts from.

    Returns:
      The model with the lowest validation error: a `Qinco`, or with `num_parts` a `Product`, whose
      parts are trained one after another.

    Raises:
      InputError: unfit vectors, sizes or recipe, or a `run_dir` of another run.
      Interrupted: Ctrl-C, after saving.
      Diverged: the loss became NaN or Inf.
    """
    recipe = Recipe(**{**dataclasses.asdict(recipe), **changes})
    x_train, x_val = split(x_train, x_val, recipe)
    config = config.for_dim(x_train.shape[1])
    if centroids is not None:
        config, centroids = _with_centroids(config, centroids)
    _check(x_train, x_val, config, recipe)
    folder = None if run_dir is None else Path(run_dir)
    if folder is not None:
        identity = _identity(x_train, config, recipe, seed, centroids)
        runs.claim(folder / "run.json", identity, (FINISHED, CHECKPOINTS, ROTATION, CENTROIDS))
        if (folder / FINISHED).exists():
            return disk.load(folder / FINISHED)
    if config.num_centroids is not None and centroids is None:
        centroids = _kept(folder, CENTROIDS, functools.partial(
            train_centroids, approximate(x_train, config.unit_norm), config.num_centroids, seed=seed
        ))  # fmt: skip
    if config.num_parts > 1:
        model: Model = _fit_parts(x_train, x_val, config, recipe, seed, folder, log)
    else:
        with Checkpoints(folder / CHECKPOINTS) if folder else contextlib.nullcontext() as kept:
            model = _fit(x_train, x_val, config, recipe, seed, kept, log, centroids)
    if folder is not None:
        disk.save(model, folder / FINISHED)
    return model


def _fit_parts(
    x_train: Rows,
    x_val: Rows,
    config: QincoConfig,
    recipe: Recipe,
    seed: int,
    folder: Path | None,
    log: Log | None,
) -> Product:
    """Trains the models of the sub-vectors one after another, each in a folder of its own."""
    rotation = None
    if config.opq:
        rotation = _kept(folder, ROTATION, functools.partial(
            opq.opq_rotation, approximate(x_train, config.unit_norm), config.num_parts, seed
        ))  # fmt: skip
    *_, num_steps = training.length(recipe, len(x_train))
    parts: list[Qinco] = []

    def log_part(record: Mapping[str, float]) -> None:
        if log is not None:
            before = {"step": len(parts) * num_steps, "vectors": len(parts) * record["num_vectors"]}
            whole = {"num_vectors": config.num_parts * record["num_vectors"]}
            log({**record, **{name: record[name] + n for name, n in before.items()}, **whole})

    for number in range(config.num_parts):
        cut = functools.partial(_sub_vectors, config, rotation, number)
        place = None if folder is None else folder / f"part-{number}"
        part = train(
            derived(x_train, cut), config.part, recipe,
            seed=seed, x_val=derived(x_val, cut), run_dir=place, log=log_part,
        )  # fmt: skip
        assert isinstance(part, Qinco)
        parts.append(part)
    matrix = None if rotation is None else jnp.asarray(rotation)
    return Product(tuple(parts), matrix, config.unit_norm)


def _kept(folder: Path | None, name: str, train: Callable[[], np.ndarray]) -> np.ndarray:
    """What is trained first [R, D] float32; a run keeps it, for all later depends on each digit."""
    if folder is not None and (folder / name).exists():
        return np.asarray(formats.read(folder / name))
    found = train()
    if folder is not None:
        with formats.create(folder / name, found.shape, np.float32) as out:
            out[:] = found
    return found


def approximate(x: Rows, unit_norm: bool) -> Rows:
    """The rows [N, D] that reconstructions of `x` approximate, read when asked for."""
    return derived(x, functools.partial(approximated, unit_norm=True)) if unit_norm else x


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


def _with_centroids(config: QincoConfig, centroids: Vectors) -> tuple[QincoConfig, np.ndarray]:
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


def _fit(
    x_train: Rows,
    x_val: Rows,
    config: QincoConfig,
    recipe: Recipe,
    seed: int,
    checkpoints: Checkpoints | None,
    log: Log | None,
    centroids: np.ndarray | None,
) -> Qinco:
    """The loop. Resumes by: 1. newest state, 2. its step, 3. the batch of that step, 4. go on."""
    mesh = jax.make_mesh((jax.local_device_count(),), ("data",), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_rows = NamedSharding(mesh, PartitionSpec("data"))
    state = _restore(checkpoints, config, recipe)
    fresh = state is None
    if state is None:
        state = training.start(_initial(x_train, config, seed, centroids), recipe)
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


def _initial(x: Rows, config: QincoConfig, seed: int, centroids: np.ndarray | None) -> Qinco:
    """The untrained model: residual k-means, behind the coarse codebook if there is one."""
    key, sizes = jax.random.key(seed), (config.num_steps, config.codebook_size)
    if config.num_centroids is None:
        return qinco.init(key, config, rq.train(x, *sizes, seed=seed, **config.transform))
    assert centroids is not None
    behind = rq.train_behind(centroids, x, *sizes, seed, **config.transform)
    return qinco.init(key, config, *behind)


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
    if config.num_centroids is not None and config.num_centroids > len(x_train):
        raise InputError(
            f"num_centroids = {config.num_centroids} exceeds the {len(x_train)} training vectors "
            "(a tenth is held back); lower it or give more vectors"
        )
    if config.opq:
        optional.faiss("rotations by OPQ")
        if len(x_train) < opq.MIN_ROWS:
            raise InputError(
                f"opq needs {opq.MIN_ROWS} training vectors, got {len(x_train)}; give more, or "
                "opq=False"
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
    return checkpoints.restore_latest(jax.eval_shape(begin, disk.abstract(config)))


def _validate(model: Qinco, x_val: Rows, recipe: Recipe) -> float:
    """Squared error summed over dimensions, averaged over the rows, with the training's search.

    On one device, whatever the mesh, so that the choice of the best model does not depend on it.
    """
    model = qinco.network_dtype(model, jnp.dtype(recipe.compute_dtype))
    model = jax.device_put(model, jax.local_devices()[0])
    codes = np.asarray(coding.encode(model, x_val, **recipe.search))
    errors = []
    for begin in range(0, len(x_val), CHECKED_ROWS):
        part = slice(begin, begin + CHECKED_ROWS)
        x = approximated(np.asarray(x_val[part]), model.config.unit_norm)
        error = x - np.asarray(coding.decode(model, codes[part]))
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


def _identity(
    x: Rows, config: QincoConfig, recipe: Recipe, seed: int, centroids: np.ndarray | None
) -> dict[str, Any]:
    """What makes a run this run and no other."""
    given = {} if centroids is None else {"centroids": runs.fingerprint(centroids)}
    return {
        "seed": seed,
        "config": config.settings,
        "recipe": dataclasses.asdict(recipe),
        "data": runs.fingerprint(x),
        **given,
    }
