"""What the reproductions share: options, two scales, models of several settings side by side.

`full` is the papers' size. `small` runs the same steps in minutes on two cores, with few vectors,
models that are hardly trained and little search: its figures only show that the procedure works.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

import qinco_jax as qj
from qinco_jax.evaluate import report, results, sweep, tables
from qinco_jax.training.logs import stage_bar

NAMES = ("small", "full")
SMALL_ROWS = {"train": 11_200, "database": 1024, "queries": 500}
_BRIEF = ("num_epochs=1", "epoch_rows=4096", "batch_size=256")
SMALL_SETTINGS = {
    "qinco1": (*_BRIEF, "num_blocks=2"),
    "qinco2": (*_BRIEF, "beam_size=8", "train_candidates=4", "train_beam=2"),
}
MANY_ROWS = 500_000


class Task(NamedTuple):
    """What a script is to work on.

    Attributes:
      data: the vectors.
      small: the scale.
      folder: of the results.
      settings: `NAME=VALUE` of the command line; they win over a script's own.
    """

    data: qj.datasets.Dataset
    small: bool
    folder: Path
    settings: tuple[str, ...]


def command(text, train_rows=None):
    """Makes a function of a `Task` a command; `text` is its module's docstring.

    Args:
      text: the help is its first paragraph.
      train_rows: take at most so many training vectors, at full scale, too.
    """

    def decorate(work):
        @click.command(help=text.split("\n\n")[0])
        @click.option("--dataset", default="sift-photos", show_default=True, metavar="NAME|PATH")
        @click.option("--scale", default="small", show_default=True, type=click.Choice(NAMES))
        @click.option("--out", help="folder of results [default: runs/reproduce/DATASET-SCALE/...]")
        @click.option("--set", "settings", multiple=True, metavar="NAME=VALUE",
                      help="another size or recipe setting of our models")  # fmt: skip
        @functools.wraps(work)
        def main(dataset, scale, out, settings, **more):
            try:
                data = _load(dataset, scale == "small", train_rows)
                name = Path(work.__code__.co_filename).stem
                folder = Path(out or f"runs/reproduce/{data.name}-{scale}/{name}")
                folder.mkdir(parents=True, exist_ok=True)
                work(Task(data, scale == "small", folder, settings), **more)
            except qj.InputError as error:
                raise click.ClickException(str(error)) from error

        return main

    return decorate


def _load(dataset, small, train_rows):
    data = qj.datasets.load(dataset)
    if not small:
        return data._replace(train=data.train[:train_rows])
    cut = {
        part: _spread(getattr(data, part), count)
        for part, count in SMALL_ROWS.items()
        if getattr(data, part) is not None
    }
    return data._replace(groundtruth=None, **cut)  # which is that of all rows


def _spread(x, count):
    """At most `count` rows from all over `x`: sets come in the order of their sources."""
    return x[np.linspace(0, len(x) - 1, min(count, len(x))).astype(int)]


def compare(task, codecs, rates, settings=(), folder=None):
    """`qinco_jax.compare` at the task's scale; returns the folder's rows."""
    rows = []
    for first in (False, True):
        if own := [codec for codec in codecs if is_first(codec) == first]:
            rows = qj.compare(
                task.data, own, rates, folder or task.folder, stage=stage_bar,
                settings=(*_settings(task, first), *settings, *task.settings),
            )  # fmt: skip
    return rows


def is_first(codec):
    """Whether a specification names a model of the first paper, which has a recipe of its own."""
    return codec.startswith("qinco1")


def _settings(task, first):
    if task.small:
        return SMALL_SETTINGS["qinco1" if first else "qinco2"]
    slow = first and len(task.data.train) > MANY_ROWS  # QINCo, Sec. A.3
    return ("learning_rate=1e-4",) if slow else ()


def variants(task, every):
    """Models of several settings, each in a folder of its own, and beside each other.

    Args:
      task: to do.
      every: name -> (specification, settings, bytes per vector).
    """
    found = {results.RESULTS: [], results.COSTS: []}
    for name, (codec, settings, rate) in every.items():
        folder = task.folder / name.replace(" ", "-").replace("/", "-")
        compare(task, [codec], [rate], settings, folder)
        for file, rows in found.items():
            own = {"codec": name, "label": name, "model": name}
            rows += [{**row, **own} for row in sweep.read(folder / file)]
            results.write(rows, task.folder / file)
    report.write_page(task.folder)
    show(task.folder)


def show(folder):
    """Prints a folder's results and costs."""
    click.echo(tables.markdown(sweep.read(folder / results.RESULTS)))
    click.echo(costs_table(sweep.read(folder / results.COSTS)))
    click.echo(f"page: {folder / 'report.html'}")


def costs_table(rows):
    """What was timed, as a Markdown table."""
    columns = {
        "encode_us": "encode us", "decode_us": "decode us", "peak_mib": "MiB",
        "train_seconds": "training s",
    }  # fmt: skip
    shown = [name for name in columns if any(row.get(name) is not None for row in rows)]
    lines = [["codec", "bytes", *(columns[name] for name in shown)]]
    for row in rows:
        figures = ("" if row.get(name) is None else f"{row[name]:.4g}" for name in shown)
        lines.append([row["codec"], f"{row['bytes']:g}", *figures])
    widths = np.max([[len(cell) for cell in line] for line in lines], axis=0)
    text = [" | ".join(map(str.rjust, line, widths)) for line in lines]
    rule = "|".join("-" * (width + 1) + ":" for width in widths)
    return "\n".join([f"| {text[0]} |", f"|{rule}|", *(f"| {line} |" for line in text[1:])])
