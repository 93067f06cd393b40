"""The command line, thin over the Python API: train, encode, decode, evaluate, compare, data."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
import jax
import numpy as np
from tqdm import tqdm

from qinco_jax import datasets
from qinco_jax.cli import data as data_cli
from qinco_jax.cli import measure
from qinco_jax.cli import models as interop_cli
from qinco_jax.cli import settings as settings_cli
from qinco_jax.codecs import named, ours
from qinco_jax.config import PRESETS
from qinco_jax.errors import InputError
from qinco_jax.evaluate import plots, results, tables
from qinco_jax.evaluate.compare import compare as compare_codecs
from qinco_jax.files import path_of
from qinco_jax.interrupts import Interrupted
from qinco_jax.models import codes as code_files
from qinco_jax.models import disk
from qinco_jax.quantizers import coding, packing
from qinco_jax.quantizers.coarse import train_centroids
from qinco_jax.training import run_folder
from qinco_jax.training.logs import run_log, stage_bar
from qinco_jax.training.loop import Diverged
from qinco_jax.training.recipe import Recipe
from qinco_jax.training.train import approximate, split
from qinco_jax.training.train import train as train_model
from qinco_jax.vectors import checks, formats
from qinco_jax.vectors.shards import ENDINGS, read_rows
from qinco_jax.version import __version__

T = TypeVar("T")

RQ_BEAM = 32
RQ_ROWS = 100_000
INTERRUPTED = 130  # as shells count SIGINT
FAILURES = {Diverged: 1, Interrupted: INTERRUPTED, InputError: 2}


class Commands(click.Group):
    """Shows a failure that the user can act on as one sentence, without a trace."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command; exits with 2 for what was passed in, 1 for a failed training."""
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *_, **__: click.echo(
                    f"warning: {message}", err=True
                )
                return super().invoke(ctx)
        except KeyboardInterrupt:
            text, code = (
                "interrupted; train, encode, compare and data resume when run again, others start "
                "anew",
                INTERRUPTED,
            )
        except click.UsageError as error:
            if "extra argument" in error.message and any(end in error.message for end in ENDINGS):
                hint = 'to pass several files, quote a pattern, such as "parts/*.npy"'
                raise click.UsageError(f"{error.message}; {hint}", error.ctx) from None
            raise
        except BrokenPipeError:
            raise  # `qinco settings | head`: click ends quietly
        except OSError as error:
            reason = f"{error.filename or 'a file'}: {error.strerror or error}"
            text, code = f"{reason}; check the path, its permissions and the free space", 2
        except tuple(FAILURES) as error:
            text = str(error)
            code = next(FAILURES[kind] for kind in FAILURES if isinstance(error, kind))
        except RuntimeError as error:
            if "Unable to initialize backend" not in str(error):
                raise
            text, code = f"{error}; set JAX_PLATFORMS to what this machine has, such as cpu", 2
        click.echo(f"qinco: {text}", err=True)
        ctx.exit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Neural residual quantization: trains QINCo models, encodes, decodes, evaluates.

    Files of vectors are .npy, .npz, .fvecs, .bvecs, .ivecs, .fbin, .u8bin, .i8bin, .ibin, .hdf5,
    .parquet or .safetensors, "parts/*.npy" or a folder of numbered files several of them,
    FILE::NAME the column or dataset NAME of a file; codes are .npy. A MODEL is a folder, that of
    its run too, or a .safetensors file. Compiled programs are kept in ~/.cache/qinco_jax, or where
    JAX_COMPILATION_CACHE_DIR says.
    """
    _keep_compilations()


main.add_command(data_cli.data)
main.add_command(settings_cli.settings)
main.add_command(interop_cli.convert)
main.add_command(interop_cli.export)


def _keep_compilations() -> None:
    """A second process finds what the first compiled (JAX's persistent compilation cache)."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and not home.startswith("~"):
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "qinco_jax"))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _data_options(eval_rows: int | None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in (
            click.option("--eval-rows", default=eval_rows, show_default=True, metavar="N",
                         type=click.IntRange(min=1), help="measure on the first N database rows"),
            click.option("--groundtruth", help="file of the queries' true neighbours"),
            click.option("--queries", help="file of queries"),
            click.option("--database", help="vectors to measure on"),
            click.option("--dataset", default="sift-photos", show_default=True,
                         metavar="NAME|PATH",
                         help="a named set, a folder with train.* and maybe database.*, queries.* "
                              "and groundtruth.*, or training vectors: a file, pattern or folder"),
        ):  # fmt: skip
            command = option(command)
        return command

    return add


@main.command()
@_data_options(20_000)
@click.option("--preset", default="small", show_default=True, help=", ".join(PRESETS))
@click.option("--bytes", "num_bytes", default=8.0, show_default=True, help="bytes per vector")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31 - 1),
              help="of the start and the data order")  # fmt: skip
@click.option("--centroids", metavar="FILE", help="coarse centroids, of `qinco centroids`")
@click.option("--out", help="folder of the run [default: runs/DATASET-PRESET-BYTESB]")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE",
              help="another size or recipe setting, such as hidden_dim=512 or num_epochs=40; "
                   "may be given several times; `qinco settings` lists all")  # fmt: skip
def train(
    preset: str, num_bytes: float, seed: int, centroids: str | None, out: str | None,
    settings: tuple[str, ...], eval_rows: int, **files: str | None,
) -> None:  # fmt: skip
    """Trains a model, then shows its error and recall next to those of RQ.

    The run's folder holds the model, checkpoints, metrics, the table and its plot. Run the same
    command again to resume after an interruption.
    """
    data = _load(files)
    coarse = None if centroids is None else formats.read(centroids)
    if coarse is not None and not any(text.startswith("num_centroids=") for text in settings):
        settings = (*settings, f"num_centroids={len(coarse)}")
    config, recipe = named.sized(preset, num_bytes, settings)
    folder = path_of(out or f"runs/{data.name}-{preset}-{num_bytes:g}B")
    if (folder / run_folder.FINISHED).exists():
        click.echo(f"{folder} is a finished run; measuring its model again")
    else:
        click.echo(
            f"training {preset} at {num_bytes:g} bytes on {data.name}, {len(data.train):,} vectors "
            f"of {data.train.shape[1]} dimensions, in {folder}"
        )
    kept, held_back = split(data.train, data.validation, recipe)
    if len(held_back) == 0:  # the untrained model, which has seen none of them
        held_back = kept
    if data.database is None:
        click.echo(f"no database: measured on the {measure.which(held_back, data)}")
        data = data._replace(database=held_back)
    questions = measure.questions(data, eval_rows, config.unit_norm)  # before hours of training
    with run_log(folder) as (log, advance):
        model = train_model(
            data.train, config, recipe, seed=seed, x_val=data.validation, run_dir=folder, log=log,
            advance=advance, centroids=coarse,
        )  # fmt: skip

    width, steps = config.num_parts, ours.quarters(config.num_steps)
    some = f"{RQ_ROWS:,} of the " * (len(kept) > RQ_ROWS)
    with stage_bar(f"training RQ on {some}{len(kept):,} vectors") as advance:
        baseline = ours.best_rq(
            kept, held_back, width * config.num_steps, config.codebook_size,
            seed=seed, max_rows=RQ_ROWS, advance=advance, **config.transform,
        )  # fmt: skip
    start = run_folder.start_of(folder, model)
    before = [] if start is None else [ours.of_qinco(start, config.num_steps)]
    if recipe.num_epochs != 0:
        click.echo(measure.two_errors(model, recipe, held_back))
    rows = measure.measure(
        [ours.of_rq(baseline, width * m, config.step_bits / width, RQ_BEAM) for m in steps]
        + [codec._replace(name=f"{codec.name}, before training") for codec in before]
        + [ours.of_qinco(model, m) for m in steps],
        data,
        eval_rows,
        questions,
    )
    results.write(rows, folder / "results.jsonl")
    plots.plot_rates(folder / "results.jsonl", folder / "results.png", data.name)
    click.echo(tables.markdown(rows))
    click.echo(f"model: {folder / run_folder.FINISHED}   plot: {folder / 'results.png'}")


@main.command()
@click.argument("centroids")
@click.option("--dataset", default="sift-photos", show_default=True, metavar="NAME|PATH",
              help="whose training vectors to take")  # fmt: skip
@click.option("--num", "num_centroids", required=True, type=click.IntRange(min=2),
              help="K_ivf, the number of centroids")  # fmt: skip
@click.option("--iterations", default=10, show_default=True, type=click.IntRange(min=1))
@click.option("--rows", "max_rows", metavar="N", type=click.IntRange(min=2),
              help="train on at most N vectors [default: 256 for each centroid]")  # fmt: skip
@click.option("--unit-norm", is_flag=True, help="for models of x / |x| (unit_norm=true)")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31 - 1))
def centroids(
    centroids: str, dataset: str, num_centroids: int, iterations: int, max_rows: int | None,
    unit_norm: bool, seed: int,
) -> None:  # fmt: skip
    """Trains the coarse codebook of an IVF-QINCo into the new file CENTROIDS (.npy)."""
    data = datasets.load(dataset)
    kept, _ = split(data.train, data.validation, Recipe())
    kept = approximate(kept, unit_norm)
    shape, title = (num_centroids, kept.shape[1]), f"{num_centroids:,} centroids of {data.name}"
    with formats.create(centroids, shape, np.float32) as out, stage_bar(title) as advance:
        out[:] = train_centroids(
            kept, num_centroids,
            seed=seed, num_iters=iterations, max_rows=max_rows, advance=advance,
        )  # fmt: skip


@main.command()
@click.argument("model")
@click.argument("vectors")
@click.argument("codes")
@interop_cli.search_options
def encode(model: str, vectors: str, codes: str, **search: Any) -> None:
    """Encodes the file VECTORS with MODEL into the new file CODES (.npy, packed bytes).

    Run the same command again to resume after an interruption. CODES.json says what made the codes:
    keep both together.
    """
    with _bar("encoding") as advance:
        code_files.write(
            codes, disk.load(model), read_rows(vectors), what=vectors, advance=advance, **search
        )


@main.command()
@click.argument("model")
@click.argument("codes")
@click.argument("vectors")
def decode(model: str, codes: str, vectors: str) -> None:
    """Decodes the file CODES with MODEL into the new file VECTORS (.npy, .fvecs or .fbin)."""
    codec = disk.load(model)
    rows = code_files.read(codes, codec)
    shape = len(rows), codec.dim
    with formats.create(vectors, shape, np.float32) as out, _bar("decoding") as advance:
        for span in code_files.read_blocks(len(rows), advance):
            found = packing.from_rows(np.asarray(rows[span]), codec.config)
            found = packing.check_range(codec.column_sizes, found, span.start)
            out[span] = np.asarray(coding.decode(codec, found))


@main.command()
@click.argument("model")
@_data_options(20_000)
@interop_cli.search_options
@click.option("--out", help="new file of the results, as json lines")
def evaluate(
    model: str,
    num_candidates: int | None,
    beam_size: int | None,
    joint: bool | None,
    eval_rows: int,
    out: str | None,
    **files: str | None,
) -> None:
    """Measures MODEL's error and recall at four rates on a set's database."""
    codec = disk.load(model)
    data = _load(files)
    if data.database is None:
        _, held_back = split(data.train, data.validation, Recipe())
        click.echo(f"no database: measured on the {measure.which(held_back, data)}")
        data = data._replace(database=held_back)
    checks.vectors(data.train, codec.dim, data.name)
    if out is not None and (path_of(out).exists() or not path_of(out).parent.is_dir()):
        raise InputError(f"{out} already exists or its folder does not; choose another name")
    steps = ours.quarters(codec.num_steps)
    every = [ours.of_qinco(codec, m, num_candidates, beam_size, joint) for m in steps]
    questions = measure.questions(data, eval_rows, codec.config.unit_norm)
    rows = measure.measure(every, data, eval_rows, questions)
    if out is not None:
        results.write(rows, out)
    click.echo(tables.markdown(rows))


@main.command()
@_data_options(None)
@click.option(
    "--codecs",
    default="pq,opq,rq:B=32,lsq,unq,small@16",
    show_default=True,
    help="what to compare, such as opq,rq:B=32,small@16:A=4:B=8,PATH/model",
)
@click.option("--rates", default="4,8,12,16", show_default=True, help="bytes per vector")
@click.option("--seeds", default="0", show_default=True, help="train every codec with each")
@click.option("--metrics", help="of l2, ip and cosine [default: the set's own, or l2]")
@click.option(
    "--noise",
    default="",
    metavar="S,...",
    help="further queries with noise of S standard deviations",
)
@click.option(
    "--shifted",
    multiple=True,
    metavar="FILE",
    help="further queries of another distribution; may be given several times",
)
@click.option("--out", help="folder of results [default: runs/compare-DATASET]")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="another size or recipe setting of our models; may be given several times",
)
def compare(
    codecs: str, rates: str, seeds: str, metrics: str | None, noise: str, shifted: tuple[str, ...],
    out: str | None, settings: tuple[str, ...], eval_rows: int | None, **files: str | None,
) -> None:  # fmt: skip
    """Trains and compares codecs: a table, plots and a page (report.html).

    Run the same command again to resume after an interruption, or with further codecs and rates to
    add them; several processes may share the folder.
    """
    data = _load(files)
    folder = path_of(out or f"runs/compare-{data.name}")
    rows = compare_codecs(
        data, _items(codecs, str), _items(rates, float), folder,
        seeds=_items(seeds, int), metrics=None if metrics is None else _items(metrics, str),
        noise=_items(noise, float),
        shifted={Path(file).stem: read_rows(file) for file in shifted},
        eval_rows=eval_rows, settings=settings, stage=stage_bar,
    )  # fmt: skip
    click.echo(tables.markdown(rows))
    click.echo(f"page: {folder / 'report.html'}   results: {folder / 'results.jsonl'}")


def _items(text: str, kind: Callable[[str], T]) -> list[T]:
    """The parts of a list with commas.

    Raises:
      InputError: one of them is not a number of that kind.
    """
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise InputError(f"{text!r} is not a comma-separated list of numbers: {error}") from error


def _load(files: dict[str, str | None]) -> datasets.Dataset:
    given = {name: path for name, path in files.items() if path is not None}
    return datasets.load(given.pop("dataset"), **given)


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over vectors: a function of how many are done, of how many."""
    with tqdm(unit=" vectors", unit_scale=True, desc=what) as bar:

        def advance(done: int, total: int) -> None:
            if bar.total is None:
                bar.initial, bar.n = done, done
            bar.total = total
            bar.update(done - bar.n)

        yield advance
