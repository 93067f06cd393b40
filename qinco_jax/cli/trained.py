"""What `qinco train` shows in the end: what training chose, the errors, the table and its plot."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import click
import numpy as np

from qinco_jax import datasets
from qinco_jax.cli import measure, verdict
from qinco_jax.codecs import ours
from qinco_jax.codecs.codec import Codec
from qinco_jax.config import QincoConfig
from qinco_jax.evaluate import plots, results, tables
from qinco_jax.evaluate.neighbours import Queries
from qinco_jax.models.codes import model_fingerprint
from qinco_jax.quantizers.coding import Model
from qinco_jax.quantizers.qinco import Qinco
from qinco_jax.quantizers.rq import RQ, sample_rows
from qinco_jax.quantizers.transform import approximate
from qinco_jax.training import run_folder
from qinco_jax.training.initial_model import as_rq
from qinco_jax.training.logs import stage_bar
from qinco_jax.training.mixing import at_least
from qinco_jax.training.recipe import Recipe
from qinco_jax.vectors.stored import Rows

RQ_ROWS = 100_000


class Run(NamedTuple):
    """A training that has ended.

    Attributes:
      folder: where it is kept.
      config: of its model.
      recipe: that it was given.
      seed: of it.
      kept: [N, D], what it was trained on.
      held_back: [V, D], by which the best epoch was chosen.
      seen: whether those were trained on, too.
      to_store: the file's vectors, where they are the database; else `None`.
      continued: whether it began with a trained model.
    """

    folder: Path
    config: QincoConfig
    recipe: Recipe
    seed: int
    kept: Rows
    held_back: Rows
    seen: bool
    to_store: Rows | None
    continued: bool


def show(
    model: Model,
    run: Run,
    data: datasets.Dataset,
    eval_rows: int,
    questions: Sequence[Queries],
    trial_rows: np.ndarray,
) -> None:
    """Measures a trained model beside RQ and prints what came out; writes the table and the plot.

    Args:
      model: of the run.
      run: the training.
      data: with a database, of which at most `eval_rows` are measured.
      eval_rows: how many.
      questions: as of `measure.questions`.
      trial_rows: [T, D] vectors by which readings are chosen, none for none.
    """
    moving = run_folder.decisions(run.folder, run.config, run_folder.Mixing)
    mix = max((each.mix for each in moving), default=run.recipe.mix or 0.0)
    fitting = verdict.of_fitting(run_folder.decisions(run.folder, run.config, run_folder.Fitting))
    for line in filter(None, (verdict.of_mixing(moving, len(run.kept)), fitting)):
        click.echo(line)
    start = run_folder.start_of(run.folder, model)
    plain = isinstance(start, Qinco) and not (start.ivf or fitting or run.continued)
    begun_as = [as_rq(cast(Qinco, start))] if plain else []
    baseline = _rq(run, [] if mix else begun_as)
    if mix:
        baseline += _rq(run, begun_as, mix)
    same = start is not None and model_fingerprint(start) == model_fingerprint(model)
    trained = run.recipe.num_epochs != 0
    own = _ours(model, start if trained else None, run.recipe.compute_dtype)
    if trained:
        click.echo(measure.two_errors(model, run.recipe, run.held_back))
        click.echo(_verdict(run, own[-1], baseline, same, eval_rows))
        if run.to_store is not None:
            click.echo(verdict.of_stored(own[-1], run.to_store, len(run.kept), eval_rows))
    rows = measure.measure([*baseline, *own], data, eval_rows, list(questions), trial_rows)
    file, plot = run.folder / "results.jsonl", run.folder / "results.png"
    results.write(rows, file)
    plots.plot_rates(file, plot, results.title_of(data.name))
    click.echo(tables.markdown(rows))
    click.echo(f"model: {run.folder / run_folder.FINISHED}   plot: {plot}")


def _verdict(run: Run, own: Codec, rqs: list[Codec], same: bool, eval_rows: int) -> str:
    """What the model gains over RQ, on held-back vectors if there are any."""
    compared = run.held_back
    if run.seen and run.to_store is not None:
        compared = sample_rows(run.kept, eval_rows, run.seed)
    if same:
        return verdict.of_nothing_gained(own, rqs, compared, run.seen, run.continued)
    return verdict.beside_rq(own, rqs, compared, run.seen)


def _rq(run: Run, others: list[RQ], mix: float = 0.0) -> list[Codec]:
    """The best residual quantizer of the same bytes, at four rates; with `mix` of moved vectors."""
    x, config = run.kept, run.config
    some = f"{RQ_ROWS:,} of the " * (len(x) > RQ_ROWS)
    moved, width = ", moved" * bool(mix), config.num_parts
    title = f"training RQ on {some}{len(x):,} vectors{moved}"
    if mix:
        x = approximate(x, config.unit_norm)
        x = at_least(x, mix, run.seed, RQ_ROWS)
    with stage_bar(title) as advance:
        model = ours.best_rq(
            x, run.held_back, width * config.num_steps, config.codebook_size,
            seed=run.seed, max_rows=RQ_ROWS, others=others, advance=advance, **config.transform,
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
