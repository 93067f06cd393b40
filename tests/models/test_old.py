"""Models and runs that version 0.1 wrote before 2026-11-26, when configs said `normalize`."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

import qinco_jax as qj

X = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    shutil.unpack_archive(Path(__file__).with_name("before-2026-11-26.zip"), tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["model", "model.safetensors"])
def test_a_model_still_loads(old: Path, name: str) -> None:
    model = qj.load(old / name)
    assert model.config.unit_norm
    np.testing.assert_array_equal(qj.encode(model, X), np.load(old / "codes.npy"))


def test_a_run_that_was_cut_off_still_goes_on(old: Path) -> None:
    config = qj.QincoConfig(
        num_steps=2, codebook_size=4, hidden_dim=4, num_blocks=1, num_candidates=2, beam_size=2,
        unit_norm=True,
    )  # fmt: skip
    recipe, steps = qj.Recipe(num_epochs=4, batch_size=32, num_updates=2), []
    qj.train(
        X, config, recipe, run_dir=old / "run", log=lambda record: steps.append(record["step"])
    )
    assert min(steps) > 8 and max(steps) == 20
    other = dataclasses.replace(config, unit_norm=False)
    with pytest.raises(qj.InputError, match=r"belongs to another run: config\.unit_norm is True"):
        qj.train(X, other, recipe, run_dir=old / "run")
