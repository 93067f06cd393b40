"""Faiss's RQ and LSQ on a set, the marks that QINCo's table is read against.

    python experiments/faiss_baselines.py --out experiments/results/faiss-sift-photos.jsonl

Needs the extra `faiss`. Trains on the rows that `qinco train` trains on and measures with the same
code on the same database and queries. What it gave is quoted in README.md.
"""

import functools
import platform
import time
from pathlib import Path

import click
import faiss
import numpy as np

from qinco_jax import fit
from qinco_jax.codec import Codec
from qinco_jax.data import catalog
from qinco_jax.evaluate import report
from qinco_jax.evaluate.metrics import nearest_neighbours
from qinco_jax.training import RECIPES


def residual(dim, num_steps, train_beam, beam):
    quantizer = faiss.ResidualQuantizer(dim, num_steps, 8)
    quantizer.max_beam_size = train_beam
    return f"Faiss RQ B={beam}, trained with {train_beam}", quantizer, beam


def local_search(dim, num_steps):
    return "Faiss LSQ", faiss.LocalSearchQuantizer(dim, num_steps, 8), None


def encode_with(quantizer, x):
    return quantizer.compute_codes(np.asarray(x, np.float32))


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--dataset", default="sift-photos", show_default=True)
@click.option("--steps", default=8, show_default=True, help="bytes per vector")
@click.option("--eval-rows", default=20_000, show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(dataset, steps, eval_rows, out):
    data = catalog.load(dataset)
    x_train, _ = fit.split(data.train, None, RECIPES["small"])
    x_train = np.asarray(x_train, np.float32)
    database = data.database[:eval_rows]
    nearest = nearest_neighbours(database, data.queries)
    dim, rows = x_train.shape[1], []
    for name, quantizer, beam in (
        residual(dim, steps, 5, 32),
        residual(dim, steps, 32, 32),
        local_search(dim, steps),
    ):
        begin = time.perf_counter()
        quantizer.train(x_train)
        seconds = time.perf_counter() - begin
        if beam is not None:
            quantizer.max_beam_size = beam
        encode = functools.partial(encode_with, quantizer)
        codec = Codec(name, 8.0 * steps, encode, quantizer.decode)
        (row,) = report.score([codec], database, data.queries, nearest)
        rows.append(
            {
                **row,
                "dataset": dataset,
                "train_rows": len(x_train),
                "train_seconds": round(seconds),
                "faiss": faiss.__version__,
                "machine": f"{platform.machine()}, {faiss.omp_get_max_threads()} threads",
            }
        )
        click.echo(f"{name}: trained in {seconds:.0f} s, MSE {row['mse']:.0f}")
    out.parent.mkdir(parents=True, exist_ok=True)
    report.write(rows, out)
    click.echo(report.table(rows))


if __name__ == "__main__":
    main()
