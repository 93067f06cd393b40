"""`qinco train` and `qinco centroids`."""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np

from qinco_jax import datasets
from qinco_jax.cli import estimates, keeping, measure, trained
from qinco_jax.cli.models import compute_dtype_option
from qinco_jax.cli.numbers import Integer, Number
from qinco_jax.codecs import named
from qinco_jax.config import PRESETS, QincoConfig
from qinco_jax.config import named as config_named
from qinco_jax.errors import InputError
from qinco_jax.evaluate import readings
from qinco_jax.evaluate.neighbours import Queries
from qinco_jax.files import path_of
from qinco_jax.models import disk
from qinco_jax.numbers import MAX_SEED
from qinco_jax.quantizers import precision
from qinco_jax.quantizers.coarse import train_centroids
from qinco_jax.quantizers.coding import Model
from qinco_jax.quantizers.rq import sample_rows
from qinco_jax.quantizers.transform import approximate
from qinco_jax.training import processes, run_folder
from qinco_jax.training.estimate import costs
from qinco_jax.training.logs import run_log, stage_bar
from qinco_jax.training.minutes import lasting
from qinco_jax.training.recipe import RECIPES, Recipe
from qinco_jax.training.run_folder import Schedule
from qinco_jax.training.train import check_sizes, find_run, settled, split
from qinco_jax.training.train import train as train_model
from qinco_jax.vectors import checks, formats
from qinco_jax.vectors.stored import Rows
from qinco_jax.version import __version__
from qinco_jax.words import counted

SIZES = {field.name for field in dataclasses.fields(QincoConfig)}
MOST_MINUTES = 10**6


@click.command()
@measure.data_options(20_000)
@click.option("--preset", default="small", show_default=True, help=", ".join(PRESETS))
@click.option("--recipe", "recipe_name", metavar="NAME",
              help=f"{', '.join(RECIPES)} [default: the preset's own; `accelerator` for the preset "
                   "small on a GPU or TPU]")  # fmt: skip
@click.option("--bytes", "num_bytes", type=float, help="bytes per vector [default: 8]")
@click.option("--minutes", type=Number(0, MOST_MINUTES, above=True),
              help="train for about so long on this machine, start included, and then measure "
                   "[default: as many epochs as the recipe says]")  # fmt: skip
@click.option(
    "--train-on-all",
    is_flag=True,
    help="train on all vectors and hold none back, where they are all that will be stored: their "
    "own error is lower, but the best epoch is chosen by vectors that it has seen, none are moved "
    "towards their neighbours unless --set mix says so, and the error of others is not known",
)
@click.option("--seed", default=0, show_default=True, type=Integer(0, MAX_SEED),
              help="of the start and the data order")  # fmt: skip
@click.option("--centroids", metavar="FILE", help="coarse centroids, of `qinco centroids`")
@click.option("--init", metavar="MODEL",
              help="a model to continue from, also on other vectors; its sizes stay, and --preset "
                   "names the recipe")  # fmt: skip
@click.option("--out", help="folder of the run [default: runs/DATASET-PRESET-BYTESB]")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE",
              help="another size or recipe setting, such as hidden_dim=512 or num_epochs=40; "
                   "may be given several times; `qinco settings` lists all")  # fmt: skip
@compute_dtype_option
@click.option("--dry-run", is_flag=True, help="show what it will take, and train nothing")
@click.option("--distributed", is_flag=True,
              help="train together with the other processes that Slurm, Open MPI or Kubernetes "
                   "started, or that the next three options describe")  # fmt: skip
@click.option("--coordinator", metavar="HOST:PORT",
              help="where process 0 listens to the others, the same for all")  # fmt: skip
@click.option("--num-processes", type=Integer(1), help="of the training")
@click.option("--process-id", type=Integer(), help="of this process, from 0")
def train(
    distributed: bool, coordinator: str | None, num_processes: int | None, process_id: int | None,
    **options: Any,
) -> None:  # fmt: skip
    """Trains a model, then shows its error and recall next to those of RQ.

    The run's folder holds the model, checkpoints, metrics, the table and its plot. Run the same
    command again to resume after an interruption.

    For example, in about ten minutes, on vectors that are also those to store:

        qinco train --dataset vectors.npy --bytes 8 --minutes 10 --train-on-all
    """
    with _processes(distributed, coordinator, num_processes, process_id):
        show = _trained(**options)
    if processes.is_first():
        show()


@contextlib.contextmanager
def _processes(
    distributed: bool, coordinator: str | None, num_processes: int | None, number: int | None
) -> Iterator[None]:
    """Joins the others if there are any; the first alone prints, errors apart."""
    if not distributed:
        if (coordinator, num_processes, number) != (None, None, None):
            raise InputError("--coordinator, --num-processes and --process-id need --distributed")
        yield
        return
    with processes.joined(coordinator, num_processes, number), contextlib.ExitStack() as stack:
        params = {**click.get_current_context().params, "process_id": None}
        processes.agree({"qinco_jax": __version__, "jax": jax.__version__, "command": params})
        if not processes.is_first():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield


def _trained(
    preset: str, recipe_name: str | None, num_bytes: float | None, minutes: float | None,
    train_on_all: bool, seed: int, centroids: str | None, init: str | None, out: str | None,
    settings: tuple[str, ...], compute_dtype: str | None, dry_run: bool, eval_rows: int,
    **files: str | None,
) -> Callable[[], None]:  # fmt: skip
    """Trains; what it returns measures the model and prints, which one process does."""
    begin = time.monotonic()
    data = processes.in_turn(lambda: measure.load(files))
    coarse = None if centroids is None else np.asarray(formats.read(centroids))
    begun = None if init is None else disk.load(init)
    settings = _completed(settings, coarse, begun, compute_dtype)
    config, recipe = _sizes(preset, num_bytes, settings, recipe_name, begun)
    kind = "-on" * bool(init) + "-all" * train_on_all
    folder = path_of(out or f"runs/{data.name}-{preset}-{config.bits / 8:g}B{kind}")
    keeping.keeps(lambda: run_folder.kept_of(folder))
    stored = data.train if data.database is None else data.database
    to_store = data.train if data.database is None and data.validation is None else None
    if train_on_all:
        data, recipe = _on_all(data, recipe, seed)
    kept, held_back = split(data.train, data.validation, recipe)
    if begun is not None:
        checks.vectors(data.train, begun.dim, str(files["dataset"]))
    sizes = config.for_dim(kept.shape[1])
    check_sizes(kept, held_back, sizes, recipe)
    if minutes is not None:
        if any(text.startswith(("num_epochs=", "epoch_rows=")) for text in settings):
            raise InputError("--minutes sets num_epochs and epoch_rows; leave out these or that")
        place = None if dry_run else folder
        recipe = _lasting(minutes, begin, place, kept, held_back, config, recipe)
    of_size = "" if begun is not None else estimates.large_model(sizes, len(stored))
    known: dict[str, Any] = {"seed": seed, "x_val": data.validation}
    known |= {"centroids": coarse, "init": begun}
    measured_anew = minutes is not None and dry_run  # so it is no run that there may be
    finished = (
        processes.is_first()
        and not measured_anew
        and find_run(folder, data.train, config, recipe, **known)
    )
    if dry_run:
        _say(of_size)
        measure.check_truth(data, eval_rows, config.unit_norm)
        _say(estimates.training(kept, held_back, config, recipe))
        return lambda: None
    if finished:
        _say(f"{folder} is a finished run; measuring its model again")
    else:
        _say(
            f"training {preset} at {counted(config.bits / 8, 'byte')} on {data.name}, "
            f"{len(data.train):,} vectors of {data.train.shape[1]} dimensions, in {folder}",
            of_size,
        )
    if len(held_back) == 0:  # the untrained model, which has seen none of them
        held_back = kept
    nothing_unseen = train_on_all and to_store is not None
    trial_rows = data.train[:0] if nothing_unseen else readings.trial_rows(data, held_back)
    questions: list[Queries] = []
    if processes.is_first():
        data = measure.complete(data, held_back)
        questions = measure.questions(data, eval_rows, config.unit_norm)  # before hours of training
    with run_log(folder) as (log, advance):
        model = train_model(
            data.train, config, recipe, run_dir=folder, log=log, advance=advance, **known
        )  # fmt: skip
    run = trained.Run(
        folder, config, recipe, seed, kept, held_back, train_on_all, to_store, begun is not None
    )
    return functools.partial(
        trained.show, model, run, data, eval_rows, questions, np.asarray(trial_rows)
    )


def _say(*texts: str) -> None:
    for text in texts:
        if text:
            click.echo(text)


def _completed(
    settings: tuple[str, ...],
    centroids: np.ndarray | None,
    init: Model | None,
    compute_dtype: str | None,
) -> tuple[str, ...]:
    """The settings, and those that other options imply."""
    sized = init is not None or any(text.startswith("num_centroids=") for text in settings)
    if centroids is not None and not sized:
        settings = (*settings, f"num_centroids={len(centroids)}")
    if compute_dtype is not None:
        settings = (*settings, f"compute_dtype={precision.resolve(compute_dtype)}")
    return settings


def _sizes(
    preset: str,
    num_bytes: float | None,
    settings: tuple[str, ...],
    recipe_name: str | None,
    init: Model | None,
) -> tuple[QincoConfig, Recipe]:
    """The config, which is that of `init` if there is one, and the recipe."""
    if init is None:
        num_bytes = 8 if num_bytes is None else num_bytes
        return named.sized(preset, num_bytes, settings, recipe_name)
    sizes = [text for text in settings if text.partition("=")[0] in SIZES]
    asked = [f"--set {text}" for text in sizes if not _is_of(init.config, text)]
    if num_bytes not in (None, init.config.bits / 8):
        asked = [f"--bytes {num_bytes:g}", *asked]
    if asked:
        raise InputError(
            f"the model of --init has sizes of its own, which stay; leave out {' and '.join(asked)}"
        )
    _, recipe = named.sized(
        preset, config_named(PRESETS, preset, "preset").bits / 8,
        [text for text in settings if text not in sizes], recipe_name,
    )  # fmt: skip
    return init.config, recipe


def _is_of(config: QincoConfig, setting: str) -> bool:
    name, _, text = setting.partition("=")
    return bool(getattr(config, name) == named.value_of(text))


def _on_all(data: datasets.Dataset, recipe: Recipe, seed: int) -> tuple[datasets.Dataset, Recipe]:
    """The set whose validation vectors are some of those trained on, and the recipe.

    No vectors are held back that could tell whether moved ones do good, and those that are trained
    on may be learned by heart, if they are the database.
    """
    if data.validation is not None:
        raise InputError(
            "the set has validation vectors, so none are held back; leave out --train-on-all"
        )
    some = sample_rows(data.train, min(recipe.num_val, max(1, len(data.train) // 10)), seed)
    click.echo(
        f"--train-on-all: no vectors are held back, so the best epoch is chosen by {len(some):,} "
        "of those trained on"
    )
    database = data.train if data.database is None else data.database
    mix = 0.0 if recipe.mix is None else recipe.mix
    changed = data._replace(validation=some, database=database)
    return changed, dataclasses.replace(recipe, mix=mix)


def _lasting(
    minutes: float,
    begin: float,
    folder: Path | None,
    x: Rows,
    x_val: Rows,
    config: QincoConfig,
    recipe: Recipe,
) -> Recipe:
    """The recipe that ends so long after `begin`; the folder keeps what was decided for a run."""
    if recipe.schedule != "cosine":
        raise InputError("--minutes sets the length of a cosine; add --set schedule=cosine")

    def decide() -> Schedule:
        found = costs(x, x_val, config, settled(recipe, len(x), len(x_val)))
        used = time.monotonic() - begin
        schedule = Schedule(*processes.told(lambda: lasting(minutes, used, found, recipe, len(x))))
        click.echo(estimates.schedule(schedule, found, recipe, len(x)))
        return schedule

    chosen = decide() if folder is None else run_folder.scheduled(folder, minutes, decide)
    return dataclasses.replace(recipe, num_epochs=chosen.num_epochs, epoch_rows=chosen.epoch_rows)


@click.command()
@click.argument("centroids")
@click.option("--dataset", default="sift-photos", show_default=True, metavar="NAME|PATH",
              help="whose training vectors to take")  # fmt: skip
@click.option("--num", "num_centroids", required=True, type=Integer(2),
              help="K_ivf, the number of centroids")  # fmt: skip
@click.option("--iterations", default=10, show_default=True, type=Integer(1))
@click.option("--rows", "max_rows", metavar="N", type=Integer(2),
              help="train on at most N vectors [default: 256 for each centroid]")  # fmt: skip
@click.option("--unit-norm", is_flag=True, help="for models of x / |x| (unit_norm=true)")
@click.option("--seed", default=0, show_default=True, type=Integer(0, MAX_SEED))
def centroids(
    centroids: str, dataset: str, num_centroids: int, iterations: int, max_rows: int | None,
    unit_norm: bool, seed: int,
) -> None:  # fmt: skip
    """Trains the coarse codebook of an IVF-QINCo into the new file CENTROIDS (.npy).

    For example:

        qinco centroids lists.npy --dataset vectors.npy --num 1024
    """
    data = datasets.load(dataset)
    kept, _ = split(data.train, data.validation, Recipe())
    kept = approximate(kept, unit_norm)
    shape, title = (num_centroids, kept.shape[1]), f"{num_centroids:,} centroids of {data.name}"
    with formats.create(centroids, shape, np.float32) as out, stage_bar(title) as advance:
        out[:] = train_centroids(
            kept, num_centroids,
            seed=seed, num_iters=iterations, max_rows=max_rows, advance=advance,
        )  # fmt: skip
