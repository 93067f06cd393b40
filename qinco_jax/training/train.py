"""`train`: checks what it is given, claims the run folder, and trains a model or its parts."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from qinco_jax import numbers, optional
from qinco_jax.config import PRESETS, QincoConfig, named
from qinco_jax.errors import InputError
from qinco_jax.files import locked, path_of
from qinco_jax.models import disk
from qinco_jax.quantizers import opq, precision
from qinco_jax.quantizers.coding import Model
from qinco_jax.quantizers.product import Product
from qinco_jax.quantizers.qinco import Qinco
from qinco_jax.quantizers.transform import approximate
from qinco_jax.seeds import PART, seed_for
from qinco_jax.training import endings, processes, run_folder
from qinco_jax.training.initial_model import with_centroids
from qinco_jax.training.loop import Advance, Log, unseen
from qinco_jax.training.product import train_parts
from qinco_jax.training.recipe import (
    FEW_ROWS,
    MAX_MIXED,
    RECIPES,
    Recipe,
    length,
    of_preset,
    with_mix,
)
from qinco_jax.training.single import train_single
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows, Vectors, lazily
from qinco_jax.version import __version__

CHECKED_ROWS = 65536  # read at once where all rows are looked at


class Asked(NamedTuple):
    """What a training was asked for, checked, and what makes it this one."""

    x_train: Rows
    x_val: Rows
    config: QincoConfig
    recipe: Recipe
    centroids: np.ndarray | None
    identity: dict[str, Any]


@precision.in_32_bits
def train(
    x_train: Vectors,
    config: QincoConfig | str | None = None,
    recipe: Recipe | str | None = None,
    *,
    seed: int = 0,
    x_val: Vectors | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    log: Log | None = None,
    advance: Advance = unseen,
    centroids: Vectors | None = None,
    init: Model | None = None,
    **changes: Any,
) -> Model:
    """Trains a model; the same arguments on the same CPU give the same model, bit for bit.

    On GPUs the gradients of codebooks are scatter-adds, whose order is not fixed, and kernels are
    chosen by timing them: the last bits differ from run to run, unless XLA is told otherwise
    (`XLA_FLAGS=--xla_gpu_deterministic_ops=true`, which is slower).

    The vectors are read while it trains, converted to float32 there, and may be a memory map or a
    `Stored` of any size: of a set larger than `training.feed.POOL_BYTES`, blocks of neighbouring
    rows are read in a random order and shuffled within so many bytes. All local devices share each
    batch.

    In a program of several processes (`jax.distributed.initialize`) all of them call it alike, with
    the same vectors, and their devices share each batch. Each reads its part of that; the first one
    alone uses `run_dir`, `log` and `advance`, and all return the model.

    Args:
      x_train: [N, D], any real dtype, N >= K.
      config: sizes of the model, or the name of a preset; `None` takes the sizes of `init`.
      recipe: how to train it, or a name in `RECIPES`; `None` takes that of a preset that is given
        by name (of "small" on a GPU or TPU "accelerator"), else `Recipe()`.
      seed: 0 to 2^31 - 1, of the initial model and of the data order.
      x_val: [V, D] validation vectors; `None` holds back the last rows of `x_train`.
      run_dir: folder of checkpoints and of the finished model. A run that was cut off resumes from
        it; a finished one is loaded, not trained again. `None` keeps nothing.
      log: called with records of numbers: `step`, `epoch`, `vectors` seen of `num_vectors`, and
        `loss`, learning `rate` and `waiting`, the share of the time since the last record that
        was spent waiting for vectors, while training, or `val_mse` at the end of an epoch.
      advance: called with (done, total, what) of the k-means that comes before, and with a total
        of 0 for what cannot tell how far it is.
      centroids: [K_ivf, D], the frozen coarse codebook of an IVF-QINCo, in the space of the
        vectors, or of x / |x| if the config has `unit_norm`; `None` trains the config's
        `num_centroids`, if any (`train_centroids`).
      init: a model to continue from, trained here or imported; its mean, scale, rotation and
        centroids stay. `None` starts from a residual quantizer.
      **changes: fields of the recipe to replace, such as `num_epochs=0` for the initial model,
        which equals the residual quantizer that it starts from. Fields of the config are changed
        by `dataclasses.replace(config, num_steps=16)`.

    Returns:
      The model with the lowest validation error: a `Qinco`, or with `num_parts` a `Product`, whose
      parts are trained one after another.

    Raises:
      InputError: invalid vectors, sizes or recipe, or a `run_dir` of another run or in which
        another process trains.
      Interrupted: Ctrl-C, after saving.
      Diverged: the loss became NaN or Inf.
      Lost: another process ended; what it raises itself, all raise.

    Warns:
      UserWarning: no epoch improved on the start.
    """
    with endings.together(kept=run_dir is not None):
        config, recipe = _chosen(config, recipe)
        if not isinstance(init, Model | None):
            raise InputError(
                f"init must be a model, not an object of type {type(init).__name__}; load one "
                "with qinco_jax.load(path)"
            )
        recipe = _changed(recipe, changes)
        asked = _asked(x_train, config, recipe, seed, x_val, centroids, init)
        x_train, x_val, config, recipe, centroids, identity = asked
        seed = identity["seed"]
        _check_rows(x_train, "the training vectors")
        _check_rows(x_val, "the validation vectors")
        processes.agree({"qinco_jax": __version__, "jax": jax.__version__, **identity})
        folder = None if run_dir is None or not processes.is_first() else path_of(run_dir)
        if not processes.is_first():
            log, advance = None, unseen
        if processes.told(lambda: folder is not None and _is_finished(folder, identity)):
            return processes.shared(
                lambda: disk.load(cast(Path, folder) / run_folder.FINISHED), disk.abstract(config)
            )
        given = x_train, x_val, config, recipe, seed, folder, log, advance
        alone = folder and locked(folder / run_folder.LOCK, f"trains in {folder}")
        with alone or contextlib.nullcontext():
            if config.num_parts > 1:
                model: Model = _product(*given, init)
            else:
                model = train_single(*given, centroids, init)
            processes.in_turn(lambda: _save(model, folder))
        return model


def _save(model: Model, folder: Path | None) -> None:
    if folder is not None:
        disk.save(model, folder / run_folder.FINISHED)


def _check_rows(x: Rows, what: str) -> None:
    """Reads this process's share of the rows; refuses NaN and Inf."""
    own = processes.own_rows(len(x))
    for begin in range(own.start, own.stop, CHECKED_ROWS):
        checks.finite(x[begin : min(own.stop, begin + CHECKED_ROWS)], begin, what)


def _is_finished(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Makes the folder this run's, or finds that it is; and whether it has been trained."""
    finished = (folder / run_folder.FINISHED).exists()
    run_folder.claim(folder / run_folder.IDENTITY, identity, run_folder.CONTENTS)
    return finished


def find_run(
    run_dir: str | os.PathLike[str],
    x_train: Vectors,
    config: QincoConfig,
    recipe: Recipe,
    *,
    seed: int,
    x_val: Vectors | None,
    centroids: Vectors | None,
    init: Model | None,
) -> bool:
    """Whether a training like `train`'s is finished in `run_dir`; changes nothing there.

    Raises:
      InputError: `train` would refuse these arguments or this folder.
    """
    asked, folder = _asked(x_train, config, recipe, seed, x_val, centroids, init), path_of(run_dir)
    identity = run_folder.IDENTITY
    known = run_folder.belongs(folder / identity, asked.identity, run_folder.CONTENTS)
    finished = (folder / run_folder.FINISHED).exists()
    if known and not finished:
        with locked(folder / run_folder.LOCK, f"trains in {folder}"):
            pass
    return finished


def _asked(
    x_train: Vectors,
    config: QincoConfig | None,
    recipe: Recipe,
    seed: int,
    x_val: Vectors | None,
    centroids: Vectors | None,
    init: Model | None,
) -> Asked:
    """Checks all but the rows."""
    seed = numbers.seed(seed)
    x_train, x_val = split(x_train, x_val, recipe)
    recipe = settled(recipe, len(x_train), len(x_val))
    if init is not None:
        checks.vectors(x_train, init.dim, "x_train")
    config = _config(config, init).for_dim(x_train.shape[1])
    if centroids is not None:
        if init is not None:
            raise InputError("init has its own centroids, if any; leave out centroids")
        config, centroids = with_centroids(config, centroids)
    check_sizes(x_train, x_val, config, recipe)
    identity = run_folder.identity(x_train, config, recipe, seed, centroids, init)
    return Asked(x_train, x_val, config, recipe, centroids, identity)


def _chosen(
    config: QincoConfig | str | None, recipe: Recipe | str | None
) -> tuple[QincoConfig | None, Recipe]:
    """The config and the recipe that are given, or named, or left out."""
    if isinstance(recipe, str):
        recipe = named(RECIPES, recipe, "recipe")
    if isinstance(config, str):
        name = config
        config, recipe = named(PRESETS, name, "preset"), recipe or of_preset(name)
    if not isinstance(config, QincoConfig | None):
        raise InputError(
            f"config must be a QincoConfig or the name of a preset, not an object of type "
            f"{type(config).__name__}; a model to continue from is passed as init=model"
        )
    if not isinstance(recipe, Recipe | None):
        raise InputError(
            f"recipe must be a Recipe or the name of one, not an object of type "
            f"{type(recipe).__name__}"
        )
    return config, recipe or Recipe()


def _changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with fields replaced."""
    for name in changes:
        if name in {field.name for field in dataclasses.fields(QincoConfig)}:
            raise InputError(
                f"{name} belongs to the config, not to the recipe; pass "
                f"dataclasses.replace(config, {name}=...)"
            )
    return Recipe(**{**dataclasses.asdict(recipe), **changes})


def settled(recipe: Recipe, num_rows: int, num_val: int) -> Recipe:
    """The recipe with its `mix` and weight decay, unless held-back rows are to choose them."""
    mix = recipe.mix
    if mix is None and (num_rows > FEW_ROWS or num_val == 0):
        mix = 0.0
    return recipe if mix is None else with_mix(recipe, mix)


def _config(config: QincoConfig | None, init: Model | None) -> QincoConfig:
    """The config to train with, which is that of `init` if there is one."""
    if init is None:
        if config is None:
            raise InputError("give a config, such as qinco_jax.PRESETS['small'], or init")
        return config
    own = init.config
    if config is not None and config.for_dim(init.dim) != own:
        given, known = dataclasses.asdict(config.for_dim(init.dim)), dataclasses.asdict(own)
        names = ", ".join(name for name in given if given[name] != known[name])
        raise InputError(f"the config differs from that of init in {names}; leave it out")
    return own


def _product(
    x_train: Rows,
    x_val: Rows,
    config: QincoConfig,
    recipe: Recipe,
    seed: int,
    folder: Path | None,
    log: Log | None,
    advance: Advance,
    init: Model | None,
) -> Product:
    """Trains a model of several parts, each in a folder of its own."""
    start = init if isinstance(init, Product) else None
    rotation = None
    if start is not None and start.rotation is not None:
        rotation = np.asarray(start.rotation)
    elif config.opq:
        x = approximate(x_train, config.unit_norm)
        advance(0, 0, "OPQ by Faiss")
        find = functools.partial(opq.opq_rotation, x, config.num_parts, seed)
        rotation = processes.shared_rows(
            functools.partial(run_folder.kept, folder, run_folder.ROTATION, find),
            (x.shape[1], x.shape[1]), np.float32,
        )  # fmt: skip

    def train_part(number: int, x_train: Rows, x_val: Rows, log: Log) -> Qinco:
        place = None if folder is None else folder / run_folder.PART.format(number)
        part = None if start is None else start.parts[number]
        own = config.part if part is None else None
        model = train(
            x_train, own, recipe,
            seed=seed_for(seed, PART, number), x_val=x_val, run_dir=place, log=log, advance=advance,
            init=part,
        )  # fmt: skip
        assert isinstance(model, Qinco)
        return model

    *_, num_steps = length(recipe, len(x_train))
    return train_parts(x_train, x_val, config, rotation, num_steps, log, train_part)


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
        x_val = lazily(checks.vectors(x_val, x_train.shape[1], "x_val", "x_train has"))
        if x_val.ndim != 2:
            raise InputError(f"x_val has shape {x_val.shape}; expected [V, D]")
        return x_train, x_val
    count = 0 if recipe.num_epochs == 0 else min(recipe.num_val, len(x_train) // 10)
    return x_train[: len(x_train) - count], x_train[len(x_train) - count :]


def check_sizes(x_train: Rows, x_val: Rows, config: QincoConfig, recipe: Recipe) -> None:
    """Finds before training what would stop it later, but for NaN and Inf; reads no rows."""
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
    batch_size, *_ = length(recipe, len(x_train))
    if batch_size == 0:
        raise InputError(
            f"batches of {min(recipe.batch_size, len(x_train))} rows cannot be shared by "
            f"{recipe.num_updates} updates on {jax.device_count()} devices; raise batch_size "
            "or lower num_updates, or give more vectors"
        )
    if recipe.mix and len(x_train) > MAX_MIXED:
        raise InputError(
            f"mix={recipe.mix:g} searches the neighbours of all training vectors, and "
            f"{len(x_train):,} are too many (at most {MAX_MIXED:,}), nor do so many need it; set "
            "mix=0"
        )
