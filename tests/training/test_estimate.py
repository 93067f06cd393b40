"""What a training will take, foreseen from a few of its rows."""

import numpy as np
import pytest

from qinco_jax.config import QincoConfig
from qinco_jax.training import estimate, initial_model
from qinco_jax.training.loop import validation_error
from qinco_jax.training.recipe import Recipe, with_mix
from qinco_jax.training.start import variance

CONFIG = QincoConfig(num_steps=3, codebook_size=16, hidden_dim=8, num_blocks=1, num_candidates=2,
                     beam_size=2, dim=8, embed_dim=8)  # fmt: skip
RECIPE = with_mix(Recipe(num_epochs=1, batch_size=128, num_updates=1), 0.0)
FEW = 512  # for each codeword as many as of the preset `small`


def rows(count: int) -> np.ndarray:
    return np.float32(np.random.default_rng(0).normal(size=(count, 8)))


def errors(count: int) -> tuple[float, float]:
    """Of codebooks of the first rows, on these and on others, as shares of the variance."""
    x = rows(6000)
    model = initial_model.initial_model(x[:count], CONFIG, 0, None)
    own, others = x[:FEW], x[-1000:]
    own_error, held_back = (validation_error(model, each, RECIPE) for each in (own, others))
    return own_error / variance(model, others), held_back / variance(model, others)


@pytest.mark.parametrize(
    ("own", "held_back", "real"),
    [(0.2602, 0.3499, 0.3054), (0.1388, 0.2365, 0.1954), (0.0496, 0.1312, 0.1036)],
)
def test_sift_photos_start_as_was_foreseen(own: float, held_back: float, real: float) -> None:
    """Shares of the variance at 4, 8 and 16 bytes, of 8,192 rows and, of a real start, of 65,536.

    At 8 bytes the sample alone would have refits be counted that the run does not make.
    """
    found = estimate.of_more_rows(own, held_back, 8192, 65_536)
    assert abs(found - real) < 0.01
    assert (found > initial_model.LEFT_OVER) == (real > initial_model.LEFT_OVER)


def test_the_error_of_a_start_on_more_rows_is_foreseen() -> None:
    own, held_back = errors(FEW)
    _, real = errors(4096)
    found = estimate.of_more_rows(own, held_back, FEW, 4096)
    assert abs(found - real) < 0.7 * (held_back - real)
    assert estimate.of_more_rows(own, held_back, FEW, FEW) == pytest.approx(held_back, rel=1e-12)


@pytest.mark.parametrize("num_rows", [FEW, 5000])
def test_refits_are_counted_where_the_run_will_make_them(
    num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the error of the run's own start, not by the greater one of a start on a few rows."""
    monkeypatch.setattr(estimate, "MEASURED_ROWS", FEW)
    (_, few), (_, many) = errors(FEW), errors(4096)
    monkeypatch.setattr(initial_model, "LEFT_OVER", (few + many) / 2)
    monkeypatch.setattr(estimate, "_refitting", lambda *_: (1e6, 0.0))
    x = rows(6000)
    found = estimate.costs(x[:num_rows], x[-1000:], CONFIG, RECIPE)
    assert (found.start > 1e5) == (num_rows == FEW)
