"""Fitting: any model and vectors that can be searched, and what is said of others."""

import indexes
import numpy as np
import oracle
import pytest
from indexes import DIM, QUERIES, X

import qinco_jax as qj

pytest.importorskip("faiss")


def test_lists_are_centroids_of_the_model_or_of_the_vectors() -> None:
    model = indexes.model_of("behind centroids")
    index = qj.search.build(model, X)
    expected = qj.decode(model, np.arange(20)[:, None])
    list_vectors = index.list_vectors + np.asarray(index.reading.origin)
    np.testing.assert_allclose(list_vectors, expected, rtol=1e-5, atol=1e-5)
    assert len(index) == 0 and index.lists.by_residual
    index = qj.search.build(indexes.model_of("plain"), X)
    assert len(index.list_vectors) == len(X) // 39 and not index.lists.by_residual
    index.add(X)
    found = index.search(X, 1, num_probes=1)[0][:, 0]
    assert np.median(found) < np.square(X - X.mean(axis=0)).sum(axis=1).mean()


@pytest.mark.parametrize("name", ["plain", "behind centroids", "rotated unit vectors"])
@pytest.mark.parametrize(
    "x",
    [
        X[:20],
        np.full((50, DIM), 3.0),
        np.zeros((50, DIM), np.float32),
        np.repeat(X[:2], 30, axis=0),
        np.uint8(X.clip(0)),
        X.astype(">f8"),
        X.astype(np.float16),
    ],
    ids=["few", "all equal", "zeros", "two", "bytes", "big-endian", "half"],
)
def test_vectors_with_little_to_say_can_be_searched(name: str, x: np.ndarray) -> None:
    for metric in indexes.metrics_of(name):
        index = qj.search.build(indexes.model_of(name), x, metric=metric)
        index.add(x)
        near, ids = index.search(QUERIES, 20, num_probes=50)
        assert np.isfinite(near).all() and (ids >= 0).all()
        assert all(len(set(row)) == 20 for row in ids.tolist())


BAD = {
    "metric": (X, {"metric": "L2"}, "unknown metric 'L2'; did you mean 'l2'?"),
    "too few": (X[:19], {}, r"x_train has shape \(19, 8\); give at least 20 vectors"),
    "one vector": (X[0], {}, r"x_train has shape \(8,\)"),
    "dimensions": (X[:, :4], {}, "x_train has 4 dimensions a vector, but the model has 8"),
    "many lists": (X, {"num_lists": 401}, "num_lists = 401 exceeds the 400 training vectors"),
    "no lists": (X, {"num_lists": 0}, "num_lists must be at least 1, got 0"),
    "half a list": (X, {"num_lists": 2.5}, "num_lists must be an integer, got 2.5"),
    "few rows": (X, {"max_rows": 19}, "max_rows must be at least 20, got 19"),
    "NaN": (
        np.where(X[5] == X, np.nan, X),
        {},
        "row 5 of x_train holds NaN or Inf",
    ),
}


@pytest.mark.parametrize("x, options, message", BAD.values(), ids=BAD)
def test_bad_input_is_refused(x: np.ndarray, options: dict[str, object], message: str) -> None:
    with pytest.raises(qj.InputError, match=message):
        qj.search.build(indexes.model_of("plain"), x, **options)


def test_models_that_cannot_be_searched_so_are_refused() -> None:
    with pytest.raises(qj.InputError, match='build the index with metric="cosine"'):
        qj.search.build(indexes.model_of("rotated unit vectors"), X)
    with pytest.raises(qj.InputError, match="the lists are the model's 20 centroids; leave out"):
        qj.search.build(indexes.model_of("behind centroids"), X, 21)
    large = oracle.random_model(indexes.small(codebook_size=4096, num_steps=5))
    with pytest.raises(qj.InputError, match="5 columns of 4096 codewords have 20480 table rows"):
        qj.search.build(large, X)
    with pytest.raises(qj.InputError, match="not a model"):
        qj.search.build(X, X)  # type: ignore[arg-type]


def test_the_order_of_training_vectors_hardly_matters() -> None:
    model = indexes.model_of("plain")
    order = np.argsort(X[:, 0])
    one, two = (qj.search.build(model, x, 1) for x in (X, X[order]))
    np.testing.assert_allclose(one.tables, two.tables, rtol=1e-3, atol=1e-3)
