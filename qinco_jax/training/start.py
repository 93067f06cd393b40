"""The start of a training: its rows, moved or not, coarse centroids, and the untrained model."""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from qinco_jax.config import QincoConfig
from qinco_jax.models import disk
from qinco_jax.quantizers.coarse import train_centroids
from qinco_jax.quantizers.qinco import Qinco
from qinco_jax.quantizers.transform import approximate
from qinco_jax.training import mixing, processes, run_folder
from qinco_jax.training.initial_model import (
    gains_by_refits,
    initial_model,
    refitted,
    start_copies,
)
from qinco_jax.training.loop import Advance, validation_error
from qinco_jax.training.recipe import MIX, Recipe, length
from qinco_jax.vectors.stored import Rows

DECIDING_ROWS = 10_000  # of the held-back rows, at most, and as many training rows
OVERFIT = 0.1  # the least share by which the error on held-back rows is greater
NO_WORSE = 0.02  # the share by which moved rows may raise it: networks gain more by them than RQ


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """What training starts from; each part is made once, when it is asked for.

    Attributes:
      x_train: [N, D] training vectors.
      x_val: [V, D] held-back vectors, which decide what is left open.
      config: of the model.
      recipe: of the training; its `mix` may be `None`.
      seed: of all that is random.
      folder: of the run, which keeps what is slow to find; `None` keeps nothing.
      advance: shows progress.
      given_centroids: [K_ivf, D] float32, or `None`.
    """

    x_train: Rows
    x_val: Rows
    config: QincoConfig
    recipe: Recipe
    seed: int
    folder: Path | None
    advance: Advance
    given_centroids: np.ndarray | None
    _untrained: dict[float, Qinco] = dataclasses.field(default_factory=dict, init=False)

    @functools.cached_property
    def mix(self) -> float:
        """The recipe's; else `MIX` if residual quantizers overfit, and are hardly worse by it."""
        if self.recipe.mix is not None:
            return self.recipe.mix
        known = processes.told(
            lambda: self.folder and run_folder.decided(self.folder, run_folder.Mixing)
        )
        decided = run_folder.Mixing(*known) if known else self._decided()
        return decided.mix

    def _decided(self) -> run_folder.Mixing:
        some = min(DECIDING_ROWS, len(self.x_val))
        x_val, plain = self.x_val[:some], self.untrained(0.0)
        own, held_back = (
            validation_error(plain, x, self.recipe) for x in (self.x_train[:some], x_val)
        )
        moved = None
        if held_back > (1 + OVERFIT) * own:
            moved = validation_error(self.untrained(MIX), x_val, self.recipe)
        mix = 0.0 if moved is None or moved > (1 + NO_WORSE) * held_back else MIX
        decided = run_folder.Mixing(mix, own, held_back, moved)
        if self.folder is not None:
            run_folder.keep(self.folder, decided)
        return decided

    def rows(self, mix: float) -> Rows:
        """The rows to train on: as they are, or many times over, each moved."""
        if not mix:
            return self.x_train
        _, per_epoch, total = length(self.recipe, len(self.x_train))
        copies = max(total // per_epoch, self._copies)
        x = approximate(self.x_train, self.config.unit_norm)
        return mixing.mixed(x, self._neighbours, mix, self.seed, copies)

    @property
    def _copies(self) -> int:
        return start_copies(self.config, len(self.x_train))

    @functools.cached_property
    def _neighbours(self) -> np.ndarray:
        x, num_rows = approximate(self.x_train, self.config.unit_norm), len(self.x_train)
        self.advance(0, 0, "nearest neighbours")
        find = functools.partial(mixing.nearest_others, x)
        return processes.shared_rows(
            functools.partial(run_folder.kept, self.folder, run_folder.NEIGHBOURS, find),
            (num_rows, min(mixing.MIX_NEIGHBOURS, num_rows - 1)), np.int32,
        )  # fmt: skip

    @functools.cached_property
    def _centroids(self) -> np.ndarray | None:
        num_centroids = self.config.num_centroids
        if num_centroids is None or self.given_centroids is not None:
            return self.given_centroids
        x = approximate(self.x_train, self.config.unit_norm)
        return run_folder.kept(self.folder, run_folder.CENTROIDS, functools.partial(
            train_centroids, x, num_centroids, seed=self.seed,
            advance=functools.partial(self.advance, doing="coarse k-means"),
        ))  # fmt: skip

    def _rows_of_start(self, mix: float) -> Rows:
        return self.rows(mix)[: len(self.x_train) * self._copies]

    def untrained(self, mix: float) -> Qinco:
        """The residual quantizer of rows that are moved so far."""
        if mix not in self._untrained:
            x, config, tell = self._rows_of_start(mix), self.config, self.advance
            if mix:
                tell = functools.partial(_of_moved, self.advance)
            self._untrained[mix] = processes.shared(
                lambda: initial_model(x, config, self.seed, self._centroids, tell),
                disk.abstract(config),
            )
        return self._untrained[mix]

    def model(self) -> Qinco:
        """The untrained model, its codebooks fitted together if held-back rows gain by it."""
        model, some = self.untrained(self.mix), self.x_val[:DECIDING_ROWS]
        if not len(some):
            return model
        error, spread = validation_error(model, some, self.recipe), variance(model, some)
        together = gains_by_refits(self.config, error, spread)
        if self.folder is not None:
            run_folder.keep(self.folder, run_folder.Fitting(together, error, spread))
        if not together:
            return model
        x = self._rows_of_start(self.mix)
        return processes.shared(
            lambda: refitted(model, x, self.seed, self.advance), disk.abstract(self.config)
        )


def _of_moved(advance: Advance, done: float, total: float, doing: str = "") -> None:
    """Names the part of the work by its vectors, since the same is done with others too."""
    advance(done, total, f"{doing} of moved vectors")


def variance(model: Qinco, x: Rows) -> float:
    """Squared distance of rows [N, D] to the model's mean, averaged; of its approximated rows."""
    away = approximate(x, model.config.unit_norm)[:] - np.asarray(model.mean)
    return float(np.square(away, dtype=np.float64).sum(axis=1).mean())
