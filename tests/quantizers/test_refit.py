"""Codebooks that are fitted anew together: less error, by the least squares that they say."""

import numpy as np
import pytest

import qinco_jax as qj
from qinco_jax.quantizers import refit
from qinco_jax.training.initial_model import gains_by_refits, initial_model, refitted

RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(900, 8)) @ RNG.normal(size=(8, 8)) + 3)
MODEL = qj.rq.train(X, 3, 16)


def error(x: np.ndarray, x_hat: object) -> float:
    return float(np.square(np.float64(x) - np.asarray(x_hat)).sum(axis=1).mean())


def test_no_other_codebooks_suit_the_codes_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what draws a codeword to the mean, as one more vector."""
    monkeypatch.setattr(refit, "NOISY_ROUNDS", 0)
    monkeypatch.setattr(refit, "QUIET_ROUNDS", 1)
    found = refit.refitted(MODEL, X, seed=0)
    codes = np.asarray(qj.rq.encode(MODEL, X, beam_size=refit.BEAM))
    chosen = np.zeros((len(X), 3, 16))
    np.put_along_axis(chosen, codes[:, :, None].astype(int), 1, axis=2)
    chosen = chosen.reshape(len(X), -1)
    best = chosen @ np.linalg.lstsq(chosen, np.float64(X))[0]
    own = error(X, qj.rq.decode(found, codes))
    assert error(X, best) <= own < 1.02 * error(X, best)
    assert own < error(X, qj.rq.decode(MODEL, codes))


def test_noise_that_cools_down_ends_lower_than_rounds_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = np.float32(RNG.normal(size=(2000, 32)))
    start = qj.rq.train(x, 4, 16)

    def after(noisy: int, quiet: int) -> float:
        monkeypatch.setattr(refit, "NOISY_ROUNDS", noisy)
        monkeypatch.setattr(refit, "QUIET_ROUNDS", quiet)
        model = refit.refitted(start, x, seed=0)
        return error(x, qj.rq.decode(model, qj.rq.encode(model, x, beam_size=32)))

    plain, quiet, noisy = after(0, 0), after(0, 19), after(16, 3)
    assert noisy < 0.99 * quiet < 0.97 * plain


def test_the_model_keeps_its_form_and_gives_the_same_numbers_again() -> None:
    config = qj.QincoConfig(
        num_steps=3, codebook_size=16, hidden_dim=4, num_candidates=4, beam_size=8
    ).for_dim(8)
    plain = initial_model(X, config, 0, None)
    told: list[tuple[float, float]] = []

    def advance(done: float, total: float, doing: str = "") -> None:
        told.append((done, total))

    model, again = (refitted(plain, X, seed=0, advance=advance) for _ in range(2))
    assert (model.steps.codebook == model.steps.preselect).all() and model.config == plain.config
    assert (model.codebook == again.codebook).all() and told[18] == (19, 19)
    x_hat = qj.decode(model, qj.encode(model, X))
    assert error(X, x_hat) < error(X, qj.decode(plain, qj.encode(plain, X)))


@pytest.mark.parametrize(
    ("settings", "error", "gains"),
    [
        ({}, 0.4, True),
        ({}, 0.1, False),  # networks need the order of the residual steps there
        ({"num_centroids": 8}, 0.4, False),
        ({"num_steps": 1}, 0.4, False),
        ({"num_steps": 64}, 0.4, False),  # too many codewords to solve for
    ],
)
def test_where_little_is_left_over_the_residual_codebooks_stay(
    settings: dict[str, int], error: float, gains: bool
) -> None:
    assert gains_by_refits(qj.QincoConfig(dim=8, **settings), error, 1.0) is gains
