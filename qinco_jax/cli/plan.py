"""`qinco plan`: what an index of many vectors will take, by a minute of measuring.

A model of the preset, untrained, indexes random clustered vectors of the question's dimensions at a
few small sizes. What grows with the number of vectors is carried on along the line through these.
"""

import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import click
import numpy as np

from qinco_jax.cli.estimates import duration
from qinco_jax.codecs import named
from qinco_jax.config import PRESETS, QincoConfig
from qinco_jax.datasets.official import format_size
from qinco_jax.errors import InputError
from qinco_jax.quantizers import coding, packing
from qinco_jax.quantizers.coarse import train_centroids
from qinco_jax.search import scan
from qinco_jax.search.build import FITTED_ROWS, MOST_LISTS, ROWS_PER_LIST, build
from qinco_jax.search.index import Index
from qinco_jax.training.logs import stage_bar
from qinco_jax.training.train import train

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
      lists: to compare a query with a list.
    """

    encode: float
    fit: float
    add: Line
    query: Line
    lists: float


@click.command()
@click.option("--rows", required=True, type=float, help="vectors, such as 1e9")
@click.option("--dim", required=True, type=click.IntRange(min=2), help="D, their dimensions")
@click.option("--bytes", "num_bytes", default=8.0, show_default=True, help="of a code")
@click.option("--preset", default="small", show_default=True, help=", ".join(PRESETS))
@click.option("--num-lists", type=click.IntRange(min=1),
              help="L, inverted lists [default: one for 39 vectors, at most 4,096]")  # fmt: skip
def plan(rows: float, dim: int, num_bytes: float, preset: str, num_lists: int | None) -> None:
    """Tells what an index will take on this machine: bytes, hours, queries a second.

    Measures for about a minute, and says what each figure assumes.
    """
    if not 1 <= rows < 2**63:
        raise InputError(f"--rows must be from 1 to 2^63, got {rows:g}")
    config = named.sized(preset, num_bytes, ())[0].for_dim(dim)
    lists = num_lists or max(1, min(MOST_LISTS, int(rows) // ROWS_PER_LIST))
    with stage_bar("measuring on random vectors"):
        index, speeds = _measured(config, dim)
    click.echo(f"{rows:,.0f} vectors of {dim} dimensions at {num_bytes:g} bytes, {lists:,} lists:")
    for what, figure, assumed in _lines(index, speeds, int(rows), lists):
        begin = f"  {what:17} {figure:>11}   "
        click.echo(textwrap.fill(
            assumed, 100, initial_indent=begin, subsequent_indent=" " * len(begin)
        ))  # fmt: skip


def _lines(index: Index, speeds: Speeds, rows: int, lists: int) -> list[tuple[str, str, str]]:
    """What it takes, how much, and what that assumes."""
    dim, (width, dtype) = index.model.dim, packing.row_shape(index.model.config)
    fixed = 2 * (4 * dim * lists + index.tables.nbytes)  # ours and Faiss's
    held = rows * (index.code_bytes + ID_BYTES) + fixed
    fitted = min(rows, FITTED_ROWS) * speeds.encode
    fitted += speeds.fit * ITERATIONS * min(rows, ROWS_PER_CENTROID * lists) * lists * dim
    encoding = rows * speeds.encode
    adding = speeds.add.at(rows) + rows * speeds.lists * min(lists, scan.FLAT)
    scanned = rows * min(PROBES, lists) / lists
    query = speeds.query.at(scanned) + speeds.lists * min(lists, scan.FLAT)
    point = f"{PROBES} probes, {RERANKED} re-ranked, {NEIGHBOURS} neighbours"
    sizes = f"{SIZES[0]:,} to {SIZES[-1]:,}"
    return [
        ("file of codes", format_size(rows * width * dtype.itemsize), "as `qinco encode` writes"),
        ("index in memory", format_size(held),
         f"codes and a byte for distances ({index.code_bytes}), ids ({ID_BYTES}), "
         f"{format_size(fixed)} for lists and decoder; twice the codes while vectors are added"),
        ("index in files", format_size(held), "as in memory; the model is not counted"),
        ("encoding", duration(encoding),
         f"{1 / speeds.encode:,.0f} vectors a second with the preset's search, all the same"),
        ("building", duration(fitted + adding),
         f"without encoding: fit {duration(fitted)}; add by codes {duration(adding)}, in "
         f"proportion, from {sizes} vectors"),
        ("queries a second", f"{1 / query:,.3g}",
         f"{point}, {QUERIES} a call, {scanned:,.0f} codes scanned each, in proportion, from "
         f"{sizes} vectors in {LISTS} lists; lists of equal size, all in memory"),
    ]  # fmt: skip


def _measured(config: QincoConfig, dim: int) -> tuple[Index, Speeds]:
    """An index of random vectors with a model of that size, and how fast all is."""
    rng = np.random.default_rng(0)
    centers = 2 * rng.normal(size=(CLUSTERS, dim))
    noise = rng.normal(size=(TRAINED, dim))
    x = (centers[rng.integers(CLUSTERS, size=TRAINED)] + noise).astype(np.float32)
    model = train(x, config, num_epochs=0)
    codes, encoding = _timed(lambda: np.asarray(coding.encode(model, x[:ENCODED])))
    _, clustering = _timed(lambda: train_centroids(x, LISTS, num_iters=ITERATIONS))
    index = build(model, x, LISTS, max_rows=ENCODED)
    add, query = _grown(index, codes, x[:QUERIES], rng)
    _, comparing = _timed(lambda: scan.nearest_lists(index.lists, x, x[:QUERIES]))
    fit = clustering / (ITERATIONS * len(x) * LISTS * dim)
    return index, Speeds(encoding / ENCODED, fit, add, query, comparing / (QUERIES * len(x)))


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
        _, seconds = _timed(
            lambda: index.search(queries, NEIGHBOURS, num_probes=PROBES, num_reranked=RERANKED)
        )
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
