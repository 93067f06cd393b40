"""`qinco evaluate` and `qinco compare`: error and recall, of a model and beside other codecs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np

from qinco_jax.cli import estimates, keeping, measure
from qinco_jax.cli.models import compute_dtype_option, search_options
from qinco_jax.codecs import ours
from qinco_jax.datasets import Dataset
from qinco_jax.errors import InputError
from qinco_jax.evaluate import readings, results, tables
from qinco_jax.evaluate.compare import checked
from qinco_jax.evaluate.compare import compare as compare_codecs
from qinco_jax.files import path_of
from qinco_jax.models import codes as code_files
from qinco_jax.models import disk
from qinco_jax.quantizers import packing, precision
from qinco_jax.quantizers.coding import Model
from qinco_jax.training.logs import stage_bar
from qinco_jax.training.recipe import FEW_ROWS, Recipe
from qinco_jax.training.train import split
from qinco_jax.vectors import checks
from qinco_jax.vectors.shards import read_rows

T = TypeVar("T")
CODECS = "pq,opq,rq:B=32,lsq,unq,small@16"
MOVED = "opq:moved,rq:moved:B=32,lsq:moved"


@click.command()
@click.argument("model")
@measure.data_options(20_000)
@search_options
@compute_dtype_option
@click.option("--codes", metavar="FILE", help="codes of the database, by `qinco encode`")
@click.option("--out", help="new file of the results, as json lines")
def evaluate(
    model: str,
    num_candidates: int | None,
    beam_size: int | None,
    joint: bool | None,
    compute_dtype: str | None,
    eval_rows: int,
    codes: str | None,
    out: str | None,
    **files: str | None,
) -> None:
    """Measures MODEL's error and recall on a set's database: at four rates, or of given codes.

    For example:

        qinco evaluate runs/mine --dataset /path/to/folder
    """
    search = num_candidates, beam_size, joint, precision.resolve(compute_dtype)
    codec = disk.load(model)
    data = measure.load(files)
    checks.vectors(data.train, codec.dim, str(files["dataset"]))
    known = None if codes is None else _codes_of(data, codes, codec, files["dataset"])
    _, held_back = split(data.train, data.validation, Recipe())
    trial_rows = readings.trial_rows(data, held_back)
    data = measure.complete(data, held_back, measure.role_of(model, data, held_back))
    if out is not None and (path_of(out).exists() or not path_of(out).parent.is_dir()):
        raise InputError(f"{out} already exists or its folder does not; choose another name")
    steps = ours.quarters(codec.num_steps) if known is None else [codec.num_steps]
    every = [ours.of_qinco(codec, m, *search) for m in steps]
    if known is not None:
        every = [every[0]._replace(name=f"codes of {Path(str(codes)).name}")]
    questions = measure.questions(data, eval_rows, codec.config.unit_norm)
    rows = measure.measure(every, data, eval_rows, questions, trial_rows, known)
    if out is not None:
        results.write(rows, out)
    click.echo(tables.markdown(rows))


def _codes_of(data: Dataset, path: str, model: Model, dataset: str | None) -> np.ndarray:
    """The codes of all rows of a database."""
    database = data.database
    if database is None:
        file = dataset if data.validation is None else "FILE"
        raise InputError(
            f"{path} holds codes, and the set has no database that they could be of; use "
            f"--database {file} to name the vectors that were encoded"
        )
    codes = packing.from_rows(np.asarray(code_files.read(path, model, database)), model.config)
    packing.check_range(model.column_sizes, codes)
    return codes


@click.command()
@measure.data_options(None)
@click.option(
    "--codecs",
    help="what to compare, such as opq,rq:B=32:moved,small@16:A=4:B=8,PATH/model [default: "
    f"{CODECS}; with at most {FEW_ROWS:,} training vectors {MOVED} too, trained on vectors moved "
    "towards their neighbours, as our models may be]",
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
@click.option("--dry-run", is_flag=True, help="show what training will take, and train nothing")
def compare(
    codecs: str | None, rates: str, seeds: str, metrics: str | None, noise: str,
    shifted: tuple[str, ...], out: str | None, settings: tuple[str, ...], dry_run: bool,
    eval_rows: int | None, **files: str | None,
) -> None:  # fmt: skip
    """Trains and compares codecs: a table, plots and a page (report.html).

    Run the same command again to resume after an interruption, or with further codecs and rates to
    add them; several processes may share the folder.

    For example:

        qinco compare --dataset vectors.npy --codecs opq,rq:B=32,small --rates 4,8
    """
    sizes, numbers = _items("--rates", rates, float), _items("--seeds", seeds, int)
    levels = _items("--noise", noise, float)
    kinds = None if metrics is None else _items("--metrics", metrics, str)
    data = measure.load(files)
    folder = path_of(out or f"runs/compare-{data.name}")
    x_train, held_back = split(data.train, data.validation, Recipe())
    if codecs is None:
        codecs = f"{CODECS},{MOVED}" if len(x_train) <= FEW_ROWS else CODECS
    what = data, _items("--codecs", codecs, str), sizes
    how: dict[str, Any] = {
        "seeds": numbers,
        "metrics": kinds,
        "noise": levels,
        "shifted": {Path(file).stem: read_rows(file) for file in shifted},
        "settings": settings,
    }
    if dry_run:
        found = checked(*what, **how).contenders
        with stage_bar("measuring on a few vectors") as advance:
            text = estimates.comparison(found, x_train, held_back, len(numbers), advance)
        click.echo(text)
        return
    keeping.keeps(lambda: f"codecs that were finished are kept in {folder}; {keeping.AGAIN}")
    measure.complete(data, held_back)  # says what will be measured, which the comparison chooses
    rows = compare_codecs(*what, folder, **how, eval_rows=eval_rows, stage=stage_bar)
    click.echo(tables.markdown(rows))
    click.echo(f"page: {folder / 'report.html'}   results: {folder / 'results.jsonl'}")


def _items(option: str, text: str, kind: Callable[[str], T]) -> list[T]:
    """The parts of an option's list with commas.

    Raises:
      InputError: one of them is not a number of that kind.
    """
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        what = "integers" if kind is int else "numbers"
        raise InputError(
            f"{option} {text!r} is not a comma-separated list of {what}, such as 4,8"
        ) from None
