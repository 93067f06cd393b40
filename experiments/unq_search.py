"""UNQ's search in two stages: recall and time by the length of the shortlist.

    python experiments/unq_search.py --scale full

The first stage adds up look-up tables, the second orders a shortlist by what the decoder makes of
it (UNQ, Sec. 3); the shortlist of all rows is the second stage alone, as `make eval` counts recall.
The paper takes shortlists of 500 rows of a million.

Ours: results/unq_search.jsonl, 8 bytes on sift-photos, after a third of the recipe (`--epochs 9`).
"""

import time

import click
import numpy as np
import scale

import qinco_jax as qj
from qinco_jax.codecs.unq import unq
from qinco_jax.codecs.unq.train import train as train_unq
from qinco_jax.evaluate import machine, results
from qinco_jax.evaluate.neighbours import RANKS, nearest_neighbours

SHORTLISTS = (100, 200, 500, 1000, 2000)


@scale.command(__doc__)
@click.option("--bytes", "num_bytes", default=8, show_default=True)
@click.option("--epochs", type=int, help="[default: those of UNQ's recipe, 1 at small scale]")
def main(task, num_bytes, epochs):
    data = task.data
    if data.database is None or data.queries is None:
        raise qj.InputError(f"{data.name} lacks a database or queries; choose a set with both")
    epochs = 1 if epochs is None and task.small else epochs
    model = train_unq(data.train, num_bytes, num_epochs=epochs)
    codes = np.asarray(unq.encode(model, data.database))
    nearest = nearest_neighbours(data.database, data.queries)
    rows, facts = [], machine.facts()
    for shortlist in (*(size for size in SHORTLISTS if size < len(codes)), len(codes)):
        unq.search(model, codes, data.queries, RANKS[-1], shortlist)  # compiles
        begin = time.perf_counter()
        found = unq.search(model, codes, data.queries, RANKS[-1], shortlist)
        seconds = time.perf_counter() - begin
        row = {"codec": "unq", "bytes": num_bytes, "shortlist": shortlist}
        recall = {f"recall@{k}": recall_at(data, nearest, found[:, :k]) for k in RANKS}
        milliseconds = {"query_ms": round(1e3 * seconds / len(found), 3)}
        rows.append({**row, **recall, **milliseconds, "dataset": data.name, **facts})
        results.write(rows, task.folder / results.RESULTS)
        click.echo(
            f"shortlist {shortlist}: {milliseconds['query_ms']} ms a query, "
            + ", ".join(f"R@{k} {100 * recall[f'recall@{k}']:.1f}" for k in RANKS)
        )


def recall_at(data, nearest, found):
    """The share of queries that find a row as near as their nearest [Q, 1] among `found` [Q, k]."""
    hits = [
        distance(query, data.database[own]).min() <= distance(query, data.database[best]).min()
        for query, best, own in zip(data.queries, nearest, found, strict=True)
    ]
    return float(np.mean(hits))


def distance(query, rows):
    return np.square(np.float64(query) - np.asarray(rows, np.float64)).sum(axis=-1)


if __name__ == "__main__":
    main()
