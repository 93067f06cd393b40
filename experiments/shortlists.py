"""Fewer codes for the network to decode: shortlists cut by rough distance, or after a few steps.

    python experiments/shortlists.py --index INDEX --codes CODES --dataset PATH --out FILE

INDEX and CODES are those that `nearest.py` leaves in a run's folder. The scan names 100 codes of 64
lists for each query, of which these go to the network:
- `fixed`: the best S;
- `threshold`: at least 10, and all whose rough distance is at most so far behind the tenth's;
- `stopped`: ten more at a time, until the next rough distance, less so many standard deviations of
  its error, is behind the tenth best that the network found;
- `dropped`: the best S are decoded for m steps, what is left over is approximated by tables fitted
  for that, and the best of them are decoded to the end.
`evaluations` counts those of the network, in whole codes. Only recall is measured, not time.
"""

from pathlib import Path

import click
import numpy as np

import qinco_jax as qj
from qinco_jax.evaluate import results
from qinco_jax.models import codes as code_files
from qinco_jax.quantizers import additive, packing
from qinco_jax.search import scan

CODES, PROBES, K = 100, 64, 10
FITTED_ROWS = 60_000


def shortlists(index, queries):
    """Rough and network distances and ids, [Q, 100] each, in the order of the scan."""
    rough, near, ids = [], [], []
    for begin in range(0, len(queries), 250):
        block = index._queries(queries[begin : begin + 250])
        found = scan.search(index.lists, len(index.tables), block, CODES, PROBES, 64, None)
        rough.append(index._rough(block, *found))
        near.append(index._distances(index.prepared, block, *found))
        ids.append(found[1])
    return np.concatenate(rough), np.concatenate(near), np.concatenate(ids)


def row(kind, setting, evaluations, chosen, near, ids, truth):
    """What re-ranking the chosen codes [Q, 100] finds."""
    order = np.argsort(np.where(chosen, near, np.inf), axis=1)[:, :K]
    hits = np.take_along_axis(ids, order, axis=1) == truth
    found = {"recall@1": float(hits[:, 0].mean()), "recall@10": float(hits.any(axis=1).mean())}
    return {"kind": kind, "setting": setting, "evaluations": float(evaluations), **found}


def stopped(rough, near, deviations):
    """The codes [Q, 100] that are decoded until the rest cannot win."""
    error, spread = (near - rough).mean(), (near - rough).std()
    chosen = np.zeros(rough.shape, bool)
    for number in range(len(rough)):
        count = K
        while count < CODES:
            tenth = np.partition(near[number, :count], K - 1)[K - 1]
            if rough[number, count] + error - deviations * spread > tenth:
                break
            count += K
        chosen[number, :count] = True
    return chosen


def dropped(model, codes, x, queries, ids, num_steps):
    """Distances [Q, 100] by so many steps of the network and tables for what they leave."""
    part = np.asarray(qj.decode(model, codes[:, :num_steps]))
    some = slice(0, FITTED_ROWS)
    left = np.asarray(x[some], np.float32) - part[some]
    tables = additive.fit([(codes[some], left)], codes.shape[1], model.codebook_size, model.dim)
    part = part + additive.decode(tables, codes)
    found = np.empty(ids.shape)
    for number, (query, own) in enumerate(zip(queries, ids, strict=True)):
        found[number] = np.square(query - part[own]).sum(axis=1)
    return found


def tried(index, codes, x, queries, truth):
    """A row for each way of choosing codes, and each setting of it."""
    rough, near, ids = shortlists(index, queries)
    given, places, num_steps = (near, ids, truth), np.arange(CODES), index.model.num_steps
    spread = (near - rough).std()
    for size in (10, 15, 20, 30, 50, 100):
        yield row("fixed", {"S": size}, size, np.broadcast_to(places < size, ids.shape), *given)
    for share in (0.25, 0.5, 1.0):
        chosen = (rough <= rough[:, K - 1 : K] + share * spread) | (places < K)
        yield row("threshold", {"spreads": share}, chosen.sum(axis=1).mean(), chosen, *given)
    for deviations in (0.0, 0.5, 1.0):
        chosen = stopped(rough, near, deviations)
        mean = chosen.sum(axis=1).mean()
        yield row("stopped", {"deviations": deviations}, mean, chosen, *given)
    for steps in (2, 3, 4):
        half = dropped(index.model, codes, x, queries, ids, steps)
        for size, kept in ((50, 15), (50, 20), (50, 30)):
            order = np.argsort(np.where(places < size, half, np.inf), axis=1)[:, :kept]
            chosen = np.zeros(ids.shape, bool)
            np.put_along_axis(chosen, order, True, axis=1)
            cost = (size * (steps - 1) + kept * (num_steps - steps)) / (num_steps - 1)
            yield row("dropped", {"S": size, "m": steps, "kept": kept}, cost, chosen, *given)


@click.command()
@click.option("--index", "path", required=True, help="of a model without centroids, by L2")
@click.option("--codes", required=True, help="of the same database")
@click.option("--dataset", required=True, metavar="PATH")
@click.option("--num-queries", default=2000, show_default=True)
@click.option("--out", required=True, help="file of the results")
def main(path, codes, dataset, num_queries, out):
    """Tries all, prints and writes what each finds."""
    index, data = qj.search.load(path), qj.datasets.load(dataset)
    packed = np.asarray(code_files.read(codes, index.model))
    queries = np.asarray(data.queries[:num_queries], np.float32)
    truth = np.asarray(data.groundtruth[:num_queries, :1])
    unpacked = packing.from_rows(packed, index.model.config)
    rows = list(tried(index, unpacked, data.database, queries, truth))
    for found in rows:
        print(" ".join(f"{name} {value}" for name, value in found.items()))
    results.write(rows, Path(out))


if __name__ == "__main__":
    main()
