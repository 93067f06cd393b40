"""UNQ: what it learns, its codes, its search, and the terms of its loss."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimized import optimized

import qinco_jax as qj
from qinco_jax.codecs.unq import lookup, triplets, unq
from qinco_jax.codecs.unq.network import EPSILON, Network
from qinco_jax.codecs.unq.train import imbalance, straight_through, train

M, K, D = 3, 16, 8
TRAIN = functools.partial(train, num_steps=M, codebook_size=K, hidden_dim=64, learning_rate=3e-3)


def curved(num_rows: int, seed: int) -> np.ndarray:
    """Vectors [N, D] on a curved surface of 3 dimensions, around 3."""
    flat = np.random.default_rng(seed).normal(size=(num_rows, 3))
    mix = np.random.default_rng(0).normal(size=(3, D))
    return np.float32(3 + 2 * np.sin(flat @ mix))


X, OTHERS = curved(6000, 1), curved(1000, 2)


@functools.cache
def before() -> unq.UNQ:
    return TRAIN(X, num_epochs=0)


@functools.cache
def after() -> unq.UNQ:
    with optimized():
        return TRAIN(X, num_epochs=100)


def mse(model: unq.UNQ, x: np.ndarray) -> float:
    return float(np.mean((np.asarray(unq.decode(model, unq.encode(model, x))) - x) ** 2))


def in_float64(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def network(net: Network, x: np.ndarray) -> np.ndarray:
    """The network outside training, straight from the equations."""
    z = np.zeros(1)
    for layer, weights in enumerate((net.first, net.second)):
        inside = (z if layer else x) @ weights
        unit = (inside - net.mean[layer]) / np.sqrt(net.variance[layer] + EPSILON)
        z = z + np.maximum(unit * net.gain[layer] + net.shift[layer], 0)
    return x @ net.skip + net.bias + z @ net.last


def products(model: unq.UNQ, x: np.ndarray) -> np.ndarray:
    """<net(x)_m, c_mk> [N, M, K] in float64."""
    model = in_float64(model)
    spaces = network(model.encoder, (x - model.mean) / model.scale).reshape(len(x), M, -1)
    return np.einsum("nmc,mkc->nmk", spaces, model.codebooks)


def test_training_beats_what_it_starts_from_on_vectors_it_has_not_seen() -> None:
    assert mse(before(), OTHERS) < 0.5 * OTHERS.var()
    assert mse(after(), OTHERS) < 0.95 * mse(before(), OTHERS)  # processors differ by some percent


def test_the_untrained_model_is_a_product_quantizer() -> None:
    """Its decoder is linear in codewords, and its codes are the nearest of all K^M."""
    spaces = np.stack(np.meshgrid(*[np.arange(K)] * M), -1).reshape(-1, M)
    every = np.asarray(unq.decode(before(), spaces))
    nearest = np.square(OTHERS[:50, None] - every).sum(-1).min(1)
    found = np.asarray(unq.decode(before(), unq.encode(before(), OTHERS[:50])))
    np.testing.assert_allclose(np.square(OTHERS[:50] - found).sum(-1), nearest, rtol=1e-4)


def test_codes_are_the_greatest_products_and_decode_by_the_network() -> None:
    codes = np.asarray(unq.encode(after(), OTHERS))
    assert codes.dtype == np.uint8 and codes.shape == (len(OTHERS), M)
    scores = products(after(), OTHERS)
    chosen = np.take_along_axis(scores, np.int64(codes)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, scores.max(axis=-1), rtol=1e-4)

    model = in_float64(after())
    codewords = model.codebooks[np.arange(M), codes].reshape(len(codes), -1)
    expected = network(model.decoder, codewords) * model.scale + model.mean
    np.testing.assert_allclose(unq.decode(after(), codes), expected, rtol=1e-4, atol=1e-4)


def test_codes_and_vectors_do_not_depend_on_how_they_are_computed() -> None:
    codes, x = np.asarray(unq.encode(after(), OTHERS)), np.float64(OTHERS)
    decoded = np.asarray(unq.decode(after(), codes))
    np.testing.assert_array_equal(jax.jit(unq.encode)(after(), OTHERS), codes)
    np.testing.assert_array_equal(unq.encode(after(), x), codes)
    np.testing.assert_array_equal(unq.encode(after(), OTHERS[:7]), codes[:7])
    np.testing.assert_array_equal(unq.encode(after(), OTHERS[5]), codes[5])
    np.testing.assert_allclose(jax.jit(unq.decode)(after(), codes), decoded, rtol=1e-4)
    np.testing.assert_allclose(unq.decode(after(), jnp.asarray(codes[:7])), decoded[:7], rtol=1e-4)
    np.testing.assert_allclose(unq.decode(after(), codes[5]), decoded[5], rtol=1e-4)


def test_more_codewords_than_a_byte_counts_take_two() -> None:
    model = train(X, 1, 300, hidden_dim=8, num_epochs=0)
    codes = np.asarray(unq.encode(model, X))
    assert codes.dtype == np.uint16 and codes.max() > 255


def test_a_shortlist_is_the_oracles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "BLOCK_ROWS", 300)  # several blocks, the last one not full
    codes = np.asarray(unq.encode(after(), X[:1000]))
    scores = -products(after(), OTHERS[:20])
    d2 = sum(scores[:, m, codes[:, m]] for m in range(M))
    found = unq.search(after(), codes, OTHERS[:20], 50, shortlist=50)
    each = np.sort(np.take_along_axis(d2, found, axis=1))
    np.testing.assert_allclose(each, np.sort(d2)[:, :50], rtol=1e-4)
    assert all(len(set(row)) == 50 for row in found)


def test_a_shortlist_of_everything_makes_search_exhaustive() -> None:
    codes = np.unique(np.asarray(unq.encode(after(), X)), axis=0)  # equal codes would tie
    queries = OTHERS[: unq.QUERY_BLOCK + 3]
    x_hat = np.float64(unq.decode(after(), codes))
    d1 = np.square(queries[:, None] - x_hat).sum(-1)
    found = unq.search(after(), codes, queries, 5, shortlist=len(codes))
    assert found.shape == (len(queries), 5)
    np.testing.assert_allclose(np.take_along_axis(d1, found, 1), np.sort(d1)[:, :5], rtol=1e-4)


def test_the_second_stage_orders_the_shortlist_by_what_it_decodes() -> None:
    codes = np.unique(np.asarray(unq.encode(after(), X)), axis=0)
    listed = unq.search(after(), codes, OTHERS[:20], 30, shortlist=30)
    x_hat = np.float64(unq.decode(after(), codes))[listed]
    d1 = np.square(OTHERS[:20, None] - x_hat).sum(-1)
    assert (np.diff(d1) > -1e-4).all()
    found = unq.search(after(), codes, OTHERS[:20], 5, shortlist=30)
    np.testing.assert_array_equal(found, listed[:, :5])


def test_imbalance_is_zero_for_equal_use_and_by_hand_otherwise() -> None:
    equal = np.tile(np.eye(4, dtype=np.float32), (2, 3, 1))
    np.testing.assert_allclose(imbalance(jnp.asarray(equal)), 0, atol=1e-7)
    usage = np.float32([[0.7, 0.1, 0.1, 0.1], [0.4, 0.6, 0.0, 0.0]])
    by_hand = np.mean([0.0675 / 0.0625, 0.0675 / 0.0625])
    np.testing.assert_allclose(imbalance(jnp.asarray(usage[:, None])), by_hand, rtol=1e-5)


def test_straight_through_is_hard_with_the_gradient_of_the_soft() -> None:
    scores, weight = (jnp.float32(np.random.default_rng(i).normal(size=(5, 7))) for i in range(2))
    value = np.asarray(straight_through(scores))
    np.testing.assert_allclose(value, np.eye(7)[np.argmax(scores, axis=1)], atol=1e-6)

    def of(function: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return jax.grad(lambda scores: jnp.sum(weight * function(scores)))(scores)

    np.testing.assert_allclose(of(straight_through), of(jax.nn.softmax), rtol=1e-6)


def test_mined_neighbours_are_the_nearest_others() -> None:
    distances = np.square(X[:300, None] - X[None, :300]).sum(-1)
    np.fill_diagonal(distances, np.inf)
    found = np.asarray(triplets.neighbours(jnp.asarray(X[:300])))
    each = np.take_along_axis(distances, found, axis=1)
    np.testing.assert_allclose(each, np.sort(distances)[:, :200], rtol=1e-3, atol=1e-4)
    anchor, near, far = np.asarray(triplets.draw(jax.random.key(0), jnp.asarray(found), 64))
    assert all(b in found[a, :3] for a, b in zip(anchor, near, strict=True))
    assert all(b in found[a, 100:] for a, b in zip(anchor, far, strict=True))


def test_training_is_deterministic_in_its_seed_and_reads_a_memory_map(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    once = TRAIN(X, num_epochs=2)
    jax.tree.map(np.testing.assert_array_equal, TRAIN(mapped, num_epochs=2), once)
    assert np.any(TRAIN(X, num_epochs=2, seed=1).codebooks != once.codebooks)


def test_the_log_counts_to_the_end() -> None:
    records: list[Any] = []
    TRAIN(X[:4096], num_epochs=2, log=records.append)
    assert [set(record) for record in records] == [{"step", "vectors", "num_vectors", "loss"}] * 2
    assert [record["vectors"] for record in records] == [4096, 8192]
    assert records[-1]["num_vectors"] == 8192


def test_few_equal_or_narrow_vectors_are_no_trouble() -> None:
    for x in (np.full((K, 2), 7), X[:K]):
        assert np.isfinite(mse(TRAIN(x, num_epochs=1), x))


def test_the_codec_says_what_it_costs() -> None:
    codec = unq.codec(after())
    assert (codec.name, codec.bits) == ("UNQ", M * math.log2(K))
    assert codec.size == sum(leaf.nbytes for leaf in jax.tree.leaves(after()))
    np.testing.assert_array_equal(codec.encode(X[:9]), unq.encode(after(), X[:9]))
    np.testing.assert_array_equal(
        codec.decode(codec.encode(X[:9])), unq.decode(after(), unq.encode(after(), X[:9]))
    )


CODES = np.zeros((100, M), np.uint8)
WRONG = {
    "too few rows": (lambda: TRAIN(X[:10]), "10 training vectors for 16 codewords"),
    "NaN": (lambda: TRAIN(np.where(X[7, 0] == X, np.nan, X)), "row 7 of the training vectors"),
    "one vector to train on": (lambda: TRAIN(X[0]), "shape"),
    "one codeword": (lambda: train(X, M, 1), "codebook_size of at least 2"),
    "K beyond 16 bits": (lambda: train(X, 1, 70_000), "codebook_size must be at most 65,536"),
    "a seed beyond 31 bits": (lambda: TRAIN(X, seed=2**31), "seed must be 0 to"),
    "beyond float32's digits": (lambda: unq.encode(after(), 1e12 + X), r"row 0 .* 1e\+12"),
    "diverges": (lambda: TRAIN(X, learning_rate=1e30), "lower learning_rate"),
    "other dimension": (lambda: unq.encode(after(), X[:, :2]), "2 dimensions"),
    "Inf to encode": (lambda: unq.encode(after(), X / np.zeros(D, np.float32)), "row 0 "),
    "code K": (lambda: unq.decode(after(), np.full((1, M), K)), "code 16"),
    "a prefix": (lambda: unq.decode(after(), CODES[:, :2]), "all 3 of its codes"),
    "k beyond the shortlist": (lambda: unq.search(after(), CODES, X[:2], 9, 8), "k 9"),
    "k beyond N": (lambda: unq.search(after(), CODES[:5], X[:2], 9), "k 9"),
    "code K to search": (lambda: unq.search(after(), CODES + K, X[:2], 1), "code 16"),
    "NaN to search for": (lambda: unq.search(after(), CODES, X[:2] * np.nan, 1), "queries"),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_refused(call: Callable[[], Any], message: str) -> None:
    with np.errstate(divide="ignore"), pytest.raises(qj.InputError, match=message):
        call()
