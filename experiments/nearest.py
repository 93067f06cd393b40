"""Nearest neighbours from codes: recall against queries a second, beside what else is used.

    make search
    python experiments/nearest.py --dataset PATH --model runs/sift-photos-small-8B --out FOLDER

Takes the model of `make train`, or trains it, encodes the database, builds an index and tunes it;
model, codes and index stay in the run's folder, and what is there is not made again. Then these are
timed in one process, over the same vectors in as many lists:
- `ours`: `qinco_jax.search`, at a grid of settings and at the tuned ones;
- `published`: the pipeline of the papers at the same grid (`rivals.py`), by L2 and cosine;
- Faiss's own IVF-PQ, PQ fast-scan and IVF-RQ;
and `exhaustive` is what a search over all reconstructions finds, read off plainly.

Bytes are what an index keeps of a vector, without its id and without the number of its list. Ours
are those of the code and one or two for distances; Faiss's indexes get as many, the last byte of
its RQ being a norm, and the published pipeline has one beside the code. All points are timed in
turn, `--rounds` times; a rate is the median. Nothing else should run on the machine. FOLDER, by
default that of `make eval`, gets nearest.jsonl, plots, and a section of report.html.
"""

import functools
import hashlib
import json
import time
from pathlib import Path

import click
import numpy as np
import rivals

import qinco_jax as qj
from qinco_jax.cli import indexing, measure
from qinco_jax.codecs.named import sized
from qinco_jax.evaluate import machine, nearest, points, report
from qinco_jax.evaluate.neighbours import nearest_neighbours, queries_of
from qinco_jax.files import path_of
from qinco_jax.interrupts import Interrupted
from qinco_jax.models import codes as code_files
from qinco_jax.models.disk import FINISHED, IDENTITY
from qinco_jax.quantizers import packing
from qinco_jax.search import disk, distance
from qinco_jax.training.logs import run_log, stage_bar
from qinco_jax.training.train import split
from qinco_jax.vectors.shards import read_rows
from qinco_jax.vectors.stored import Stored, derived, fingerprint

PROBES = 4, 16, 64
RERANKED = 0, 10, 20, 50
K = 10
BEAM = 16  # of the database's codes


def model_of(path, data, sizes, preset, is_set):
    """The model at a path, or that of `make train`, and the folder for what is made of it."""
    if path is not None:
        place = path_of(path)
        is_run = (place / IDENTITY).exists()
        return qj.load(place), place if is_run else Path(f"runs/search-{place.stem}")
    config, recipe = sizes
    folder = Path(f"runs/{data.name}-{preset}-{config.bits / 8:g}B")
    if (folder / FINISHED).exists() and not is_set:
        return qj.load(folder), folder
    with run_log(folder) as (log, advance):
        model = qj.train(
            data.train, config, recipe, x_val=data.validation, run_dir=folder, log=log,
            advance=advance,
        )  # fmt: skip
    return model, folder


def index_of(model, name, x_train, x, lists, metric, folder):
    """The index and its codes [N, columns], made once and kept."""
    origin = json.dumps([code_files.model_fingerprint(model), fingerprint(x)])
    key = f"{name}-{hashlib.sha256(origin.encode()).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    codes, target = folder / f"codes-{key}.npy", folder / f"index-{key}-{lists}-{metric}"
    if not codes.exists():
        with stage_bar("encoding") as advance:
            code_files.write(codes, model, x, beam_size=BEAM, advance=advance)
    if not target.exists():
        num_lists = None if model.config.num_centroids else lists
        made = {"dataset": name}
        indexing.build(
            target, model, x_train, x, str(codes), made, num_lists=num_lists, metric=metric
        )
    return qj.search.load(target), code_files.read(codes, model), target


def tune(index, target, queries, truth):
    """Measures the operating points, unless the index has some, and keeps them with it."""
    if not any(point["k"] == K for point in index.points):
        with stage_bar("tuning"):
            index.tune(queries, truth, K)
        disk.save_points(index, target)
    print(points.markdown([point for point in index.points if point["k"] == K]))


def contenders(index, published, others, queries):
    """(system, bytes, settings, search) of all points."""
    grid = [(probes, reranked) for probes in PROBES for reranked in RERANKED]
    tuned = [(p["num_probes"], p["num_reranked"]) for p in index.points if p["k"] == K]
    found = []
    for probes, reranked in sorted({*grid, *tuned}):
        settings = {"num_probes": probes, "num_reranked": reranked}
        ours = functools.partial(index.search, queries, K, **settings)
        found.append((nearest.OURS, index.code_bytes, settings, lambda run=ours: run()[1]))
        if published is not None and (probes, reranked) in grid:
            run = functools.partial(published.search, queries, K, **settings)
            found.append(("published", published.index.code_size, settings, run))
    for name, other in others.items():
        for probes in PROBES:
            run = functools.partial(other.search, queries, K, probes)
            found.append((name, other.inverted.code_size, {"num_probes": probes}, run))
    return found


def recalls(found, truth):
    """What ids [Q, K] find of the true neighbours [Q, at least K]."""
    pairs = zip(found, truth[:, :K], strict=True)
    return {
        "recall@1": float((found[:, 0] == truth[:, 0]).mean()),
        "recall@10": float((found == truth[:, :1]).any(axis=1).mean()),
        "10-recall@10": float(np.mean([len(np.intersect1d(*pair)) / K for pair in pairs])),
    }


def timed(points, num_queries, truth, rounds):
    """A row for each point; the first round compiles."""
    rows, seconds = [], np.zeros((rounds, len(points)))
    with stage_bar(f"timing {len(points)} points") as advance:
        for number in range(-1, rounds):
            for place, (system, size, settings, run) in enumerate(points):
                begin = time.perf_counter()
                found = run()
                if number < 0:
                    own = {"system": system, "bytes": int(size), **settings}
                    rows.append(own | recalls(found, truth))
                else:
                    seconds[number, place] = time.perf_counter() - begin
            advance(number + 2, rounds + 1)
    rates = num_queries / np.median(seconds, axis=0)
    return [row | {nearest.SPEED: float(rate)} for row, rate in zip(rows, rates, strict=True)]


def exhaustive(model, codes, queries, truth, metric):
    """The row of brute force over the network's reconstructions."""
    unpacked = derived(codes, lambda rows: packing.from_rows(rows, model.config))
    x_hat = derived(unpacked, lambda rows: np.asarray(qj.decode(model, rows)))
    found = nearest_neighbours(x_hat, queries, K, metric)
    return {"system": nearest.EXHAUSTIVE, "bytes": code_bytes(model), **recalls(found, truth)}


def code_bytes(model):
    """Bytes of a code, without the number of its list."""
    return (model.config.bits - model.config.coarse_bits) / 8


def facts(data, index, num_queries):
    """What all rows share."""
    found = machine.facts()
    return {
        "dataset": data.name,
        "vectors": len(index),
        "model_bytes": code_bytes(index.model),
        "lists": len(index.list_vectors),
        "metric": index.metric,
        "residual": bool(index.lists.by_residual),
        "num_queries": num_queries,
        "versions": {n: found[f"{n}_version"] for n in ("jax", "numpy", "faiss-cpu")},
        "machine": f"{found['cpu']}, {found['cores']} cores, {found['device']}",
        "revision": found["revision"],
        "date": found["date"],
    }


def fitting_lists(num_rows, num_train):
    """A usual number of lists for a database: the power of 2 up to 4 times the root of its rows."""
    wanted = min(4 * num_rows**0.5, num_train / 39)
    return 2 ** max(0, int(np.log2(wanted)))


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--dataset", default="sift-photos", show_default=True, metavar="NAME|PATH")
@click.option("--preset", default="small", show_default=True, help="of the model to train")
@click.option("--bytes", "num_bytes", default=8.0, show_default=True, help="of the model to train")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="of the same")
@click.option("--model", help="a trained model, also of other vectors")
@click.option("--extra", metavar="FILE", help="more vectors for the database")
@click.option("--lists", type=int, help="[default: by the size of the database]")
@click.option("--metric", help="l2, ip or cosine [default: the set's own, or l2]")
@click.option("--num-queries", default=1000, show_default=True)
@click.option("--tune/--no-tune", "tuned", default=True, show_default=True,
              help="find settings by `Index.tune`, which takes minutes")  # fmt: skip
@click.option("--rounds", default=3, show_default=True, help="timings of a point")
@click.option("--out", help="folder of the results [default: runs/compare-DATASET]")
def main(out, **given):
    try:
        search(out, **given)
    except (qj.InputError, Interrupted) as error:
        raise click.ClickException(str(error)) from error


def search(
    out, dataset, preset, num_bytes, settings, model, extra, lists, metric, num_queries, tuned,
    rounds,
):  # fmt: skip
    """Makes what is missing, times all points, and writes and prints the results."""
    data = qj.datasets.load(dataset)
    sizes = sized(preset, num_bytes, settings)
    kept, held_back = split(data.train, data.validation, sizes[1])
    data = measure.complete(data, held_back if len(held_back) else kept)
    model, folder = model_of(model, data, sizes, preset, bool(settings))
    metric = metric or ("cosine" if model.config.unit_norm else data.metric or "l2")
    x = data.database if extra is None else Stored([data.database, read_rows(extra)])
    lists = model.config.num_centroids or lists or fitting_lists(len(x), len(kept))
    queries = np.asarray(data.queries[:num_queries], np.float32)
    truth = neighbours_of(queries, x, metric, data, extra)
    index, codes, target = index_of(model, data.name, kept, x, lists, metric, folder / "search")
    if tuned:
        tune(index, target, queries, truth)
    if metric == "cosine":
        queries = distance.in_space(queries, metric, 0)
    published = None
    if rivals.is_by_l2(index, x):
        unpacked = packing.from_rows(np.asarray(codes), model.config)
        published = rivals.Published(index, unpacked)
    others = {}
    for name, factory in rivals.factories(x.shape[1], lists, index.code_bytes).items():
        with stage_bar(f"{name}, {factory}"):
            others[name] = rivals.OfFaiss(factory, metric, kept, x)
    rows = timed(contenders(index, published, others, queries), len(queries), truth, rounds)
    rows.append(exhaustive(model, codes, queries, truth, metric))
    folder = path_of(out or f"runs/compare-{data.name}")
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row | facts(data, index, len(queries)) for row in rows]
    nearest.add(rows, folder)
    page = report.write_page(folder)
    print(nearest.markdown(rows))
    print(nearest.finding(rows))
    print(f"page: {page}   results: {folder / nearest.NEAREST}   index: {target}")


def neighbours_of(queries, x, metric, data, extra):
    """The rows [Q, at least K] truly nearest; a given ground truth is checked."""
    truth = data.groundtruth if extra is None and metric == (data.metric or "l2") else None
    if truth is None or truth.shape[1] < K:
        with stage_bar(f"exact neighbours of {len(queries):,} queries"):
            return nearest_neighbours(x, queries, K, metric)
    truth = np.asarray(truth[: len(queries)])
    queries_of(queries, x, metric, truth)
    return truth


if __name__ == "__main__":
    main()
