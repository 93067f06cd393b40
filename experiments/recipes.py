"""What a recipe reaches in a given time: the published recipe beside ours, through the same code.

    python experiments/recipes.py --recipe published --minutes 3 --seed 0 --out FILE.jsonl
    python experiments/recipes.py --recipe ours --minutes 3 --seed 0 --out FILE.jsonl

Appends a line to FILE, prints the table of all its lines, and draws their validation error against
vectors seen in a picture beside FILE: lines as training goes, with the search that it uses itself,
and points for the trained models, all with the same wide search. The time is that of the training
loop with its validations, without the compilation and the k-means before it; the schedule's length
is set from the speed of a few steps so that training takes about that long. Each model is measured
on the held-back rows with the same wide search. `taskset -c 0` gives a run one core, so that two
can go side by side.
"""

import dataclasses
import json
import platform
import time
from pathlib import Path

import click
import jax
import numpy as np

import qinco_jax as qj
from qinco_jax.evaluate import results, style, tables
from qinco_jax.quantizers import qinco
from qinco_jax.quantizers.chunks import num_cores
from qinco_jax.training import step
from qinco_jax.training.train import split

RECIPES = ("published", "ours")
PRESETS = ("qinco2-S", "qinco2-M", "qinco2-L")
SEARCH = {"num_candidates": 2, "beam_size": 64, "joint": True}
MAX_EPOCH_ROWS = 90_000
MIN_EPOCHS = 2
VAL_ROWS, TEST_ROWS = 500, 4000  # of the held-back rows, to choose and to report


def seconds_per_batch(config, recipe, x):
    """Of a batch, once compiled."""
    batch = np.asarray(x[: recipe.batch_size])
    state = step.init_state(qj.train(x[:20_000], config, num_epochs=0), recipe)
    taken = []
    for _ in range(4):
        begin = time.perf_counter()
        state, loss = step.train_step(state, batch, recipe, 1000)
        loss.block_until_ready()
        taken.append(time.perf_counter() - begin)
    return float(np.median(taken[1:]))


def lasting(recipe, seconds, per_batch):
    """The recipe with as many epochs as take so long, of at most the rows that there are."""
    rows = int(seconds / per_batch) * recipe.batch_size
    num_epochs = max(MIN_EPOCHS, -(-rows // MAX_EPOCH_ROWS))
    return dataclasses.replace(recipe, num_epochs=num_epochs, epoch_rows=rows // num_epochs)


def settings(name, preset):
    """The model's sizes and its recipe: the published ones, or the same network trained as ours."""
    theirs, ours = qj.PRESETS[preset], qj.PRESETS["small"]
    if name == "published":  # AdamW 8e-4, A = 16 and B = 32 throughout
        return theirs, qj.RECIPES[preset]
    network = {size: getattr(theirs, size) for size in ("embed_dim", "hidden_dim", "num_blocks")}
    return dataclasses.replace(ours, **network), qj.RECIPES["small"]


def run(name, preset, minutes, seed, x):
    config, recipe = settings(name, preset)
    kept, held_back = split(x, None, recipe)
    recipe = lasting(recipe, 60 * minutes, seconds_per_batch(config, recipe, kept))
    records = []
    model = qj.train(
        kept, config, recipe, seed=seed, x_val=held_back[:VAL_ROWS],
        log=lambda record: records.append({**record, "at": time.perf_counter()}),
    )  # fmt: skip
    x_test = held_back[VAL_ROWS : VAL_ROWS + TEST_ROWS].astype(np.float32)
    x_hat = np.asarray(qj.decode(model, qj.encode(model, x_test, **SEARCH)))
    curve = [
        (round(record["at"] - records[0]["at"], 1), record["vectors"], record["val_mse"])
        for record in records
        if "val_mse" in record
    ]
    return {
        "recipe": name,
        "preset": preset,
        "train_rows": len(kept),
        "seed": seed,
        "asked": minutes,
        "minutes": round((records[-1]["at"] - records[0]["at"]) / 60, 2),
        "vectors": records[-1]["vectors"],
        "train_loss": float(np.mean([r["loss"] for r in records if "loss" in r][-10:])),
        "val_mse": float(np.square(x_test - x_hat, dtype=np.float64).sum(1).mean()),
        "curve": curve,
        "settings": dataclasses.asdict(recipe),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(qinco.parameters(model))),
        "device": jax.devices()[0].device_kind,
        "cores": num_cores(),
        "jax": jax.__version__,
        "machine": platform.processor() or platform.machine(),
    }


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--recipe", "name", type=click.Choice(RECIPES), required=True)
@click.option("--preset", type=click.Choice(PRESETS), default="qinco2-S", show_default=True)
@click.option("--minutes", default=3.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--dataset", default="sift-photos", show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(name, preset, minutes, seed, dataset, out):
    data = qj.datasets.load(dataset)
    row = {**run(name, preset, minutes, seed, data.train), "dataset": data.name}
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:  # appended, because two runs may go side by side
        file.write(json.dumps(row) + "\n")
    rows = results.read(out, ("preset", "asked", "recipe"))
    click.echo(table(rows))
    plot(rows, out.with_suffix(".png"))


def table(rows):
    """One line for each network, time and recipe."""
    lines = [
        ["network", "recipe", "minutes", "vectors seen", "validation MSE of each seed", "mean"]
    ]
    for preset, asked, recipe in sorted({kind(row) for row in rows}):
        same = [row for row in rows if kind(row) == (preset, asked, recipe)]
        same.sort(key=lambda row: row["seed"])
        minutes, seen, mse = (
            np.array([row[key] for row in same]) for key in ("minutes", "vectors", "val_mse")
        )
        lines.append([
            preset, recipe, f"{minutes.mean():.2f}", f"{seen.mean():,.0f}",
            ", ".join(f"{value:.0f}" for value in mse), f"{mse.mean():.0f}",
        ])  # fmt: skip
    return tables.aligned(lines)


def kind(row):
    return row["preset"], row["asked"], row["recipe"]


def label(row):
    return f"{row['recipe']}, {row['asked']:g} minutes"


def plot(rows, image):
    """Validation error against vectors seen: a panel for each network, a line for each run."""
    presets = sorted({row["preset"] for row in rows})
    looks = style.looks(dict.fromkeys(map(label, sorted(rows, key=kind))))
    with style.plot_style():
        figure, axes = style.panels(len(presets), "", one_scale=True)
        for axis, preset in zip(axes, presets, strict=True):
            for row in (row for row in rows if row["preset"] == preset):
                look = looks[label(row)]
                _, vectors, mse = np.array(row["curve"][1:]).T
                axis.plot(vectors, mse, **{**look, "marker": ""})
                axis.plot(row["vectors"], row["val_mse"], **look)
            style.log_axis(axis, "x")
            axis.set(title=preset, xlabel="vectors seen", ylabel="validation MSE")
            axis.label_outer()
        style.finish(figure, style.lines(looks))
        style.save(figure, image)


if __name__ == "__main__":
    main()
