"""`qinco train` and `qinco centroids`."""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import click
import jax
import numpy as np

from qinco_jax import datasets
from qinco_jax.cli import estimates, keeping, measure, verdict
from qinco_jax.cli.models import compute_dtype_option
from qinco_jax.cli.numbers import Integer, Number
from qinco_jax.codecs import named, ours
from qinco_jax.codecs.codec import Codec
from qinco_jax.config import PRESETS, QincoConfig
from qinco_jax.config import named as config_named
from qinco_jax.errors import InputError
from qinco_jax.evaluate import plots, readings, results, tables
from qinco_jax.evaluate.neighbours import Queries
from qinco_jax.files import path_of
from qinco_jax.models import disk
from qinco_jax.models.codes import model_fingerprint
from qinco_jax.quantizers import precision
from qinco_jax.quantizers.coarse import train_centroids
from qinco_jax.quantizers.coding import Model
from qinco_jax.quantizers.qinco import Qinco
from qinco_jax.quantizers.rq import RQ, sample_rows
from qinco_jax.quantizers.transform import approximate
from qinco_jax.training import mixing, processes, run_folder
from qinco_jax.training.estimate import costs
from qinco_jax.training.initial_model import as_rq
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
RQ_ROWS = 100_000
MOST_MINUTES = 10**6


@click.command()
@measure.data_options(20_000)
@click.option("--preset", default="small", show_default=True, help=", ".join(PRESETS))
@click.option("--recipe", "recipe_name", metavar="NAME",
              help=f"{', '.join(RECIPES)} [default: the preset's; of small on a GPU or TPU "
                   "accelerator]")  # fmt: skip
@click.option("--bytes", "num_bytes", type=float, help="bytes per vector [default: 8]")
@click.option("--minutes", type=Number(0, MOST_MINUTES, above=True),
              help="train for about so long on this machine, start included, and then measure "
                   "[default: as many epochs as the recipe says]")  # fmt: skip
@click.option(
    "--train-on-all",
    is_flag=True,
    help="hold no vectors back, where those to train on are those to store: their own "
    "error is lower, but the best epoch is chosen by vectors that it has seen, none "
    "are moved unless --set mix says so, and the error of others is not known",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31 - 1),
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
                   "started, or that the following three tell of")  # fmt: skip
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
    sized = init is not None or any(text.startswith("num_centroids=") for text in settings)
    if coarse is not None and not sized:
        settings = (*settings, f"num_centroids={len(coarse)}")
    begun = None if init is None else disk.load(init)
    if compute_dtype is not None:
        settings = (*settings, f"compute_dtype={precision.resolve(compute_dtype)}")
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

    def say_size() -> None:
        if begun is None and (text := estimates.large_model(sizes, len(stored))):
            click.echo(text)

    if dry_run:
        say_size()
        measure.check_truth(data, eval_rows, config.unit_norm)
        click.echo(estimates.training(kept, held_back, config, recipe))
        return lambda: None
    known: dict[str, Any] = {
        "seed": seed,
        "x_val": data.validation,
        "centroids": coarse,
        "init": begun,
    }
    if processes.is_first() and find_run(folder, data.train, config, recipe, **known):
        click.echo(f"{folder} is a finished run; measuring its model again")
    else:
        click.echo(
            f"training {preset} at {counted(config.bits / 8, 'byte')} on {data.name}, "
            f"{len(data.train):,} vectors of {data.train.shape[1]} dimensions, in {folder}"
        )
        say_size()
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

    def show() -> None:
        mix, why = _mix(folder, config, recipe, len(kept))
        fitting = verdict.of_fitting(run_folder.decisions(folder, config, run_folder.Fitting))
        for line in filter(None, (why, fitting)):
            click.echo(line)
        start = run_folder.start_of(folder, model)
        plain = isinstance(start, Qinco) and not (start.ivf or fitting or begun)
        begun_as = [as_rq(cast(Qinco, start))] if plain else []
        baseline = _rq(kept, held_back, config, seed, [] if mix else begun_as)
        if mix:
            baseline += _rq(kept, held_back, config, seed, begun_as, mix)
        same = start is not None and model_fingerprint(start) == model_fingerprint(model)
        own = _ours(model, None if same else start, recipe.compute_dtype)
        if recipe.num_epochs != 0:
            click.echo(measure.two_errors(model, recipe, held_back))
            compared = sample_rows(kept, eval_rows, seed) if nothing_unseen else held_back
            tell = verdict.of_nothing_gained if same else verdict.beside_rq
            click.echo(tell(own[-1], baseline, compared, train_on_all))
            if to_store is not None:
                click.echo(verdict.of_stored(own[-1], to_store, len(kept), eval_rows))
        rows = measure.measure(
            [*baseline, *own], data, eval_rows, questions, np.asarray(trial_rows)
        )
        results.write(rows, folder / "results.jsonl")
        plots.plot_rates(
            folder / "results.jsonl", folder / "results.png", results.title_of(data.name)
        )
        click.echo(tables.markdown(rows))
        click.echo(f"model: {folder / run_folder.FINISHED}   plot: {folder / 'results.png'}")

    return show


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


def _mix(folder: Path, config: QincoConfig, recipe: Recipe, num_rows: int) -> tuple[float, str]:
    """How far a run moved its rows, and where held-back rows decided that, what they said."""
    if recipe.mix is not None:
        return recipe.mix, ""
    found = run_folder.decisions(folder, config, run_folder.Mixing)
    moved = [(each, each.moved) for each in found if each.mix and each.moved is not None]
    if not moved:
        return 0.0, ""
    (first, error), parts = moved[0], config.num_parts
    which = f" in {len(moved)} of {parts} parts" * (parts > 1)
    overfit, change = first.held_back / first.own - 1, error / first.held_back - 1
    return first.mix, (
        f"{num_rows:,} vectors are few{which}: residual k-means has an error {overfit:.0%} "
        "higher on vectors that it was not trained on. So training moved each vector towards its "
        f"neighbours, which changes that error by {change:+.1%} and helps networks more (mix "
        f"{first.mix:g}; --set mix=0 trains on the vectors as they are)"
    )


def _rq(
    x: Rows, x_val: Rows, config: QincoConfig, seed: int, others: list[RQ], mix: float = 0.0
) -> list[Codec]:
    """The best residual quantizer of the same bytes, at four rates; with `mix` of moved vectors."""
    some = f"{RQ_ROWS:,} of the " * (len(x) > RQ_ROWS)
    moved, width = ", moved" * bool(mix), config.num_parts
    title = f"training RQ on {some}{len(x):,} vectors{moved}"
    if mix:
        x = approximate(x, config.unit_norm)
        x = mixing.at_least(x, mix, seed, RQ_ROWS)
    with stage_bar(title) as advance:
        model = ours.best_rq(
            x, x_val, width * config.num_steps, config.codebook_size,
            seed=seed, max_rows=RQ_ROWS, others=others, advance=advance, **config.transform,
        )  # fmt: skip
    steps = ours.quarters(config.num_steps)
    every = [ours.of_rq(model, width * m, config.step_bits / width) for m in steps]
    return [codec._replace(name=f"{codec.name}{moved}") for codec in every]


def _ours(model: Model, start: Model | None, compute_dtype: str | None) -> list[Codec]:
    """The model as its training began, if the run kept that, and trained, at four rates."""
    num_steps = model.num_steps
    codec = functools.partial(ours.of_qinco, compute_dtype=compute_dtype)
    before = [] if start is None else [codec(start, num_steps)]
    return [
        *(each._replace(name=f"{each.name}, before training") for each in before),
        *(codec(model, m) for m in ours.quarters(num_steps)),
    ]


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
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31 - 1))
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
