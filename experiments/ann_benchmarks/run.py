"""What ann-benchmarks does with our adapter, without Docker: recall against queries a second.

    python experiments/ann_benchmarks/run.py SET.hdf5 --out FILE

SET.hdf5 is one of its sets: `train`, `test`, `neighbors`, `distances` and the attribute `distance`
(euclidean or angular). Every combination of arguments in `config.yml` is fitted; every combination
of query arguments is timed with one query after another and with all at once, three times, of which
the best counts. As there, a vector is found if it is as near as the k-th neighbour, to 0.001; k is
10. `--config` names another file, as for fewer combinations.
"""

import abc
import importlib
import itertools
import sys
import time
from pathlib import Path
from types import ModuleType

import click
import h5py
import numpy as np
import yaml

from qinco_jax.config import named
from qinco_jax.evaluate import results

FOLDER = Path(__file__).parent
COUNT = 10
RUNS = 3
EPSILON = 1e-3


class BaseANN(abc.ABC):
    """Stands in for the benchmarks' own class, which adapters inherit."""

    @abc.abstractmethod
    def fit(self, data):
        """Builds the index of all vectors."""

    @abc.abstractmethod
    def query(self, queries, count):
        """Searches."""

    def get_results(self):
        """What big-ann-benchmarks takes after a search."""
        return self.res


def stand_in(benchmark):
    """Makes this folder importable as BENCHMARK.algorithms.qinco_jax."""
    algorithms = f"{benchmark}.algorithms"
    base, own = f"{algorithms}.base", f"{algorithms}.qinco_jax"
    for name in (benchmark, algorithms, base, f"{base}.module", own):
        module = sys.modules.setdefault(name, ModuleType(name))
        if name != benchmark:
            module.__path__ = [str(FOLDER)] if name == own else []
            module.BaseANN = BaseANN


def filled_in(value, variables):
    """A value of the configuration with its variables, such as @metric, replaced."""
    if isinstance(value, dict):
        return {key: filled_in(part, variables) for key, part in value.items()}
    return variables.get(value, value) if isinstance(value, str) else value


def combinations(values):
    """All choices of one from each value that is a list."""
    return itertools.product(*(v if isinstance(v, list) else [v] for v in values))


def algorithms(config, metric):
    """The algorithms of a configuration, each with its combinations of query arguments."""
    variables = {"@metric": metric, "@count": COUNT}
    entries = yaml.safe_load(Path(config).read_text())["float"]
    for entry in named(entries, metric, "distance"):
        module = importlib.import_module(f"{entry['module']}.module")
        for group in entry["run_groups"].values():
            for chosen in combinations(group["args"].values()):
                params = dict(zip(group["args"], chosen, strict=True))
                arguments = [filled_in(value, variables) for value in [*entry["base_args"], params]]
                algorithm = getattr(module, entry["constructor"])(*arguments)
                yield algorithm, list(combinations(group["query_args"]))


def one_by_one(algorithm, queries):
    """Ids found for each query, and the seconds that the searches took."""
    found, seconds = [], 0.0
    for query in queries:
        begin = time.perf_counter()
        ids = algorithm.query(query, COUNT)
        seconds += time.perf_counter() - begin
        found.append(ids)
    return found, seconds


def at_once(algorithm, queries):
    """The same of all queries as a batch."""
    begin = time.perf_counter()
    algorithm.batch_query(queries, COUNT)
    seconds = time.perf_counter() - begin
    return algorithm.get_batch_results(), seconds


def recall(data, found):
    """The mean share of the k nearest neighbours that were found."""
    shares = []
    for query, known, ids in zip(data["test"], data["distances"], found, strict=True):
        assert len(ids) == len(set(ids)) <= COUNT
        rows = data["train"][ids]
        if data["metric"] == "angular":
            lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
            own = 1 - rows @ query / np.maximum(lengths, np.finfo(np.float32).tiny)
        else:
            own = np.linalg.norm(rows - query, axis=1)
        shares.append((own <= known[COUNT - 1] + EPSILON).sum() / COUNT)
    return float(np.mean(shares))


def measure(algorithm, query_arguments, data):
    """The results of a fitted algorithm at one setting, without and with batches."""
    algorithm.set_query_arguments(*query_arguments)
    for search in (one_by_one, at_once):
        runs = [search(algorithm, data["test"]) for _ in range(RUNS)]
        yield {
            "algorithm": str(algorithm),
            "metric": data["metric"],
            "batch": search is at_once,
            "recall": recall(data, runs[-1][0]),
            "queries_per_second": len(data["test"]) / min(seconds for _, seconds in runs),
            **algorithm.get_additional(),
        }


@click.command()
@click.argument("path")
@click.option("--config", default=FOLDER / "config.yml", show_default=True)
@click.option("--out", required=True, help="json lines of the results")
def main(path, config, out):
    """Fits and times every combination, prints its recall and rate."""
    stand_in("ann_benchmarks")
    with h5py.File(path) as file:
        data = {name: file[name][()] for name in ("train", "test", "distances")}
        data["metric"] = file.attrs["distance"]
    rows = []
    for algorithm, query_groups in algorithms(config, data["metric"]):
        begin = time.perf_counter()
        algorithm.fit(data["train"])
        built = {"build_seconds": time.perf_counter() - begin}
        for query_arguments in query_groups:
            for row in measure(algorithm, query_arguments, data):
                rows.append(row | built)
                kind = "batch" if row["batch"] else "single"
                rate = f"{row['queries_per_second']:,.0f} queries/s"
                print(f"{row['algorithm']}, {kind}: recall {row['recall']:.3f}, {rate}", flush=True)
    results.write(rows, out)


if __name__ == "__main__":
    main()
