"""Run folders that an earlier version wrote."""

import dataclasses
import gc
import shutil
from pathlib import Path

import numpy as np
import pytest

import qinco_jax as qj

OLD = Path(__file__).parents[1] / "models" / "old"
CONFIG = qj.QincoConfig(
    num_steps=2, codebook_size=4, hidden_dim=4, num_blocks=1, num_candidates=2, beam_size=2
)
RECIPE = qj.Recipe(num_epochs=2, batch_size=32, num_updates=1)
every_run = pytest.mark.parametrize(
    ("name", "config"),
    [("plain", CONFIG), ("unit_norm", dataclasses.replace(CONFIG, unit_norm=True))],
)


@every_run
def test_an_older_run_goes_on_to_the_end(name: str, config: qj.QincoConfig, tmp_path: Path) -> None:
    """It was stopped at step 4 of 6; `codes.npy` is of the model that older code ended with."""
    shutil.unpack_archive(OLD / f"{name}.zip", tmp_path)
    x, steps = np.load(tmp_path / "x.npy"), []
    model = qj.train(
        x, config, RECIPE, run_dir=tmp_path / "run", log=lambda record: steps.append(record["step"])
    )
    assert min(steps) > 4 and max(steps) == 6
    assert (qj.encode(model, x) == np.load(tmp_path / "codes.npy")).mean() > 0.95
    assert (tmp_path / "run" / "model").exists()


@every_run
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damage_in_an_older_checkpoint_is_refused(
    name: str, config: qj.QincoConfig, tmp_path: Path
) -> None:
    shutil.unpack_archive(OLD / f"{name}.zip", tmp_path)
    for file in (tmp_path / "run" / "checkpoints" / "4" / "default" / "d").iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(qj.InputError, match=r"checkpoint .*/checkpoints/4 is damaged; remove"):
        qj.train(np.load(tmp_path / "x.npy"), config, RECIPE, run_dir=tmp_path / "run")
    gc.collect()  # what Orbax leaves open after a failed restore is reported here
