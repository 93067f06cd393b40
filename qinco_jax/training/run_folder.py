"""Folders of runs and evaluations: each belongs to what was asked for there first."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from qinco_jax.config import QincoConfig
from qinco_jax.errors import InputError, differences
from qinco_jax.files import locked, replacing
from qinco_jax.models import disk
from qinco_jax.quantizers import precision
from qinco_jax.quantizers.coding import Model
from qinco_jax.quantizers.product import Product
from qinco_jax.quantizers.qinco import Qinco
from qinco_jax.training import processes
from qinco_jax.training.recipe import Recipe, length
from qinco_jax.vectors import formats
from qinco_jax.vectors.stored import Rows, fingerprint

IDENTITY, START, FINISHED, CHECKPOINTS = disk.IDENTITY, "start", disk.FINISHED, "checkpoints"
ROTATION, CENTROIDS, NEIGHBOURS = "rotation.npy", "centroids.npy", "neighbours.npy"
SCHEDULE = "schedule.json"  # how long a run trains that was given minutes
LOCK = ".lock"  # of who trains there
PART = "part-{}"  # folder of a product's part
MOST_NAMED = 3  # differences of another run


def identity(
    x: Rows,
    config: QincoConfig,
    recipe: Recipe,
    seed: int,
    centroids: np.ndarray | None,
    init: Model | None,
) -> dict[str, Any]:
    """What makes a run this run and no other."""
    given: dict[str, Any] = {}
    if centroids is not None:
        given["centroids"] = fingerprint(centroids)
    if init is not None:
        leaves = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(init))
        given["init"] = hashlib.sha256(leaves).hexdigest()
    settings = dataclasses.asdict(recipe)
    settings["compute_dtype"] = precision.resolve(recipe.compute_dtype)  # settled as a run begins,
    settings["batch_size"], *_ = length(recipe, len(x))  # and so is what devices share
    settings["mix"] = "by held-back rows" if recipe.mix is None else recipe.mix
    if recipe.mix == 0:  # as in runs from before there was mixing
        del settings["mix"]
    else:  # unlike in older runs, whose optimizer's state has another structure
        settings["decayed"] = "matrices"
    if recipe.default_rows == Recipe.default_rows:  # and before this was a setting
        del settings["default_rows"]
    return {
        "seed": seed,
        "config": config.settings,
        "recipe": settings,
        "data": fingerprint(x),
        **given,
    }


def trained_rows(model: str | os.PathLike[str], x: Rows) -> int | None:
    """How many of the first of some rows [N, D] a model was trained on, by the folder of its run.

    0 stands for other rows, and also for these in another dtype; `None` for a model without a run.
    """
    place = disk.place_of(model)
    if place.name != FINISHED or not (record := place.with_name(IDENTITY)).exists():
        return None
    data = json.loads(record.read_bytes())["data"]
    count = int(data["shape"][0])
    return count if count <= len(x) and fingerprint(x[:count]) == data else 0


def kept(folder: Path | None, name: str, train: Callable[[], np.ndarray]) -> np.ndarray:
    """What is found first [R, D]; a run keeps it, for all later depends on each digit."""
    if folder is not None and (folder / name).exists():
        return np.asarray(formats.read(folder / name))
    found = train()
    if folder is not None:
        with formats.create(folder / name, found.shape, found.dtype) as out:
            out[:] = found
    return found


class Mixing(NamedTuple):
    """What held-back rows decided about a run's `mix`, by the errors of residual quantizers.

    Attributes:
      mix: the recipe's, decided.
      own: error on training rows, of the one that was trained on rows as they are.
      held_back: its error on held-back rows.
      moved: error on those of the one that was trained on moved rows; `None` if none was.
    """

    mix: float
    own: float
    held_back: float
    moved: float | None


class Fitting(NamedTuple):
    """Whether the start's codebooks were fitted anew together, and what decided it.

    Attributes:
      together: whether they were.
      error: of the residual quantizer before, on held-back rows.
      variance: of those.
    """

    together: bool
    error: float
    variance: float


Decided = TypeVar("Decided", Mixing, Fitting)
DECISIONS: dict[type, str] = {Mixing: "mixing.json", Fitting: "fitting.json"}
CONTENTS = START, FINISHED, CHECKPOINTS, ROTATION, CENTROIDS, NEIGHBOURS, *DECISIONS.values()


def decided(folder: Path, kind: type[Decided]) -> Decided | None:
    """What was decided in a run's folder; `None` where nothing was."""
    file = folder / DECISIONS[kind]
    return kind(**json.loads(file.read_text())) if file.exists() else None


def decisions(folder: Path, config: QincoConfig, kind: type[Decided]) -> list[Decided]:
    """What was decided in a run's folder, or by those parts of a product that decided anything."""
    parts = range(config.num_parts if config.num_parts > 1 else 0)
    folders = [folder / PART.format(n) for n in parts] or [folder]
    return [found for each in folders if (found := decided(each, kind)) is not None]


def keep(folder: Path, found: Mixing | Fitting) -> None:
    """Keeps what was decided, for the run to go on with and to tell at its end."""
    with replacing(folder / DECISIONS[type(found)]) as partial:
        partial.write_text(json.dumps(found._asdict(), indent=2) + "\n")


class Schedule(NamedTuple):
    """How long a run trains that was given minutes.

    Attributes:
      minutes: that were asked for.
      num_epochs: of the recipe.
      epoch_rows: of the recipe.
    """

    minutes: float
    num_epochs: int
    epoch_rows: int


def scheduled(folder: Path, minutes: float, decide: Callable[[], Schedule]) -> Schedule:
    """What is decided as a run begins; the folder keeps it, so that it resumes with the same.

    Every process decides, and all get what the first one kept.

    Raises:
      InputError: the folder's run was given other minutes or none, or another process trains there.
    """
    file, other = folder / SCHEDULE, "choose another folder or remove that one"

    def kept() -> dict[str, Any] | None:
        if file.exists():
            return dict(json.loads(file.read_text()))
        if (folder / IDENTITY).exists():
            raise InputError(
                f"the run in {folder} began without minutes; leave them out, or {other}"
            )
        return None

    def keep(found: Schedule) -> dict[str, Any] | None:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCK, f"trains in {folder}"):
            if not file.exists():  # another run may have been faster
                with replacing(file) as partial:
                    partial.write_text(json.dumps(found._asdict(), indent=2) + "\n")
        return kept()

    there = processes.told(kept)
    if there is None:
        found = decide()
        there = processes.told(lambda: keep(found))
    assert there is not None
    known = Schedule(**there)
    if known.minutes != minutes:
        raise InputError(
            f"the run in {folder} trains for {known.minutes:g} minutes, not {minutes:g}; {other}"
        )
    return known


def start_of(folder: Path, model: Model) -> Model | None:
    """The untrained model that a run's `model` began as; `None` if the run kept none.

    Runs of versions before 2026-11-27 did not.
    """
    if isinstance(model, Product):
        parts = [start_of(folder / PART.format(n), part) for n, part in enumerate(model.parts)]
        known = tuple(part for part in parts if isinstance(part, Qinco))
        return dataclasses.replace(model, parts=known) if len(known) == len(parts) else None
    return disk.load(folder / START) if (folder / START).exists() else None


def kept_of(folder: Path) -> str:
    """What a run that was interrupted has kept, and what the same command does, in words."""
    again = "run the same command again to"
    if (folder / FINISHED).exists():
        return f"the trained model is kept in {folder / FINISHED}; {again} measure it"
    places = [folder, *folder.glob(PART.format("*"))]
    if any(file.exists() for place in places for file in (place / CHECKPOINTS).glob("*")):
        return f"the last checkpoint is kept; {again} resume"
    if any((place / START).exists() for place in places):
        return f"the start of the training is kept, and no step yet; {again} go on"
    return "the training had not begun; the same command starts over"


def claim(file: Path, identity: Mapping[str, Any], contents: tuple[str, ...]) -> None:
    """Makes the folder of `file` the one of this run, or finds that it already is.

    Args:
      file: where the identity stands.
      identity: what makes this run this run and no other; json.
      contents: names that only a run leaves there.

    Raises:
      InputError: the folder belongs to another run; the first differences are named.
    """
    if not belongs(file, identity, contents):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            partial.write_text(json.dumps(identity, indent=2) + "\n")


def belongs(file: Path, identity: Mapping[str, Any], contents: tuple[str, ...]) -> bool:
    """Whether the folder of `file` is the one of this run, or may become it; as of `claim`."""
    folder = file.parent
    if not file.exists():
        for name in contents:
            if (folder / name).exists():
                raise InputError(
                    f"{folder / name} exists but belongs to no run; choose another folder"
                )
        return False
    try:
        there = json.loads(file.read_text().replace('"normalize"', '"unit_norm"'))
        found = differences(there, identity)
    except (ValueError, AttributeError) as error:
        raise InputError(f"{file} is damaged ({error}); remove {folder} to start anew") from error
    if not found:
        return True
    more = [f"and {len(found) - MOST_NAMED} more"] if len(found) > MOST_NAMED else []
    remedy = "choose another folder or remove that one"
    if (folder / FINISHED).exists():
        remedy = "choose another folder"
        if not any(text.startswith("config.") for text in found):  # the sizes are the model's
            remedy += (
                ", or continue from its model in another folder "
                f"(init=qinco_jax.load({str(folder)!r}), or --init {folder})"
            )
    raise InputError(
        f"{folder} belongs to another run: {'; '.join(found[:MOST_NAMED] + more)}; {remedy}"
    )
