"""Small and large calls give the same, and prepared models live as long as their models."""

import dataclasses
import gc
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import oracle
import pytest

import qinco_jax as qj
from qinco_jax.quantizers import chunks

CONFIG = qj.QincoConfig(
    dim=8, num_steps=4, codebook_size=16, hidden_dim=8, num_blocks=1, num_candidates=4, beam_size=3
)
X = oracle.random_vectors(1100, 8)
MODELS = {
    "plain": oracle.random_model(CONFIG),
    "behind centroids": oracle.random_model(dataclasses.replace(CONFIG, num_centroids=20)),
    "product": oracle.random_product(dataclasses.replace(CONFIG, num_parts=2)),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_codes_do_not_depend_on_the_number_of_rows(model: qj.Qinco | qj.Product) -> None:
    codes = np.asarray(qj.encode(model, X))
    x_hat = np.asarray(qj.decode(model, codes))
    for count in (0, 1, 7, 9, 65, 513):
        np.testing.assert_array_equal(qj.encode(model, X[:count]), codes[:count])
        few = qj.decode(model, codes[:count])
        np.testing.assert_allclose(few, x_hat[:count], rtol=1e-5, atol=1e-5)
    for row in range(30):
        np.testing.assert_array_equal(qj.encode(model, X[row]), codes[row])


def test_few_sizes_are_compiled() -> None:
    model = oracle.random_model(CONFIG, seed=1)
    before = chunks._chunk._cache_size()
    for count in range(1, 600, 37):
        qj.encode(model, X[:count], beam_size=2)
    assert chunks._chunk._cache_size() - before <= 8


def test_what_is_prepared_dies_with_its_model() -> None:
    gc.collect()
    before = set(chunks._kept)
    models = [oracle.random_model(CONFIG, seed) for seed in range(3)]
    for model in models:
        qj.encode(model, X[:5])
        qj.encode(model, X[:5])
    assert len(set(chunks._kept) - before) == 3
    del model, models
    gc.collect()
    assert set(chunks._kept) <= before


def test_a_model_in_the_place_of_a_dead_one_gets_its_own() -> None:
    """Python gives a new object the number of one that died."""
    expected = [np.asarray(qj.encode(oracle.random_model(CONFIG, seed), X[:50])) for seed in (0, 1)]
    start = [oracle.random_model(CONFIG, seed) for seed in (0, 1)]
    for turn in range(20):
        model = dataclasses.replace(start[turn % 2])
        np.testing.assert_array_equal(qj.encode(model, X[:50]), expected[turn % 2])
        del model


def test_arrays_that_may_change_are_prepared_anew() -> None:
    model = jax.tree.map(np.array, MODELS["plain"])
    one = np.asarray(qj.encode(model, X[:50]))
    other = MODELS["plain"].replace(
        steps=oracle.random_model(CONFIG, seed=5).steps, codebook=MODELS["plain"].codebook
    )
    for own, new in zip(jax.tree.leaves(model), jax.tree.leaves(other), strict=True):
        own[...] = new
    expected = np.asarray(qj.encode(other, X[:50]))
    assert (expected != one).any()
    np.testing.assert_array_equal(qj.encode(model, X[:50]), expected)


def test_threads_may_call_at_once() -> None:
    expected = np.asarray(qj.encode(MODELS["plain"], X[:64]))
    for _ in range(3):
        model = oracle.random_model(CONFIG)
        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(qj.encode, model, X[:n]) for n in (64, 5, 64, 64, 1, 64, 9, 64)]
        for codes in [np.asarray(call.result()) for call in calls]:
            np.testing.assert_array_equal(codes, expected[: len(codes)])
