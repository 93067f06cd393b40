"""Training of a model of one part: from its start, or from where an earlier process stopped."""

import contextlib
from pathlib import Path
from typing import cast

import numpy as np

from qinco_jax.config import QincoConfig
from qinco_jax.models import disk
from qinco_jax.models.orbax import Checkpoints
from qinco_jax.quantizers.coding import Model
from qinco_jax.quantizers.qinco import Qinco
from qinco_jax.training import processes, run_folder
from qinco_jax.training.loop import Advance, Log, fit
from qinco_jax.training.recipe import Recipe, with_mix
from qinco_jax.training.start import Start
from qinco_jax.vectors.stored import Rows


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
    start = Start(x_train, x_val, config, recipe, seed, folder, advance, centroids)
    if recipe.mix is None:
        recipe = with_mix(recipe, start.mix)

    def initial() -> Qinco:
        begun = None if folder is None else folder / run_folder.START
        if processes.told(lambda: begun is not None and begun.exists()):
            return processes.shared(
                lambda: cast(Qinco, disk.load(cast(Path, begun))), disk.abstract(config)
            )
        model = init if isinstance(init, Qinco) else start.model()
        if begun is not None:
            disk.save(model, begun)
        return model

    place = None if folder is None else folder / run_folder.CHECKPOINTS
    with Checkpoints(place) if place else contextlib.nullcontext() as checkpoints:
        return fit(
            start.rows(start.mix), x_val, config, recipe, initial,
            num_rows=len(x_train), seed=seed, checkpoints=checkpoints, log=log,
        )  # fmt: skip
