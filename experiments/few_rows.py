"""Training on few rows: with and without moving them towards their neighbours, and weight decay.

    python experiments/few_rows.py --dataset PATH --rows 20000 --epochs 12 --recipe mixed --out FILE

Trains `small` at 8 bytes on the first rows of a set, a tenth of which are held back, and appends a
line to FILE: the errors of the residual quantizer that training starts from and of the model, on
the rows held back and on the database. Prints the table of all its lines. --regularizer leaves out
hidden units at random, or adds noise to the contexts of steps, as a share of the residuals' size.
"""

import json
import time
from pathlib import Path

import click
import jax
import numpy as np
from regularizers import REGULARIZERS, regularized

import qinco_jax as qj
from qinco_jax.evaluate import results, tables
from qinco_jax.quantizers.chunks import num_cores
from qinco_jax.quantizers.transform import approximated
from qinco_jax.training.train import split

RECIPES = {
    "plain": {"mix": 0.0, "weight_decay": 0.1},
    "decay": {"mix": 0.0, "weight_decay": 0.5},
    "mixed": {"mix": 0.7, "weight_decay": 0.1},
    "mixed, decay": {"mix": 0.7, "weight_decay": 0.5},
    "default": {},
}
TEST_ROWS = 10_000  # of the database
KEYS = {
    "start_val_mse": "start, held back",
    "val_mse": "held back",
    "database_mse": "database",
}


def error(model, x):
    """Squared error summed over dimensions, averaged over vectors [N, D]."""
    x_hat = np.asarray(qj.decode(model, qj.encode(model, x)))
    goal = approximated(x, model.config.unit_norm)
    return float(np.square(goal - x_hat, dtype=np.float64).sum(axis=1).mean())


def run(data, num_rows, name, num_epochs, preset, seed, regularizers):
    """A row for each regularizer; all trainings go on from the same start."""
    recipe = qj.Recipe(**{**vars(qj.RECIPES[preset]), **RECIPES[name], "num_epochs": num_epochs})
    kept, held_back = split(data.train[:num_rows], None, recipe)
    tests = {"val": held_back, "database": data.database[:TEST_ROWS]}
    how = {"seed": seed, "x_val": held_back}
    start = qj.train(kept, qj.PRESETS[preset], recipe, **how, num_epochs=0)
    before = {f"start_{part}_mse": error(start, x) for part, x in tests.items()}
    for regularizer in regularizers:
        log, begin = [], time.perf_counter()
        with regularized(regularizer, start, held_back):
            model = qj.train(kept, None, recipe, **how, init=start, log=log.append)
        seconds = time.perf_counter() - begin
        curve = [record["val_mse"] for record in log if "val_mse" in record]
        yield {
            "dataset": data.name,
            "rows": len(data.train[:num_rows]),
            "recipe": name,
            "regularizer": regularizer,
            "epochs": len(curve) - 1,
            "seed": seed,
            "preset": preset,
            "seconds": round(seconds),
            **before,
            **{f"{part}_mse": error(model, x) for part, x in tests.items()},
            "curve": curve,
            "device": jax.devices()[0].device_kind,
            "cores": num_cores(),
            "jax": jax.__version__,
        }


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--dataset", default="sift-photos", show_default=True, metavar="NAME|PATH")
@click.option("--rows", "num_rows", default=20_000, show_default=True)
@click.option("--recipe", "names", type=click.Choice(list(RECIPES)), multiple=True, required=True)
@click.option(
    "--regularizer", "regularizers", type=click.Choice(list(REGULARIZERS)), multiple=True,
    default=["none"], show_default=True,
)  # fmt: skip
@click.option("--epochs", "num_epochs", type=int, help="[default: the recipe's]")
@click.option("--preset", default="small", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(dataset, num_rows, names, regularizers, num_epochs, preset, seed, out):
    data = qj.datasets.load(dataset)
    out.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        for row in run(data, num_rows, name, num_epochs, preset, seed, regularizers):
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    click.echo(table(results.read(out, ("dataset", "rows", "recipe", "regularizer", "epochs"))))


def table(rows):
    """One line for each training."""
    lines = [["set", "rows", "recipe", "regularizer", "epochs", *KEYS.values(), "seconds"]]
    for row in rows:
        errors = [f"{row[key]:#.4g}" for key in KEYS]
        lines.append([
            row["dataset"], f"{row['rows']:,}", row["recipe"], row["regularizer"],
            f"{row['epochs']}", *errors, f"{row['seconds']}",
        ])  # fmt: skip
    return tables.aligned(lines)


if __name__ == "__main__":
    main()
