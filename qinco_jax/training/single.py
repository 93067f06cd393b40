"""Training of a model of one part: whether its rows are moved, its start, and the loop."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np

from qinco_jax.config import QincoConfig
from qinco_jax.models import disk
from qinco_jax.models.orbax import Checkpoints
from qinco_jax.quantizers.coarse import train_centroids
from qinco_jax.quantizers.coding import Model
from qinco_jax.quantizers.qinco import Qinco
from qinco_jax.quantizers.transform import approximate
from qinco_jax.training import mixing, processes, run_folder
from qinco_jax.training.initial_model import (
    gains_by_refits,
    initial_model,
    refitted,
    start_copies,
)
from qinco_jax.training.loop import Advance, Log, fit, validation_error
from qinco_jax.training.recipe import MIX, Recipe, length, with_mix
from qinco_jax.vectors.stored import Rows

DECIDING_ROWS = 10_000  # of the held-back rows, at most, and as many training rows
OVERFIT = 0.1  # the least share by which the error on held-back rows is greater
NO_WORSE = 0.02  # the share by which moved rows may raise it: networks gain more by them than RQ


def train_single(
    x_train: Rows,
    x_val: Rows,
    config: QincoConfig,
    recipe: Recipe,
    seed: int,
    folder: Path | None,
    log: Log | None,
    advance: Advance,
    centroids: np.ndarray | None,
    init: Model | None,
) -> Qinco:
    """Trains a model of one part; the arguments are those of `train`, checked.

    The recipe's `mix` may be `None` where there are `x_val`, which then decide.
    """
    num_rows = len(x_train)
    copies = start_copies(config, num_rows)

    @functools.cache
    def rows(mix: float) -> Rows:
        if not mix:
            return x_train
        x = approximate(x_train, config.unit_norm)
        advance(0, 0, "nearest neighbours")
        find = functools.partial(mixing.nearest_others, x)
        neighbours = processes.shared_rows(
            functools.partial(run_folder.kept, folder, run_folder.NEIGHBOURS, find),
            (num_rows, min(mixing.MIX_NEIGHBOURS, num_rows - 1)), np.int32,
        )  # fmt: skip
        _, per_epoch, total = length(recipe, num_rows)
        return mixing.mixed(x, neighbours, mix, seed, max(total // per_epoch, copies))

    @functools.cache
    def coarse() -> np.ndarray | None:
        if config.num_centroids is None or centroids is not None:
            return centroids
        x = approximate(x_train, config.unit_norm)
        return run_folder.kept(folder, run_folder.CENTROIDS, functools.partial(
            train_centroids, x, config.num_centroids, seed=seed,
            advance=functools.partial(advance, doing="coarse k-means"),
        ))  # fmt: skip

    @functools.cache
    def untrained(mix: float) -> Qinco:
        x, tell = rows(mix)[: num_rows * copies], advance
        if mix:
            tell = functools.partial(_of_moved, advance)
        return processes.shared(
            lambda: initial_model(x, config, seed, coarse(), tell), disk.abstract(config)
        )

    def fitted(model: Qinco) -> Qinco:
        some = x_val[:DECIDING_ROWS]
        if not len(some):
            return model
        error, spread = validation_error(model, some, recipe), variance(model, some)
        together = gains_by_refits(config, error, spread)
        if folder is not None and processes.is_first():
            run_folder.keep(folder, run_folder.Fitting(together, error, spread))
        if not together:
            return model
        x = rows(mix)[: num_rows * copies]
        return processes.shared(lambda: refitted(model, x, seed, advance), disk.abstract(config))

    def initial() -> Qinco:
        begun = None if folder is None else folder / run_folder.START
        if processes.told(lambda: begun is not None and begun.exists()):
            return processes.shared(
                lambda: cast(Qinco, disk.load(cast(Path, begun))), disk.abstract(config)
            )
        model = init if isinstance(init, Qinco) else fitted(untrained(mix))
        if begun is not None:
            disk.save(model, begun)
        return model

    mix = recipe.mix
    if mix is None:
        some = min(DECIDING_ROWS, len(x_val))
        mix = _chosen(folder, untrained, x_train[:some], x_val[:some], recipe)
        recipe = with_mix(recipe, mix)
    place = None if folder is None else folder / run_folder.CHECKPOINTS
    with Checkpoints(place) if place else contextlib.nullcontext() as checkpoints:
        return fit(
            rows(mix), x_val, config, recipe, initial,
            num_rows=num_rows, seed=seed, checkpoints=checkpoints, log=log,
        )  # fmt: skip


def _of_moved(advance: Advance, done: float, total: float, doing: str = "") -> None:
    """Names the part of the work by its vectors, since the same is done with others too."""
    advance(done, total, f"{doing} of moved vectors")


def variance(model: Qinco, x: Rows) -> float:
    """Squared distance of rows [N, D] to the model's mean, averaged; of its approximated rows."""
    away = approximate(x, model.config.unit_norm)[:] - np.asarray(model.mean)
    return float(np.square(away, dtype=np.float64).sum(axis=1).mean())


def _chosen(
    folder: Path | None,
    untrained: Callable[[float], Qinco],
    x_train: Rows,
    x_val: Rows,
    recipe: Recipe,
) -> float:
    """`MIX` if residual quantizers overfit, and are hardly worse by it on `x_val`, else 0; kept."""
    known = processes.told(
        lambda: None if folder is None else run_folder.decided(folder, run_folder.Mixing)
    )
    decided = None if known is None else run_folder.Mixing(*known)
    if decided is None:
        plain = untrained(0.0)
        own, held_back = (validation_error(plain, x, recipe) for x in (x_train, x_val))
        moved = None
        if held_back > (1 + OVERFIT) * own:
            moved = validation_error(untrained(MIX), x_val, recipe)
        mix = 0.0 if moved is None or moved > (1 + NO_WORSE) * held_back else MIX
        decided = run_folder.Mixing(mix, own, held_back, moved)
        if folder is not None:
            run_folder.keep(folder, decided)
    return decided.mix
