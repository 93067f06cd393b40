"""k-means and residual quantization."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import oracle
import pytest

import qinco_jax as qj
from qinco_jax.quantizers import rq
from qinco_jax.quantizers.kmeans import kmeans

M, K, D = 4, 16, 6
X = oracle.random_vectors(4096, D)


@functools.cache
def trained() -> rq.RQ:
    return rq.train(X, M, K)


def mse(model: rq.RQ, codes: jax.Array) -> float:
    return float(np.mean((np.asarray(rq.decode(model, codes)) - X) ** 2))


def test_kmeans_finds_k_distinct_points_however_often_they_are_repeated() -> None:
    points = np.float32(np.random.default_rng(0).normal(size=(K, D)))
    x = np.repeat(points, np.r_[500, [3] * (K - 1)], axis=0)  # most first centroids coincide
    found = np.asarray(kmeans(jax.random.key(0), x, K))
    nearest = np.sum((found[:, None] - points) ** 2, axis=-1)
    assert sorted(nearest.argmin(axis=1)) == list(range(K))
    np.testing.assert_allclose(nearest.min(axis=1), 0, atol=1e-10)


def test_kmeans_centroids_are_the_means_of_their_rows() -> None:
    found = np.asarray(kmeans(jax.random.key(0), X, K, num_iters=200))
    nearest = np.sum((X[:, None] - found) ** 2, axis=-1).argmin(axis=1)
    means = np.stack([X[nearest == cluster].mean(axis=0) for cluster in range(K)])
    np.testing.assert_allclose(found, means, atol=1e-4)


def test_kmeans_leaves_no_row_alone_in_many_dimensions() -> None:
    x = np.float32(np.random.default_rng(0).normal(size=(2000, 128)))
    found = np.asarray(kmeans(jax.random.key(0), x, 128))
    nearest = np.square(x[:, None] - found).sum(axis=-1).argmin(axis=1)
    assert np.bincount(nearest, minlength=128).min() > 1


def test_training_survives_fewer_distinct_rows_than_codewords() -> None:
    x = np.repeat(X[:3], 20, axis=0)
    model = rq.train(x, 2, K)
    np.testing.assert_allclose(rq.decode(model, rq.encode(model, x)), x, atol=1e-4)


@pytest.mark.parametrize("beam_size", [1, 5, 20])  # 20 exceeds K
def test_codes_are_the_oracles(beam_size: int) -> None:
    books = np.asarray(trained().codebooks, np.float64)

    def extend(beam: list[oracle.Entry], book: np.ndarray) -> list[oracle.Entry]:
        return [((*codes, i), x_hat + c) for codes, x_hat in beam for i, c in enumerate(book)]

    steps = [functools.partial(extend, book=book) for book in books[1:]]
    x = (X[:50] - np.float64(trained().mean)) / np.float64(trained().scale)
    expected = [oracle.search(row, books[0], steps, beam_size, beam_size)[0] for row in x]
    np.testing.assert_array_equal(rq.encode(trained(), X[:50], beam_size=beam_size), expected)


def test_every_prefix_decodes_to_the_sum_of_its_codewords() -> None:
    codes = rq.encode(trained(), X)
    assert codes.dtype == np.uint8
    x_hat = np.zeros_like(X)
    for m, column in enumerate(np.asarray(codes).T):
        x_hat = x_hat + np.asarray(trained().codebooks)[m, column]
        expected = x_hat * float(trained().scale) + np.asarray(trained().mean)
        np.testing.assert_allclose(rq.decode(trained(), codes[:, : m + 1]), expected, rtol=1e-5)
        if m == 1:
            np.testing.assert_array_equal(
                rq.decode(rq.prefix(trained(), 2), codes[:, :2]), rq.decode(trained(), codes[:, :2])
            )


def test_every_step_lowers_the_error() -> None:
    codes = rq.encode(trained(), X)
    errors = [X.var()] + [mse(trained(), codes[:, :m]) for m in range(1, M + 1)]
    assert all(later < 0.9 * earlier for earlier, later in itertools.pairwise(errors))


def test_training_is_deterministic_in_its_seed() -> None:
    np.testing.assert_array_equal(rq.train(X, M, K).codebooks, trained().codebooks)
    assert np.any(rq.train(X, M, K, seed=1).codebooks != trained().codebooks)


@pytest.mark.parametrize("beam_size", [1, 2])
def test_training_tells_each_step(beam_size: int) -> None:
    told: list[tuple[int, int]] = []
    rq.train(X, M, K, beam_size=beam_size, advance=lambda *numbers: told.append(numbers))
    assert told == [(done, M) for done in range(M + 1)]


def test_training_is_free_of_shift_and_scale() -> None:
    moved = rq.train(4 * X - 8, M, K)  # powers of two: nothing is rounded differently
    np.testing.assert_allclose(moved.codebooks, trained().codebooks, atol=1e-4)
    np.testing.assert_allclose(moved.scale, 4 * trained().scale, rtol=1e-6)


def test_beam_helps_encoding_and_training_for_it_helps_more() -> None:
    greedy = [rq.train(X, M, K, seed=seed) for seed in range(2)]
    beamed = [rq.train(X, M, K, seed=seed, beam_size=5) for seed in range(2)]
    one, wide, both = (
        np.mean([mse(model, rq.encode(model, X, beam_size=size)) for model in models])
        for models, size in ((greedy, 1), (greedy, 5), (beamed, 5))
    )
    assert one > wide > both


def test_memory_map_is_sampled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    few = rq.train(mapped, 1, K, max_rows=K)  # as many rows as codewords: the rows themselves
    restored = np.asarray(few.codebooks[0]) * float(few.scale) + np.asarray(few.mean)
    distances = np.sum((restored[:, None] - X) ** 2, axis=-1)
    np.testing.assert_allclose(distances.min(axis=1), 0, atol=1e-9)
    assert len(set(distances.argmin(axis=1))) == K


LARGE = rq.RQ(np.zeros((1, 65_537, D), np.float32), np.zeros(D, np.float32), np.float32(1))
WRONG = {
    "too few rows": (lambda: rq.train(X[:10], M, K), "10 training vectors for 16 codewords"),
    "NaN": (lambda: rq.train(np.where(X[7, 0] == X, np.nan, X), M, K), "row 7 "),
    "beam of 0": (lambda: rq.encode(trained(), X, beam_size=0), "beam_size"),
    "beyond float32's digits": (lambda: rq.encode(trained(), 1e9 + X), r"row 0 .* 1e\+09"),
    "K beyond 16 bits to encode": (lambda: rq.encode(LARGE, X), "at most 65,536, got 65,537"),
    "a seed beyond 31 bits": (lambda: rq.train(X, M, K, seed=2**31), "0 to 2,147,483,647"),
    "a row of zeros in float32": (
        lambda: rq.train(np.float64(1e-200) * X, M, K),
        "row 0 .* zero in float32",
    ),
    "other dimension": (lambda: rq.encode(trained(), X[:, :2]), "2 dimensions"),
    "code K": (lambda: rq.decode(trained(), np.full((1, M), K)), "code 16"),
    "too many columns": (lambda: rq.decode(trained(), np.zeros((1, M + 1), int)), "5 columns"),
    "one vector to train on": (lambda: rq.train(X[0], M, 4), "shape"),
    "no steps": (lambda: rq.train(X, 0, K), "num_steps"),
    "K beyond 16 bits": (lambda: rq.train(X, 1, 70_000), "codebook_size must be 1 to 65,536"),
    "a key for a seed": (lambda: rq.train(X, M, K, seed=jax.random.key(0)), "seed must be an int"),
    "too small for squares": (lambda: rq.train(np.float32(1e-20) * X, M, K), "multiply them by"),
    "too large for squares": (lambda: rq.train(np.float32(1e20) * X, M, K), "multiply them by"),
    "max_rows below K": (lambda: rq.train(X, M, K, max_rows=3), "3 training vectors"),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(qj.InputError, match=message):
        call()
