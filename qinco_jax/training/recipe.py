"""How a model is trained: the settings, and the recipes of the presets."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from qinco_jax.config import MAX_BEAM, MAX_CODEBOOK, refuses_unknown
from qinco_jax.errors import InputError, unknown
from qinco_jax.numbers import integer, real, truth
from qinco_jax.quantizers import precision

SCHEDULES = ("cosine", "plateau")
ROWS_OF_EPOCH = 12_000  # at least, of the rows to see; a small set is seen in more epochs than fit
FEW_ROWS = 50_000
MIX = 0.7
DECAY, DECAY_OF_MIXED = 0.1, 0.5
MAX_MIXED = 200_000
MOST = 2**31 - 1
INTEGERS = {
    "num_epochs": (0, MOST),
    "default_rows": (1, 10**12),
    "epoch_rows": (1, 10**12),
    "batch_size": (1, MOST),
    "num_updates": (1, MOST),
    "patience": (1, MOST),
    "train_candidates": (1, MAX_CODEBOOK),
    "train_beam": (1, MAX_BEAM),
    "num_val": (1, 10**12),
}
REALS: Mapping[str, float | None] = {
    "learning_rate": None,
    "warmup": 1,
    "final_rate": 1,
    "weight_decay": None,
    "mix": 1,
    "clip": None,
}
"""From 0 to this; `None` is any finite number."""
OPTIONAL = (
    "num_epochs", "weight_decay", "mix", "clip", "train_candidates", "train_beam", "train_joint"
)  # fmt: skip


@refuses_unknown
@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
      num_epochs: 0 gives the untrained model; `None` trains until `default_rows` have been seen.
      default_rows: rows that are seen where `num_epochs` is `None`, at most one epoch for each
        12,000 of them; 1.2 million are minutes on two cores.
      epoch_rows: an epoch is a pass over the training rows, or over this many where there are more;
        each ends with a validation.
      batch_size: rows that are encoded at once, over all devices; lowered to the number of training
        rows and to a multiple of `num_updates` times the number of devices.
      num_updates: gradient steps on the codes of a batch, each on its share of the rows.
      learning_rate: peak rate of AdamW.
      schedule: "cosine" to `final_rate`, or "plateau": a tenth after `patience` epochs without a
        better validation error, stop after five times as many (QINCo, Sec. A.3).
      warmup: share of all steps in which the rate rises linearly from 0.
      final_rate: share of `learning_rate` that the cosine ends at.
      weight_decay: decoupled; 0 makes AdamW plain Adam. `None` is 0.5 with `mix`, else 0.1.
      mix: each time that a training row is seen, it is moved by a random share of the way, up to
        this, towards one of its 8 nearest neighbours among the training rows, so that few rows are
        not learned by heart; the residual quantizer that training starts from is trained on such
        rows too, and weight decay leaves codebooks alone. 0 leaves rows as they are. `None` is 0.7
        where there are at most 50,000, a residual quantizer of them has a tenth more error on the
        rows held back than on them, and one of moved rows has at most 2 % more; else 0.
      clip: gradients are clipped to +-clip, element by element; `None` leaves them.
      patience: epochs, for "plateau".
      train_candidates: A while training; `None` means the model's.
      train_beam: B while training; `None` means the model's.
      train_joint: joint pre-selection while training or not; `None` means the model's.
      compute_dtype: "float32" or "bfloat16", of the network's products, those of the gradient too;
        the rest is float32. `None` is float32 on CPUs, what multiplies faster on accelerators.
      num_val: rows held back for validation, at most a tenth of all.

    Raises:
      InputError: a setting of another kind or out of its range (`INTEGERS`, `REALS`).
    """

    num_epochs: int | None = None
    default_rows: int = 1_200_000
    epoch_rows: int = 500_000
    batch_size: int = 1024
    num_updates: int = 8
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    warmup: float = 0.05
    final_rate: float = 1e-3
    weight_decay: float | None = None
    mix: float | None = None
    clip: float | None = 0.1
    patience: int = 10
    train_candidates: int | None = None
    train_beam: int | None = None
    train_joint: bool | None = None
    compute_dtype: str | None = None
    num_val: int = 10_000

    def __post_init__(self) -> None:
        for name in (*INTEGERS, *REALS, "train_joint"):
            value, what = getattr(self, name), f"the recipe's {name}"
            if value is None and name in OPTIONAL:
                continue
            if name in INTEGERS:
                value = integer(value, what, *INTEGERS[name])
            elif name in REALS:
                value = real(value, what, 0, REALS[name])
            else:
                value = truth(value, what)
            object.__setattr__(self, name, value)
        if self.schedule not in SCHEDULES:
            raise InputError(unknown("schedule", str(self.schedule), SCHEDULES))
        precision.check(self.compute_dtype)

    @property
    def search(self) -> dict[str, Any]:
        """What `coding.encode` is called with while training."""
        return {
            "num_candidates": self.train_candidates,
            "beam_size": self.train_beam,
            "joint": self.train_joint,
        }


SMALL = Recipe(train_candidates=4, train_beam=2, train_joint=False)
RECIPES: Mapping[str, Recipe] = {
    "small": SMALL,
    "accelerator": dataclasses.replace(
        SMALL, batch_size=8192, learning_rate=6e-3, default_rows=4_800_000
    ),
    "qinco1": Recipe(
        num_epochs=1000,
        epoch_rows=10_000_000,
        batch_size=1024,
        num_updates=1,
        learning_rate=1e-3,
        schedule="plateau",
        warmup=0.0,
        weight_decay=0.0,
        mix=0.0,
        clip=None,
    ),
    **{
        name: Recipe(
            num_epochs=63,
            epoch_rows=10_000_000,
            batch_size=1024,
            num_updates=1,
            learning_rate=8e-4,
            warmup=3 / 63,
            weight_decay=0.1,
            mix=0.0,
            train_candidates=16,
            train_beam=32,
            train_joint=False,
        )
        for name in ("qinco2-S", "qinco2-M", "qinco2-L")
    },
}
"""Recipes by name: a preset's has its name.

"small" and "accelerator" are ours, for every model of form "qinco2"; the latter's updates of 1,024
rows fill a GPU, on which one of 128 takes as long. The others are the papers' (QINCo, Sec. A.3;
QINCo2).
"""


def of_preset(preset: str) -> Recipe:
    """The recipe of a preset on JAX's default platform: that of "small" depends on it."""
    on_accelerator = preset == "small" and jax.default_backend() != "cpu"
    return RECIPES["accelerator" if on_accelerator else preset]


def with_mix(recipe: Recipe, mix: float) -> Recipe:
    """The recipe with its `mix`, and with the weight decay that goes with that if it has none."""
    decay = recipe.weight_decay
    if decay is None:
        decay = DECAY_OF_MIXED if mix else DECAY
    return dataclasses.replace(recipe, mix=mix, weight_decay=decay)


def length(recipe: Recipe, num_rows: int) -> tuple[int, int, int]:
    """Rows of a batch, batches of an epoch and of the whole training, on `num_rows` rows.

    Each device, of all processes, gets the same number of rows for each update, so a batch is
    lowered to a multiple of both; 0 where there are fewer rows than that.

    Raises:
      InputError: more batches than a step's number can count.
    """
    shares = recipe.num_updates * jax.device_count()
    batch_size = min(recipe.batch_size, num_rows) // shares * shares
    rows = min(num_rows, recipe.epoch_rows)
    num_epochs = recipe.num_epochs
    if num_epochs is None:
        num_epochs = min(-(-recipe.default_rows // ROWS_OF_EPOCH), -(-recipe.default_rows // rows))
    steps_per_epoch = max(1, rows // max(1, batch_size))
    total = steps_per_epoch * num_epochs
    if total > MOST:
        raise InputError(
            f"{num_epochs:,} epochs are {total:,} batches, and at most {MOST:,} are possible; "
            "lower num_epochs, or raise batch_size"
        )
    return batch_size, steps_per_epoch, total
