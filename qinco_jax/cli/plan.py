"""`qinco plan`: what an index of many vectors will take, by a minute of measuring.

A model of the preset, untrained, indexes random clustered vectors of the question's dimensions at a
few small sizes. What grows with the number of vectors is carried on along the line through these.
On several machines like this one each has a shard: it scans its own lists for every query, and
ranks the shortlists of its share of the queries.
"""

import functools
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import click
import jax
import numpy as np

from qinco_jax.cli.estimates import duration
from qinco_jax.cli.numbers import Integer
from qinco_jax.codecs import named
from qinco_jax.config import MAX_WIDTH, PRESETS, QincoConfig
from qinco_jax.quantizers import coding, packing
from qinco_jax.quantizers.chunks import num_cores
from qinco_jax.quantizers.coarse import train_centroids
from qinco_jax.search import scan
from qinco_jax.search.build import FITTED_ROWS, MOST_LISTS, ROWS_PER_LIST, build
from qinco_jax.search.index import Index
from qinco_jax.training.estimate import costs
from qinco_jax.training.logs import stage_bar
from qinco_jax.training.recipe import Recipe, length, with_mix
from qinco_jax.training.train import train
from qinco_jax.words import counted, format_size

SIZES = 20_000, 60_000, 200_000  # vectors of the measured index
TRAINED, ENCODED, QUERIES, REPEATS = 4096, 1024, 256, 2
LISTS, PROBES, RERANKED, NEIGHBOURS = 64, 16, 20, 10
ROWS_PER_CENTROID, ITERATIONS = 256, 10  # of k-means, as `train_centroids` has them
CLUSTERS = 64
ID_BYTES = 8


class Line(NamedTuple):
    """A straight line through measurements, at least 0 everywhere."""

    start: float
    slope: float

    def at(self, size: float) -> float:
        """Its value."""
        return self.start + self.slope * size


class Speeds(NamedTuple):
    """What was measured, in seconds.

    Attributes:
      encode: a vector.
      fit: a multiply-add of k-means.
      add: of a number of vectors by their codes, also to decode them.
      query: of a number of codes that a query scans, also to re-rank.
      rank: the part of `query` that is re-ranking.
      lists: to compare a query with a list.
    """

    encode: float
    fit: float
    add: Line
    query: Line
    rank: float
    lists: float


@click.command()
@click.option("--rows", required=True, type=Integer(1), help="vectors, such as 1e9")
@click.option("--dim", required=True, type=Integer(2, MAX_WIDTH), help="D, their dimensions")
@click.option("--bytes", "num_bytes", default=8.0, show_default=True, help="of a code")
@click.option("--preset", default="small", show_default=True, help=", ".join(PRESETS))
@click.option("--num-lists", type=Integer(1),
              help="L, inverted lists [default: one for 39 vectors, at most 4,096]")  # fmt: skip
@click.option("--machines", "counts", multiple=True, type=Integer(1), default=(1,),
              help="that a search is shared by, like this one; may be given again")  # fmt: skip
@click.option("--train-rows", multiple=True, type=Integer(1),
              help="also tells what training on so many takes; may be given again")  # fmt: skip
def plan(
    rows: int, dim: int, num_bytes: float, preset: str, num_lists: int | None,
    counts: Sequence[int], train_rows: Sequence[int],
) -> None:  # fmt: skip
    """Tells what an index will take on this machine: bytes, hours, queries a second.

    Measures for about a minute, and says what each figure assumes.

    For example:

        qinco plan --rows 1e9 --dim 128 --bytes 8 --machines 4
    """
    config, recipe = named.sized(preset, num_bytes, ())
    config = config.for_dim(dim)
    lists = num_lists or max(1, min(MOST_LISTS, rows // ROWS_PER_LIST))
    with stage_bar("measuring on random vectors"):
        index, speeds = _measured(config, dim)
        trained = [_training(config, recipe, count, dim) for count in train_rows]
    click.echo(
        f"{rows:,} vectors of {dim} dimensions at {counted(num_bytes, 'byte')}, "
        f"{counted(lists, 'list')}:"
    )
    found = _lines(index, speeds, rows, lists)
    for count in counts:
        found += _searching(index, speeds, rows, lists, count)
    for what, figure, assumed in [*found, *trained]:
        begin = f"  {what:17} {figure:>12}   "
        click.echo(textwrap.fill(
            assumed, 100, initial_indent=begin, subsequent_indent=" " * len(begin)
        ))  # fmt: skip


Told = tuple[str, str, str]
"""What takes something, how much, and what that assumes."""


def _lines(index: Index, speeds: Speeds, rows: int, lists: int) -> list[Told]:
    """What it takes to make the index."""
    dim, (width, dtype) = index.model.dim, packing.row_shape(index.model.config)
    fitted = min(rows, FITTED_ROWS) * speeds.encode
    fitted += speeds.fit * ITERATIONS * min(rows, ROWS_PER_CENTROID * lists) * lists * dim
    encoding, codes = rows * speeds.encode, rows * width * dtype.itemsize
    adding = speeds.add.at(rows) + rows * speeds.lists * min(lists, scan.FLAT)
    return [
        ("file of codes", format_size(codes), "as `qinco encode` writes"),
        ("encoding", duration(encoding),
         f"{_work(encoding)}; {1 / speeds.encode:,.0f} vectors a second with the preset's search, "
         f"all the same; reads {format_size(4 * rows * dim)} of float32, writes the codes; on "
         "several machines each takes its share"),
        ("building", duration(fitted + adding),
         f"{_work(fitted + adding)}, without encoding: fit {duration(fitted)}; add by codes "
         f"{duration(adding)}, in proportion, from {SIZES[0]:,} to {SIZES[-1]:,} vectors"),
    ]  # fmt: skip


def _searching(index: Index, speeds: Speeds, rows: int, lists: int, count: int) -> list[Told]:
    """What a search takes of each of a number of machines, and what they answer together."""
    dim, each = index.model.dim, -(-rows // count)
    fixed = 2 * (4 * dim * lists + index.tables.nbytes)  # ours and Faiss's
    held = each * (index.code_bytes + ID_BYTES) + fixed
    scanned = each * min(PROBES, lists) / lists
    query = speeds.query.at(scanned) + speeds.lists * min(lists, scan.FLAT)
    query -= speeds.rank * (1 - 1 / count)
    point = f"{PROBES} probes, {RERANKED} re-ranked, {NEIGHBOURS} neighbours"
    on = "" if count == 1 else f"on {count}: "
    sizes = f"{SIZES[0]:,} to {SIZES[-1]:,}"
    found = [
        (f"{on}in memory", format_size(held),
         f"{'' if count == 1 else 'each; '}codes and a byte for distances ({index.code_bytes}), "
         f"ids ({ID_BYTES}), {format_size(fixed)} for lists and decoder; as much in files; twice "
         "the codes while vectors are added"),
        (f"{on}queries/s", f"{1 / query:,.3g}",
         f"{point}, {QUERIES} a call, {scanned:,.0f} codes scanned each, in proportion, from "
         f"{sizes} vectors in {LISTS} lists; lists of equal size, all in memory"),
    ]  # fmt: skip
    if count > 1:
        entry = index.code_bytes + 20  # score, id, list
        sent = count * (4 * dim + RERANKED * entry) + RERANKED * entry + 4 * dim + 12 * NEIGHBOURS
        found.append((
            f"{on}network", f"{format_size(sent)}/query",
            f"at the front end, both ways: the query to {count} shards, their shortlists back, the "
            f"best {RERANKED} to one; {format_size(round(sent / query))} a second at that rate",
        ))  # fmt: skip
    return found


def _training(config: QincoConfig, recipe: Recipe, rows: int, dim: int) -> Told:
    """What training on so many rows takes by a recipe, and a pass over all of them."""
    x = _clustered(TRAINED, dim)
    found = costs(x, x[:ENCODED], config, with_mix(recipe, 0.0))
    batch_size, _, batches = length(recipe, rows)
    seconds, passed = found.start + batches * found.batch, rows / batch_size * found.batch
    return (
        f"train {rows:,}", duration(seconds),
        f"{_work(seconds)}; {batches:,} batches of {batch_size:,} as the preset's recipe has them, "
        f"which see each row {batches * batch_size / rows:.2g} times; one pass over all takes "
        f"{duration(passed)} ({_work(passed)}) and reads {format_size(4 * rows * dim)} of float32, "
        f"which the host should hold in memory; the state takes {format_size(found.state_bytes)}; "
        "without validations and compiling",
    )  # fmt: skip


def _work(seconds: float) -> str:
    """Core-hours of this machine, or card-hours where it has accelerators."""
    on_cpu = jax.default_backend() == "cpu"
    count, unit = (num_cores(), "core") if on_cpu else (jax.local_device_count(), "card")
    return f"{seconds * count / 3600:,.3g} {unit}-hours"


def _measured(config: QincoConfig, dim: int) -> tuple[Index, Speeds]:
    """An index of random vectors with a model of that size, and how fast all is."""
    rng, x = np.random.default_rng(0), _clustered(TRAINED, dim)
    model = train(x, config, num_epochs=0)
    codes, encoding = _timed(lambda: np.asarray(coding.encode(model, x[:ENCODED])))
    _, clustering = _timed(lambda: train_centroids(x, LISTS, num_iters=ITERATIONS))
    index = build(model, x, LISTS, max_rows=ENCODED)
    add, query = _grown(index, codes, x[:QUERIES], rng)
    (_, ranked), (_, scanned) = (
        _timed(functools.partial(_asked, index, x[:QUERIES], count)) for count in (RERANKED, 0)
    )
    rank = min(max(0.0, (ranked - scanned) / QUERIES), query.start)
    _, comparing = _timed(lambda: scan.nearest_lists(index.lists, x, x[:QUERIES]))
    fit = clustering / (ITERATIONS * len(x) * LISTS * dim)
    return index, Speeds(encoding / ENCODED, fit, add, query, rank, comparing / (QUERIES * len(x)))


def _clustered(count: int, dim: int) -> np.ndarray:
    """Random vectors [N, D] float32 around some centers."""
    rng = np.random.default_rng(0)
    centers = 2 * rng.normal(size=(CLUSTERS, dim))
    noise = rng.normal(size=(count, dim))
    return (centers[rng.integers(CLUSTERS, size=count)] + noise).astype(np.float32)


def _asked(index: Index, queries: np.ndarray, num_reranked: int) -> Any:
    return index.search(queries, NEIGHBOURS, num_probes=PROBES, num_reranked=num_reranked)


def _grown(
    index: Index, codes: np.ndarray, queries: np.ndarray, rng: np.random.Generator
) -> tuple[Line, Line]:
    """Adds random codes, size by size: seconds of the adding by vectors, of a query by codes."""
    index.add(codes=codes)  # compiles
    begun = len(index)
    added, asked = list[tuple[float, float]](), list[tuple[float, float]]()
    for size in SIZES:
        more = codes[rng.integers(len(codes), size=begun + size - len(index))]
        free = more[:, more.shape[1] // 2 :]  # the first half keeps to the clusters
        free[:] = rng.integers(index.model.codebook_size, size=free.shape)
        begin = time.perf_counter()
        index.add(codes=more)
        before = added[-1][1] if added else 0.0
        added.append((size, before + time.perf_counter() - begin))
        _, seconds = _timed(lambda: _asked(index, queries, RERANKED))
        asked.append(((begun + size) * PROBES / LISTS, seconds / len(queries)))
    return _line(added), _line(asked)


def _line(points: Sequence[tuple[float, float]]) -> Line:
    """The line of least squares through (size, seconds), which neither begins nor falls below 0."""
    x, y = np.array(points).T
    slope, start = np.polyfit(x, y, 1)
    if start < 0:
        slope, start = (x * y).sum() / np.square(x).sum(), 0.0
    return Line(float(start), float(slope)) if slope > 0 else Line(float(y.mean()), 0.0)


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What a function returns, and the seconds of the fastest of some calls after the first."""
    found, seconds = function(), []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return found, min(seconds)
