"""How an index grows with its rows: time and memory to build, save, load and search it.

    python experiments/index_growth.py --out FILE

Rows are made by code: clusters with noise, the same for everyone. The model is a residual quantizer
in the form of the preset "small", as training starts from it, and encodes greedily with A = 1;
what an index costs after that does not depend on the weights. Memory is what loading the index adds
to a fresh process, model and lists included. Nothing else should run on the machine.
"""

import multiprocessing
import shutil
import time
from pathlib import Path

import click
import faiss
import jax
import numpy as np

import qinco_jax as qj
from qinco_jax.evaluate import machine, results
from qinco_jax.models import codes as code_files
from qinco_jax.quantizers import packing, rq
from qinco_jax.quantizers.untrained import init
from qinco_jax.vectors.stored import derived

DIM, NUM_CLUSTERS, NUM_NOISES = 128, 20_000, 65_536
TRAIN_ROWS, NUM_LISTS, NUM_QUERIES, K = 200_000, 4096, 1000, 10
SEARCH = {"num_probes": 16, "num_reranked": 20}
PRIMES = 2_654_435_761, 2_246_822_519, 3_266_489_917  # spread neighbouring numbers


def clustered(begin, count):
    """`count` vectors from number `begin` on, [N, D] float32, made as they are read."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(NUM_CLUSTERS, DIM)).astype(np.float32)
    noise = rng.normal(size=(NUM_NOISES, DIM)).astype(np.float32)

    def made(numbers):
        places = [((numbers[:, 0] * prime) % 2**32) >> 8 for prime in PRIMES]
        near = centers[places[0] % NUM_CLUSTERS]
        return near + 0.5 * (noise[places[1] % NUM_NOISES] + noise[places[2] % NUM_NOISES])

    return derived(np.arange(begin, begin + count, dtype=np.uint64)[:, None], made)


def resident():
    """Bytes of the process that lie in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def taken_by(path):
    """Bytes of memory that an index takes when it is loaded."""
    before = resident()
    index = qj.search.load(path)
    found = resident() - before
    del index
    return found


def seconds_of(run):
    begin = time.perf_counter()
    found = run()
    return time.perf_counter() - begin, found


def queries_per_second(index, queries):
    index.search(queries, K, **SEARCH)
    return len(queries) / min(
        seconds_of(lambda: index.search(queries, K, **SEARCH))[0] for _ in range(3)
    )


def untrained():
    x = np.asarray(clustered(0, 50_000))
    start = rq.train(x, 8, 256)
    return init(jax.random.key(0), qj.PRESETS["small"], start)


def measured(model, empty, num_rows, work):
    """A row: seconds a million rows, bytes a row, queries per second."""
    x, path = clustered(TRAIN_ROWS, num_rows), work / f"index-{num_rows}"
    row = filled(model, empty, x, work / f"codes-{num_rows}.npy", path)
    loading, index = seconds_of(lambda: qj.search.load(path))
    with multiprocessing.get_context("spawn").Pool(1) as fresh:  # without memory to use again
        memory = fresh.apply(taken_by, (path,))
    queries = np.asarray(clustered(TRAIN_ROWS + num_rows, NUM_QUERIES))
    mapping, mapped = seconds_of(lambda: qj.search.load(path, mmap=True))
    row |= {
        "loading_s": loading, "mapping_s": mapping,
        "memory_bytes_per_row": memory / num_rows,
        "file_bytes_per_row": sum(f.stat().st_size for f in path.rglob("*")) / num_rows,
        "queries_per_second": queries_per_second(index, queries),
        "queries_per_second_mapped": queries_per_second(mapped, queries),
    }  # fmt: skip
    shutil.rmtree(path)
    return {"vectors": num_rows, "lists": NUM_LISTS, **SEARCH} | row


def filled(model, empty, x, codes_path, path):
    """Saves an index of rows as `path`; seconds a million rows."""
    encoding, _ = seconds_of(
        lambda: code_files.write(codes_path, model, x, num_candidates=1, beam_size=1)
    )
    index, packed = qj.search.load(empty), code_files.read(codes_path, model)
    codes = derived(packed, lambda rows: packing.from_rows(rows, model.config))
    adding, _ = seconds_of(lambda: index.add(x, codes=codes))
    saving, _ = seconds_of(lambda: qj.search.disk.save(index, path))
    names = "encoding", "adding", "saving"
    seconds = zip(names, (encoding, adding, saving), strict=True)
    return {f"{name}_s_per_million": 1e6 * taken / len(x) for name, taken in seconds}


@click.command()
@click.option("--rows", default="100000,1000000,10000000", show_default=True)
@click.option("--work", default="runs/index-growth", show_default=True, help="folder, removed")
@click.option("--out", required=True, help="file of the results")
def main(rows, work, out):
    """Measures an index of each number of rows."""
    work, found = Path(work), []
    work.mkdir(parents=True)
    model = untrained()
    fitting, empty = seconds_of(
        lambda: qj.search.build(model, clustered(0, TRAIN_ROWS), NUM_LISTS, "l2")
    )
    print(f"fitted in {fitting:.0f} s on {faiss.omp_get_max_threads()} threads", flush=True)
    qj.search.disk.save(empty, work / "empty")
    for num_rows in map(int, rows.split(",")):
        facts = {name: machine.facts()[name] for name in ("cpu", "cores")}
        row = measured(model, work / "empty", num_rows, work)
        found.append(row | {"fitting_s": fitting} | facts)
        print(" ".join(f"{name} {value}" for name, value in found[-1].items()), flush=True)
        results.write(found, Path(out))
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
