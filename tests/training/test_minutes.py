"""Minutes as a schedule: it takes so long by the costs that were measured, and a run keeps it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qinco_jax.errors import InputError
from qinco_jax.training import run_folder
from qinco_jax.training.estimate import Costs
from qinco_jax.training.minutes import FEWEST_BATCHES, lasting
from qinco_jax.training.recipe import Recipe, length
from qinco_jax.training.run_folder import Schedule


@given(
    minutes=st.floats(0.5, 500),
    start=st.floats(0, 25),
    batch=st.floats(1e-3, 1),
    validation=st.floats(1e-3, 5),
    num_rows=st.integers(300, 10**7),
)
def test_a_schedule_takes_the_minutes_that_were_asked_for(
    minutes: float, start: float, batch: float, validation: float, num_rows: int
) -> None:
    found, recipe = Costs(start, 2.0, batch, validation, 0, 0), Recipe()
    try:
        chosen = lasting(minutes, 1.0, found, recipe, num_rows)
    except InputError:
        least = 3 + start + 2 * validation + FEWEST_BATCHES * batch
        assert 60 * minutes < least + validation + batch
        return
    own = Recipe(num_epochs=chosen.num_epochs, epoch_rows=chosen.epoch_rows)
    _, per_epoch, batches = length(own, num_rows)
    validating = (1 + chosen.num_epochs) * validation
    taken = 3 + start + batches * batch + validating
    assert batches >= FEWEST_BATCHES and chosen.epoch_rows <= num_rows
    assert taken <= 60 * minutes + 1e-6
    rounding = max(chosen.num_epochs * batch, per_epoch * batch + validation)
    assert taken > 60 * minutes - rounding - batch - 1e-6


def test_too_few_minutes_are_refused_with_how_many_do() -> None:
    found, recipe = Costs(50.0, 9.0, 0.5, 2.0, 0, 0), Recipe()
    with pytest.raises(InputError, match=r"1 min is too short: .* 61 seconds .* least 1\.3$"):
        lasting(1, 0.0, found, recipe, 9000)
    assert lasting(1.3, 0.0, found, recipe, 9000).num_epochs >= 1


def test_a_run_keeps_its_schedule(tmp_path: Path) -> None:
    first = Schedule(2.0, 3, 512)
    assert run_folder.scheduled(tmp_path / "run", 2.0, lambda: first) == first
    slower = Schedule(2.0, 2, 512)
    assert run_folder.scheduled(tmp_path / "run", 2.0, lambda: slower) == first
    with pytest.raises(InputError, match="trains for 2 minutes, not 3; choose another folder"):
        run_folder.scheduled(tmp_path / "run", 3.0, lambda: slower)
    (tmp_path / run_folder.IDENTITY).write_text("{}")
    with pytest.raises(InputError, match="began without minutes"):
        run_folder.scheduled(tmp_path, 2.0, lambda: slower)
    assert not (tmp_path / run_folder.SCHEDULE).exists()
