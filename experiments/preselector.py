"""A pre-selector fitted afterwards: error and speed beside the exhaustive search and Faiss.

    python experiments/preselector.py --out experiments/results/preselector.jsonl

Trains a model of form QINCo (L = 2, H = 256, 8 bytes) for a few epochs, takes its pre-selection
away, fits another to the model's own codes (`qinco_jax.fit_preselector`) and encodes database rows:
by Faiss's QINCo and by ours exhaustively and greedily, then with the fitted S. Needs `faiss`.
"""

import dataclasses
import time

import click
import numpy as np
import peers

import qinco_jax as qj
from qinco_jax.evaluate import machine, results

CONFIG = qj.QincoConfig(form="qinco", num_blocks=2, num_candidates=4, beam_size=1)
SEARCHES = (
    (8, 1, False),
    (16, 1, False),
    (32, 1, False),
    (4, 4, True),
    (2, 8, True),
    (2, 16, True),
)
FIT_ROWS = 16_384


def bare(num_epochs, x):
    """A model without pre-selection, for vectors of mean 0 and scale 1: Faiss knows no others."""
    model = qj.train(x, CONFIG, qj.RECIPES["small"], num_epochs=num_epochs)
    steps = dataclasses.replace(model.steps, preselect=None)
    config = dataclasses.replace(model.config, num_candidates=None, beam_size=1)
    return dataclasses.replace(model, steps=steps, config=config)


def measured(encode, model, x):
    """Error of the codes, and rows a second of a warm call."""
    encode(x[:256])
    begin = time.perf_counter()
    codes = np.asarray(encode(x))
    rate = len(x) / (time.perf_counter() - begin)
    error = x - np.asarray(qj.decode(model, codes))
    return {"vectors_per_s": rate, "mse": float(np.square(error, dtype=np.float64).sum(1).mean())}


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--dataset", default="sift-photos", show_default=True)
@click.option("--epochs", default=4, show_default=True)
@click.option("--eval-rows", default=2048, show_default=True)
@click.option("--out", required=True, type=click.Path())
def main(dataset, epochs, eval_rows, out):
    data = qj.datasets.load(dataset)
    model = bare(epochs, data.train)
    x = np.asarray(data.database[:eval_rows], np.float32)
    unit = dataclasses.replace(model, mean=0 * model.mean, scale=1 + 0 * model.scale)
    theirs, _ = peers.faiss_qinco(unit)
    mean, scale = np.asarray(model.mean), float(model.scale)
    begin = time.perf_counter()
    fitted = qj.fit_preselector(model, data.train[:FIT_ROWS])
    facts = {**machine.facts(), "fit_seconds": round(time.perf_counter() - begin, 1)}
    rows = [
        {
            "search": "faiss.QINCo",
            **measured(lambda x: theirs((x - mean) / scale), model, x),
        },
        {"search": "exhaustive", **measured(lambda x: qj.encode(model, x), model, x)},
    ]
    for num_candidates, beam_size, joint in SEARCHES:
        search = {"num_candidates": num_candidates, "beam_size": beam_size, "joint": joint}
        found = measured(lambda x, search=search: qj.encode(fitted, x, **search), model, x)
        rows.append({"search": f"fitted A={num_candidates} B={beam_size}", **search, **found})
    for row in rows:
        row["ratio_to_faiss"] = row["vectors_per_s"] / rows[0]["vectors_per_s"]
        row["mse_to_exhaustive"] = row["mse"] / rows[1]["mse"]
        click.echo(
            f"{row['search']:>20}  {row['vectors_per_s']:8.0f} vectors/s  "
            f"{row['ratio_to_faiss']:6.1f} x Faiss  MSE {row['mse']:.0f}, "
            f"{row['mse_to_exhaustive']:.4f} of exhaustive"
        )
    results.write([{**row, **facts} for row in rows], out)


if __name__ == "__main__":
    main()
