"""What encode gives besides codes: errors and whole beams."""

import dataclasses

import jax
import numpy as np
import oracle
import pytest

import qinco_jax as qj

CONFIG = qj.QincoConfig(
    dim=6, num_steps=3, codebook_size=16, hidden_dim=8, num_blocks=1, num_candidates=4, beam_size=5
)
MODELS = {
    "plain": oracle.random_model(CONFIG),
    "unit vectors": oracle.random_model(dataclasses.replace(CONFIG, unit_norm=True)),
    "behind centroids": oracle.random_model(dataclasses.replace(CONFIG, num_centroids=20)),
    "product": oracle.random_product(dataclasses.replace(CONFIG, num_parts=2)),
}
X = oracle.random_vectors(70, 6)

every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def squared_errors(model: qj.Qinco | qj.Product, codes: jax.Array) -> np.ndarray:
    x = X / np.linalg.norm(X, axis=1, keepdims=True) if model.config.unit_norm else X
    return np.square(x - np.asarray(qj.decode(model, codes))).sum(axis=1)


@every_model
def test_errors_are_those_of_the_reconstructions(model: qj.Qinco | qj.Product) -> None:
    codes, errors = qj.encode(model, X, output="errors")
    np.testing.assert_array_equal(codes, qj.encode(model, X))
    np.testing.assert_allclose(errors, squared_errors(model, codes), rtol=1e-3, atol=1e-4)
    code, error = qj.encode(model, X[0], output="errors")
    np.testing.assert_array_equal(code, codes[0])
    assert error.shape == ()


@every_model
def test_beams_are_different_codes_best_first(model: qj.Qinco | qj.Product) -> None:
    codes, errors = qj.encode(model, X, output="beams")
    assert codes.shape == (70, 5, len(model.column_sizes)) and errors.shape == (70, 5)
    np.testing.assert_array_equal(codes[:, 0], qj.encode(model, X))
    assert (np.diff(errors, axis=1) >= 0).all()
    for entry in range(5):
        expected = squared_errors(model, codes[:, entry])
        np.testing.assert_allclose(errors[:, entry], expected, rtol=1e-3, atol=1e-4)
    assert all(len(np.unique(beam, axis=0)) == 5 for beam in np.asarray(codes))


def test_under_jit_and_for_no_rows() -> None:
    model = MODELS["plain"]
    found = jax.jit(lambda x: qj.encode(model, x, output="beams"))(X)
    for inside, outside in zip(found, qj.encode(model, X, output="beams"), strict=True):
        np.testing.assert_allclose(inside, outside, rtol=1e-5)
    codes, errors = qj.encode(model, X[:0], output="errors")
    assert codes.shape == (0, 3) and errors.shape == (0,)


def test_entries_that_do_not_exist_have_infinite_errors() -> None:
    model = oracle.random_model(dataclasses.replace(CONFIG, num_steps=1))
    _, errors = qj.encode(model, X, beam_size=20, output="beams")
    assert np.isinf(errors[:, 16:]).all() and np.isfinite(errors[:, :16]).all()


def test_another_output_is_refused() -> None:
    with pytest.raises(qj.InputError, match="output must be codes, errors, beams, got 'error'"):
        qj.encode(MODELS["plain"], X, output="error")  # type: ignore[arg-type]
