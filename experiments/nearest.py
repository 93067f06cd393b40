"""Nearest neighbours from codes: recall against queries a second, beside what else is used.

    python experiments/nearest.py --model runs/sift-photos-small-8B --dataset PATH --out PREFIX

Side by side in one process, with the same codes of the same model:
- `ours`: `qinco_jax.search`, for several numbers of probed lists and re-ranked codes;
- `published`: the pipeline of QINCo and QINCo2, written for this benchmark: Faiss's IVF-RQ scans
  with the additive decoder's tables, the network decodes the shortlist, which is sorted by L2;
and Faiss's own codecs in as many lists: IVF-PQ, PQ fast-scan and IVF-RQ. `--extra FILE` adds more
vectors to the database. Bytes are those of a code without its id: ours and the additive decoders
keep one byte beside the model's codes. All points are timed in turn, `--rounds` times; a rate is
the median. Nothing else should run on the machine. Writes PREFIX.jsonl and PREFIX.png.
"""

import functools
import time
from pathlib import Path

import click
import faiss
import numpy as np

import qinco_jax as qj
from qinco_jax.evaluate import machine, results, style
from qinco_jax.evaluate.neighbours import nearest_neighbours
from qinco_jax.models import codes as code_files
from qinco_jax.quantizers import packing
from qinco_jax.vectors.shards import read_rows
from qinco_jax.vectors.stored import Stored

PROBES = 4, 16, 64
RERANKED = 0, 10, 20, 50
K = 10


class Published:
    """Additive tables in Faiss's IVF-RQ, then the network and a sort."""

    def __init__(self, index, x, codes):
        self.model, self.codes = index.model, codes
        tables, lists = index.tables, index.list_vectors
        steps, size, dim = tables.shape
        quantizer = faiss.IndexFlatL2(dim)
        quantizer.add(lists)
        bits = (size - 1).bit_length()
        self.index = faiss.IndexIVFResidualQuantizer(
            quantizer, dim, len(lists), steps, bits, faiss.METRIC_L2,
            faiss.AdditiveQuantizer.ST_norm_qint8,
        )  # fmt: skip
        self.index.by_residual = False
        faiss.copy_array_to_vector(tables.ravel(), self.index.rq.codebooks)
        rough = qj.search.additive.decode(tables, codes)
        norms = np.ascontiguousarray(np.square(rough).sum(axis=1), np.float32)
        self.index.rq.train_norm(len(norms), faiss.swig_ptr(norms))
        self.index.rq.is_trained = self.index.is_trained = True
        packed = np.zeros((len(codes), self.index.code_size), np.uint8)
        given = np.ascontiguousarray(codes, np.int32)
        self.index.rq.pack_codes(
            len(codes), faiss.swig_ptr(given), faiss.swig_ptr(packed), -1, faiss.swig_ptr(norms)
        )
        _, owner = faiss.knn(np.asarray(x, np.float32), lists, 1)
        qj.search.scan.add(self.index, owner[:, 0], packed, np.arange(len(codes)))

    def search(self, queries, num_probes, num_reranked):
        """Ids [Q, K]."""
        self.index.nprobe = num_probes
        _, ids = self.index.search(queries, max(K, num_reranked))
        if not num_reranked:
            return ids[:, :K]
        flat = np.where(ids < 0, 0, ids).ravel()
        x_hat = np.asarray(qj.decode(self.model, self.codes[flat])).reshape(*ids.shape, -1)
        found = np.square(queries[:, None] - x_hat).sum(axis=2)
        found[ids < 0] = np.inf
        return np.take_along_axis(ids, np.argsort(found, axis=1)[:, :K], axis=1)


def of_faiss(factory, x_train, x):
    """One of Faiss's own indexes, filled."""
    index = faiss.index_factory(x.shape[1], factory)
    index.train(np.asarray(x_train, np.float32))
    for begin in range(0, len(x), 65536):
        index.add(np.asarray(x[begin : begin + 65536], np.float32))
    return index


def searching(index, num_probes, queries):
    index.nprobe = num_probes
    return index.search(queries, K)[1]


def codes_of(model, x, folder):
    """The database's codes, encoded once and kept."""
    path = Path(folder) / "codes.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        code_files.write(path, model, x, beam_size=16)
    return packing.from_rows(np.asarray(code_files.read(path, model)), model.config)


def index_of(model, data, x, codes, lists, metric, folder):
    """The index, built once and kept."""
    path = Path(folder) / f"index-{lists}-{metric}"
    if not path.exists():
        begin = time.perf_counter()
        index = qj.search.build(model, data.train, lists, metric)
        built = time.perf_counter()
        index.add(x, codes=codes)
        added = time.perf_counter() - built
        print(f"fitted in {built - begin:.0f} s, {len(x):,} vectors added in {added:.0f} s")
        qj.search.disk.save(index, path)
    return qj.search.load(path)


def contenders(index, published, faiss_indexes, queries):
    """(system, bytes, settings, search) of all points."""
    points = []
    for probes in PROBES:
        for reranked in RERANKED:
            settings = {"num_probes": probes, "num_reranked": reranked}
            run = functools.partial(index.search, queries, K, **settings)
            points.append(("ours", index.code_bytes, settings, lambda run=run: run()[1]))
            if published is not None:
                run = functools.partial(published.search, queries, **settings)
                points.append(("published", published.index.code_size, settings, run))
        for name, other in faiss_indexes.items():
            run = functools.partial(searching, other, probes, queries)
            points.append((name, other.code_size, {"num_probes": probes}, run))
    return points


def front(rows):
    """The rows that no other beats in both recall@1 and speed, the fastest first."""
    rows = sorted(rows, key=lambda row: -row["queries_per_second"])
    best = np.maximum.accumulate([row["recall@1"] for row in rows])
    return [row for row, so_far, before in zip(rows, best, [0, *best], strict=False)
            if so_far > before]  # fmt: skip


def speed_at(rows, recall):
    """The queries per second of the fastest point that reaches a recall@1; 0 if none does."""
    return max((r["queries_per_second"] for r in rows if r["recall@1"] >= recall), default=0.0)


def recalls(found, truth):
    """What ids [Q, K] find of the true neighbours [Q, at least K]."""
    pairs = zip(found, truth[:, :K], strict=True)
    return {
        "recall@1": float((found[:, 0] == truth[:, 0]).mean()),
        "recall@10": float((found == truth[:, :1]).any(axis=1).mean()),
        "10-recall@10": float(np.mean([len(np.intersect1d(*pair)) / K for pair in pairs])),
    }


def show(rows):
    """Prints each system's front, and how much faster ours is at each recall@1 of it."""
    systems = dict.fromkeys(row["system"] for row in rows)
    fronts = {s: front([row for row in rows if row["system"] == s]) for s in systems}
    own = [row for row in rows if row["system"] == "ours"]
    for system, found in fronts.items():
        for row in found:
            ratio = speed_at(own, row["recall@1"]) / row["queries_per_second"]
            print(
                f"{system:16} {row['bytes']:3} bytes, {row['num_probes']:4} lists, "
                f"{row.get('num_reranked', 0):4} re-ranked: R@1 {row['recall@1']:.3f}, R@10 "
                f"{row['recall@10']:.3f}, {row['queries_per_second']:8,.0f} queries/s; ours there "
                f"{ratio:.2f} times"
            )


def plot(rows, path, title):
    """Each system's front."""
    systems = dict.fromkeys(row["system"] for row in rows)
    with style.plot_style():
        figure, (axis,) = style.panels(1, title, height=4)
        looks = style.looks(systems)
        for system in systems:
            found = front([row for row in rows if row["system"] == system])
            recall, rates = (
                [row[name] for row in found] for name in ("recall@1", "queries_per_second")
            )
            axis.plot(recall, rates, **looks[system])
        style.log_axis(axis, "y")
        axis.set_xlabel("recall@1")
        axis.set_ylabel("queries a second")
        style.finish(figure, style.lines(looks))
        style.save(figure, path)


@click.command()
@click.option("--model", required=True)
@click.option("--dataset", default="sift-photos", show_default=True)
@click.option("--extra", help="more vectors for the database")
@click.option("--lists", default=1024, show_default=True)
@click.option("--metric", default="l2", show_default=True)
@click.option("--num-queries", default=2000, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--work", default="runs/nearest", show_default=True, help="folder of the codes")
@click.option("--out", required=True, help="prefix of the results")
def main(model, dataset, extra, lists, metric, num_queries, rounds, work, out):
    """Builds all indexes, times their points in turn, prints the fronts."""
    model, data = qj.load(model), qj.datasets.load(dataset)
    x = data.database if extra is None else Stored([data.database, read_rows(extra)])
    queries = np.asarray(data.queries[:num_queries], np.float32)
    if metric == "cosine":
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    known = data.groundtruth is not None and extra is None
    truth = data.groundtruth[:num_queries] if known else nearest_neighbours(x, queries, K, metric)
    codes = codes_of(model, x, work)
    residual = model.config.num_centroids is not None
    index = index_of(model, data, x, codes, None if residual else lists, metric, work)
    print(f"distances are read off by {index.reading.kind}", flush=True)
    published = None if residual or metric != "l2" else Published(index, x, codes)
    num_bytes = sum(size.bit_length() - 1 for size in model.column_sizes[residual:]) // 8
    factories = {
        f"IVF-PQ{num_bytes}": f"IVF{lists},PQ{num_bytes}x8",
        f"PQ{2 * num_bytes} fast-scan": f"IVF{lists},PQ{2 * num_bytes}x4fsr",
        f"IVF-RQ{num_bytes}": f"IVF{lists},RQ{num_bytes}x8_Nqint8",
    }
    faiss_indexes = {name: of_faiss(text, data.train, x) for name, text in factories.items()}
    points, rows = contenders(index, published, faiss_indexes, queries), []
    seconds = np.zeros((rounds, len(points)))
    for round_number in range(-1, rounds):  # the first one compiles
        for place, (_, _, _, run) in enumerate(points):
            begin = time.perf_counter()
            found = run()
            if round_number < 0:
                rows.append(recalls(found, truth))
            else:
                seconds[round_number, place] = time.perf_counter() - begin
    facts = {"vectors": len(x), "metric": metric, "lists": len(index.list_vectors)}
    facts |= {name: machine.facts()[name] for name in ("cpu", "cores")}
    for place, (system, size, settings, _) in enumerate(points):
        rate = len(queries) / float(np.median(seconds[:, place]))
        own = {"system": system, "bytes": int(size), **settings, "queries_per_second": rate}
        rows[place] = own | rows[place] | facts
    results.write(rows, Path(f"{out}.jsonl"))
    show(rows)
    plot(rows, f"{out}.png", f"{len(x):,} vectors of {Path(dataset).name}")


if __name__ == "__main__":
    main()
