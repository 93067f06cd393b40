"""What larger batches cost: the error by vectors seen, of `small` and of larger batches and rates.

    python experiments/batches.py --out experiments/results/batches.jsonl

A GPU wants large batches, but what they do to the error shows on a CPU as well. The network is a
small one, of 4 bytes, so that all runs take some minutes; each adds a line to the file and is not
done again.
"""

import dataclasses
import time
from pathlib import Path

import click
import numpy as np

import qinco_jax as qj
from qinco_jax.evaluate import machine, results

CONFIG = dataclasses.replace(
    qj.PRESETS["small"], num_steps=4, embed_dim=64, hidden_dim=128, num_blocks=1
)
TRAINED, TESTED = 90_000, 4000
RUNS = (
    (1024, 3e-3, 1.2e6),
    (8192, 3e-3, 1.2e6),
    (8192, 6e-3, 1.2e6),
    (8192, 1e-2, 1.2e6),
    (8192, 6e-3, 2.4e6),
    (8192, 6e-3, 4.8e6),
)
"""Rows of a batch, rate, vectors to see."""


def measure(x, batch_size, learning_rate, num_vectors, seed=0):
    kept, x_test, x_val = np.split(x, [TRAINED, TRAINED + TESTED])
    num_epochs = max(1, round(num_vectors / len(kept)))
    records, begin = [], time.perf_counter()
    model = qj.train(
        kept, CONFIG, qj.RECIPES["small"], seed=seed, x_val=x_val[:1000], log=records.append,
        batch_size=batch_size, learning_rate=learning_rate, num_epochs=num_epochs,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    x_test = np.float32(x_test)
    return {
        "batch_size": batch_size, "learning_rate": learning_rate, "num_epochs": num_epochs,
        "seed": seed, "vectors": records[-1]["vectors"],
        "updates": records[-1]["step"] * qj.RECIPES["small"].num_updates,
        "mse": float(qj.mse(x_test, qj.decode(model, qj.encode(model, x_test)))),
        "seconds": seconds,
    }  # fmt: skip


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--dataset", default="sift-photos", show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(dataset, out):
    x = np.asarray(qj.datasets.load(dataset).train)
    rows = results.read(out) if out.exists() else []
    for run in RUNS:
        asked = dict(zip(("batch_size", "learning_rate", "asked"), run, strict=True))
        if not any(all(row[key] == value for key, value in asked.items()) for row in rows):
            rows.append({**asked, **measure(x, *run), **machine.facts()})
            results.write(rows, out)
        row = next(row for row in rows if all(row[key] == asked[key] for key in asked))
        click.echo(
            f"batches of {run[0]} at {run[1]:g}: {row['vectors']:,} vectors seen in "
            f"{row['updates']:,} updates, MSE {row['mse']:.1f}"
        )


if __name__ == "__main__":
    main()
