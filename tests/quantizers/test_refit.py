"""Codebooks that are fitted anew together: less error, by the least squares that they say."""

import numpy as np

import qinco_jax as qj
from qinco_jax.quantizers import refit
from qinco_jax.training.initial_model import initial_model, refitted

RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(900, 8)) @ RNG.normal(size=(8, 8)) + 3)
MODEL = qj.rq.train(X, 3, 16)


def error(x: np.ndarray, x_hat: object) -> float:
    return float(np.square(np.float64(x) - np.asarray(x_hat)).sum(axis=1).mean())


def test_no_other_codebooks_suit_the_codes_better() -> None:
    """But for what draws a codeword to the mean, as one more vector."""
    found = refit.refitted(MODEL, X, 1, seed=0)
    codes = np.asarray(qj.rq.encode(MODEL, X, beam_size=refit.BEAM))
    chosen = np.zeros((len(X), 3, 16))
    np.put_along_axis(chosen, codes[:, :, None].astype(int), 1, axis=2)
    chosen = chosen.reshape(len(X), -1)
    best = chosen @ np.linalg.lstsq(chosen, np.float64(X))[0]
    own = error(X, qj.rq.decode(found, codes))
    assert error(X, best) <= own < 1.02 * error(X, best)
    assert own < error(X, qj.rq.decode(MODEL, codes))


def test_rounds_lower_the_error_of_rows_and_the_model_keeps_its_form() -> None:
    errors = [
        error(X, qj.rq.decode(model, qj.rq.encode(model, X, beam_size=8)))
        for model in (refit.refitted(MODEL, X, rounds, seed=0) for rounds in (0, 1, 3))
    ]
    assert errors == sorted(errors, reverse=True)
    config = qj.QincoConfig(
        num_steps=3, codebook_size=16, hidden_dim=4, num_candidates=4, beam_size=8
    ).for_dim(8)
    plain = initial_model(X, config, 0, None)
    assert refitted(plain, X, 40 * 16, seed=0) is plain  # many rows for each codeword
    model = refitted(plain, X, 40 * 16 - 1, seed=0)
    assert (model.steps.codebook == model.steps.preselect).all() and model.config == plain.config
    x_hat = qj.decode(model, qj.encode(model, X))
    assert error(X, x_hat) < error(X, qj.decode(plain, qj.encode(plain, X)))
