"""Small indexes for the tests of search, and what they should find, by brute force in float64."""

import functools
import sys
from unittest import mock

import numpy as np
import oracle

import qinco_jax as qj
from qinco_jax.search import distance, scan

BUILD = sys.modules["qinco_jax.search.build"]  # its function hides the module
DIM, ROWS = 8, 400
small = functools.partial(
    qj.QincoConfig, dim=DIM, num_steps=3, codebook_size=16, hidden_dim=8, num_blocks=1,
    num_candidates=4, beam_size=2,
)  # fmt: skip
CONFIGS = {
    "plain": small(),
    "behind centroids": small(num_centroids=20),
    "product": small(num_parts=2, num_steps=2),
    "low rank": small(form="qinco-lr"),
    "rotated unit vectors": small(unit_norm=True, rotate=True),
    "unit vectors behind centroids": small(unit_norm=True, num_centroids=20),
    "12 codewords": small(codebook_size=12),
    "300 codewords": small(codebook_size=300, num_steps=2),
    "2 codewords": small(codebook_size=2, num_candidates=2, num_steps=5),
}
X = oracle.random_vectors(ROWS, DIM)
X[300:] = X[:100]  # what lies at the same distance
QUERIES = oracle.random_vectors(20, DIM, seed=1)


def metrics_of(name: str) -> tuple[str, ...]:
    return ("cosine",) if CONFIGS[name].unit_norm else ("l2", "ip", "cosine")


def kinds_of(metric: str) -> tuple[str, ...]:
    return ("reconstruction", "scale") if metric == "cosine" else distance.KINDS


@functools.cache
def model_of(name: str) -> qj.Qinco | qj.Product:
    config = CONFIGS[name]
    return oracle.random_product(config) if config.num_parts > 1 else oracle.random_model(config)


@functools.cache
def built(name: str, metric: str = "l2", kind: str | None = None) -> qj.search.Index:
    """An index without vectors, which must stay so, whose reading is of a kind."""
    model = model_of(name)
    num_lists = None if model.config.num_centroids else 6

    def choose(metric: str, rows: distance.Measured, origin: np.ndarray) -> distance.Reading:
        return distance.fit(metric, str(kind), rows, origin, pull=0.5)

    with mock.patch.object(BUILD, "choose", choose if kind else BUILD.choose):
        return qj.search.build(model, X, num_lists, metric)


def empty(name: str = "plain", metric: str = "l2", kind: str | None = None) -> qj.search.Index:
    """Another index without vectors, to add some to."""
    old = built(name, metric, kind)
    lists = scan.new(old.list_vectors, old.tables, old.reading, bool(old.lists.by_residual))
    return qj.search.Index(old.model, old.list_vectors, old.tables, old.reading, lists)


def filled(name: str = "plain", metric: str = "l2", kind: str | None = None) -> qj.search.Index:
    """An index of `X`, with its row numbers as ids."""
    index = empty(name, metric, kind)
    index.add(X)
    return index


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def in_space(index: qj.search.Index, x: np.ndarray) -> np.ndarray:
    return unit(np.float64(x)) if index.metric == "cosine" else less_origin(index, x)


def less_origin(index: qj.search.Index, x: np.ndarray) -> np.ndarray:
    """Vectors less the mean, where the index measures L2 distances about it."""
    return np.float64(x) - np.asarray(index.reading.origin, np.float64)


def lists_of(index: qj.search.Index, x: np.ndarray) -> np.ndarray:
    """The list [N] of each vector."""
    if index.model.config.num_centroids:
        return np.asarray(qj.encode(index.model, x))[:, 0]
    return nearest(index, x, "l2")[:, 0]


def nearest(index: qj.search.Index, x: np.ndarray, metric: str) -> np.ndarray:
    """The lists [N, L] of vectors, nearest first."""
    vectors = in_space(index, x)
    products = vectors @ index.list_vectors.T
    if metric != "ip":
        products = products - np.square(np.float64(index.list_vectors)).sum(1) / 2
    return np.argsort(-products, axis=1)


def rough(index: qj.search.Index, x: np.ndarray) -> np.ndarray:
    """The additive decoder's approximations [N, D]."""
    codes = np.asarray(qj.encode(index.model, x))
    columns = codes[:, 1:] if index.model.config.num_centroids else codes
    found = sum(
        np.float64(table)[column] for table, column in zip(index.tables, columns.T, strict=True)
    )
    return found + index.list_vectors[codes[:, 0]] if index.model.config.num_centroids else found


def levels(index: qj.search.Index, x: np.ndarray) -> np.ndarray:
    """The bytes [N, V] that the reading keeps of vectors."""
    x_hat = less_origin(index, qj.decode(index.model, qj.encode(index.model, x)))
    target, reading = in_space(index, np.float32(x)), index.reading
    target = np.float64(np.float32(target))
    norms = np.square(rough(index, x)).sum(1)
    kept = {
        "reconstruction": [norms],
        "length": [np.square(target).sum(1)],
        "scale": [oracle.half_scale(target, x_hat)],
    }[reading.kind]
    kept += [norms] * (reading.kind != "reconstruction" and index.metric == "l2")
    found = np.stack(kept, axis=1)
    return np.clip(np.rint((found - np.float64(reading.low)) / np.float64(reading.step)), 0, 255)


def distances(index: qj.search.Index, queries: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The distances [Q, N] that a search should give to vectors that were added."""
    reading = index.reading
    value = float(reading.low[0]) + float(reading.step[0]) * levels(index, x)[:, 0]
    x_hat = less_origin(index, qj.decode(index.model, qj.encode(index.model, x)))
    queries = in_space(index, queries)
    own = np.square(x_hat).sum(1)
    if reading.kind == "scale":
        x_hat, own = value[:, None] * x_hat, float(reading.squared_length)
    elif index.metric == "cosine":
        x_hat = unit(x_hat)
    elif reading.kind == "length":
        x_hat, own = np.sqrt(np.maximum(value, 0))[:, None] * unit(x_hat), value
    products = queries @ x_hat.T
    if index.metric != "l2":
        return -products
    return np.maximum(np.square(queries).sum(1)[:, None] + own - 2 * products, 0)


def assert_nearest(
    found: tuple[np.ndarray, np.ndarray], expected: np.ndarray, ids: np.ndarray, atol: float = 1e-3
) -> None:
    """Checks distances [Q, k] and ids against all that may be found, [Q, N], inf where it may not.

    Vectors whose distances differ by rounding alone may change places; those of one distance are
    in the order of their ids.
    """
    near, own = found
    k = near.shape[1]
    np.testing.assert_allclose(near, np.sort(expected, axis=1)[:, :k], rtol=1e-4, atol=atol)
    place = {number: column for column, number in enumerate(ids.tolist())}
    for row, (some, numbers) in enumerate(zip(near, own.tolist(), strict=True)):
        there = [number for number in numbers if number >= 0]
        assert len(set(there)) == len(there) == np.isfinite(some).sum()
        own_distances = expected[row, [place[number] for number in there]]
        np.testing.assert_allclose(some[: len(there)], own_distances, rtol=1e-4, atol=atol)
        assert there == [
            numbers[i] for i in np.lexsort((numbers[: len(there)], some[: len(there)]))
        ]
