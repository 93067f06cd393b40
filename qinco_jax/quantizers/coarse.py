"""Coarse centroids of IVF-QINCo: k-means with up to millions of centroids on rows of any number.

Rows are read chunk by chunk in every iteration, so memory holds the centroids and one chunk.
"""

import contextlib
import functools
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax import numbers
from qinco_jax.errors import InputError
from qinco_jax.quantizers import precision
from qinco_jax.quantizers.batching import map_rows
from qinco_jax.quantizers.distances import nearest
from qinco_jax.quantizers.rq import Advance, sample_rows
from qinco_jax.quantizers.transform import (
    Transform,
    from_model_space,
    of_rows,
    reach,
    to_model_space,
)
from qinco_jax.seeds import COARSE_SCALE, COARSE_START, seed_for
from qinco_jax.vectors import checks, formats
from qinco_jax.vectors.stored import Rows, Vectors, lazily, spans

CHUNK_ROWS = 32768
BLOCK_ROWS = 1024  # whose distances to a block of centroids are held at once
FLAT = 8192  # centroids that are compared with every row; of more each row sees about a root
SCALE_ROWS = 65536  # that mean and scale are taken from; distances lose digits without them
SAMPLED = "the sampled training vectors"
FAR = 1e15  # where a centroid that fills up a shape is nobody's nearest


@precision.in_32_bits
def train_centroids(
    x: Vectors,
    num_centroids: int,
    *,
    seed: int = 0,
    num_iters: int = 10,
    max_rows: int | None = None,
    advance: Advance = lambda done, total: None,
) -> np.ndarray:
    """k-means centroids for `train(..., centroids=...)`, on the default device.

    Of more than 8,192, the rows are first sorted into about sqrt(K_ivf) cells, in a scratch file
    as large as they are, and each cell gets its share of centroids from its own rows: 1,048,576
    from 10 million rows compare a row with some thousands, not with a million. Centroids that run
    empty move to the largest clusters.

    Args:
      x: [N, D], any real dtype, N >= K_ivf; a memory map is read chunk by chunk.
      num_centroids: K_ivf.
      seed: of the rows that it starts from.
      num_iters: Lloyd iterations, of the cells and within each.
      max_rows: rows used at most; `None` means 256 for each centroid.
      advance: called with the number of rows seen and their total.

    Returns:
      [K_ivf, D] float32, in the space of the vectors.

    Raises:
      InputError: a number out of range, fewer rows than centroids, or rows with NaN, Inf or numbers
        so far from the others that float32 tells no centroids apart (`transform.reach`).
      OSError: no space for the scratch file in the folder for temporary files.
    """
    x, seed = lazily(checks.vectors(x, what="the training vectors")), numbers.seed(seed)
    num_centroids = numbers.integer(num_centroids, "num_centroids", 1)
    num_iters = numbers.integer(num_iters, "num_iters", 1)
    limit = 256 * num_centroids
    if max_rows is not None:
        limit = numbers.integer(max_rows, "max_rows", 1)
    if x.ndim != 2 or num_centroids > min(len(x), limit):
        raise InputError(
            f"got vectors of shape {x.shape}, {num_centroids} centroids and at most {limit} rows; "
            "expected [N, D] and at most as many centroids as rows"
        )
    rows: Rows = sample_rows(x, limit, seed) if len(x) > limit else x
    sample = sample_rows(rows, SCALE_ROWS, seed_for(seed, COARSE_SCALE))
    found = of_rows(checks.finite(sample, what=SAMPLED))
    rng = np.random.default_rng(seed_for(seed, COARSE_START))
    if num_centroids > FLAT:
        centroids = _in_cells(rows, found, num_centroids, rng, num_iters, advance)
    else:
        total = num_iters * len(rows)
        centroids = _lloyd(
            rows, found, num_centroids, rng, num_iters, lambda seen: advance(seen, total)
        )
    return np.asarray(from_model_space(jnp.asarray(centroids), found))


def _in_cells(
    rows: Rows,
    transform: Transform,
    num_centroids: int,
    rng: np.random.Generator,
    num_iters: int,
    advance: Advance,
) -> np.ndarray:
    """Centroids of cells, each from the rows of its own."""
    num_cells = math.isqrt(num_centroids)
    few = sample_rows(rows, 256 * num_cells, int(rng.integers(2**31)))
    total, seen = num_iters * (len(few) + len(rows)), num_iters * len(few)
    cells = _lloyd(few, transform, num_cells, rng, num_iters, lambda seen: advance(seen, total))
    owner = np.asarray(map_rows(
        _nearest_of, (jnp.asarray(cells), transform), rows,
        rows=BLOCK_ROWS,
        check=functools.partial(checks.finite, what=SAMPLED, limit=reach(transform)),
    ))  # fmt: skip
    counts, found = np.bincount(owner, minlength=num_cells), []
    shares = _shares(counts, num_centroids).tolist()
    with _sorted_by(owner, rows) as dealt:
        for end, count, share in zip(np.cumsum(counts), counts, shares, strict=True):
            if share:
                own = dealt[end - count : end]
                found.append(_lloyd(own, transform, share, rng, num_iters, lambda seen: None))
            seen += num_iters * int(count)
            advance(seen, total)
    return np.concatenate(found)


@contextlib.contextmanager
def _sorted_by(owner: np.ndarray, rows: Rows) -> Iterator[Rows]:
    """The rows [N, D] in the order of their owners, in a scratch file written in one pass."""
    place = np.empty(len(owner), np.int64)
    place[np.argsort(owner, kind="stable")] = np.arange(len(owner))
    dtype = rows.dtype if rows.dtype.kind in "iuf" else np.dtype(np.float32)  # bfloat16 is neither
    with tempfile.TemporaryDirectory(prefix="qinco-centroids-") as folder:
        file = Path(folder) / "rows.npy"
        with formats.create(file, rows.shape, dtype) as out:
            for span in spans(len(rows), CHUNK_ROWS):
                out[place[span]] = rows[span]
        yield formats.read(file)


def _shares(counts: np.ndarray, num_centroids: int) -> np.ndarray:
    """How many of the centroids each cell gets: in proportion to its rows, at most as many."""
    ideal = counts * (num_centroids / counts.sum())
    shares = np.floor(ideal).astype(np.int64)
    behind = np.argsort(shares - ideal, kind="stable")
    shares[behind[: num_centroids - shares.sum()]] += 1
    return shares


def _lloyd(
    rows: Rows,
    transform: Transform,
    count: int,
    rng: np.random.Generator,
    num_iters: int,
    advance: Callable[[int], None],
) -> np.ndarray:
    """k-means [count, D] in model space; compiles for powers of two alone."""
    start = np.sort(rng.choice(len(rows), count, replace=False))
    limit = reach(transform)
    first = checks.finite(rows[start], what=SAMPLED).astype(np.float32)
    centroids = (first - np.asarray(transform.mean)) / np.asarray(transform.scale)
    size = 1 << (count - 1).bit_length()
    for iteration in range(num_iters):
        padded = np.pad(centroids, ((0, size - count), (0, 0)), constant_values=FAR)
        sums, counts = jnp.zeros(padded.shape), jnp.zeros(size, jnp.int32)
        for span in spans(len(rows), CHUNK_ROWS):
            part = checks.finite(rows[span], span.start, SAMPLED, limit)
            sums, counts = _add(sums, counts, padded, transform, *_chunk(part))
            advance(iteration * len(rows) + span.stop)
        centroids = _means(centroids, np.asarray(sums)[:count], np.asarray(counts)[:count])
    return centroids


def _means(centroids: np.ndarray, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """New centroids; each empty cluster moves next to the mean of one of the largest."""
    means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centroids)
    empty = np.flatnonzero(counts == 0)
    largest = np.argsort(-counts, kind="stable")[: len(empty)]
    aside = np.where(np.arange(means.shape[1]) % 2, 1 + 1 / 1024, 1 - 1 / 1024)
    means[empty] = means[np.resize(largest, len(empty))] * aside
    return means.astype(np.float32)


def _chunk(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows filled up to a power of two, and which of them count."""
    size = 1 << (len(part) - 1).bit_length()
    padded = np.zeros((size, part.shape[1]), part.dtype)
    padded[: len(part)] = part
    return padded, np.arange(size) < len(part)


@functools.partial(jax.jit, donate_argnames=("sums", "counts"))
def _add(
    sums: jax.Array,
    counts: jax.Array,
    centroids: jax.Array,
    transform: Transform,
    rows: jax.Array,
    used: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Sums [K, D] and counts [K] of the rows nearest to each centroid, so far and with a chunk."""
    x = jnp.where(used[:, None], to_model_space(rows, transform), 0.0)
    blocks = x.reshape(-1, min(BLOCK_ROWS, len(x)), x.shape[1])
    index = jax.lax.map(lambda block: nearest(block, centroids)[1], blocks).reshape(-1)
    return sums.at[index].add(x), counts.at[index].add(used.astype(jnp.int32))


def _nearest_of(model: tuple[jax.Array, Transform], rows: jax.Array) -> jax.Array:
    """The number [N] int32 of the centroid [K, D] nearest to each row."""
    centroids, transform = model
    return nearest(to_model_space(rows, transform), centroids)[1]
