"""Run folders: damaged or older checkpoints, and two processes in one folder."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import qinco_jax as qj
from qinco_jax.models import old_digests, orbax

OLD = Path(__file__).parents[1] / "models" / "old"
CONFIG = qj.QincoConfig(
    num_steps=2, codebook_size=4, hidden_dim=4, num_blocks=1, num_candidates=2, beam_size=2
)
RECIPE = qj.Recipe(num_epochs=2, batch_size=32, num_updates=1, mix=0.0)
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


@pytest.mark.parametrize("older_digest", [True, False])
def test_a_checkpoint_of_other_arrays_is_refused(older_digest: bool, tmp_path: Path) -> None:
    tree = {
        "a": np.ones((2, 3), np.float32),
        "b": [np.zeros((), np.int32), np.zeros(0, np.float32)],
    }
    other = {**tree, "a": tree["a"] + 1}
    compute = old_digests.digest if older_digest else orbax._digest
    with pytest.MonkeyPatch.context() as patch, orbax.Checkpoints(tmp_path / "same") as same:
        patch.setattr(orbax, "_digest", compute)
        same.save(1, tree, 0.5)
    with pytest.MonkeyPatch.context() as patch, orbax.Checkpoints(tmp_path / "other") as wrong:
        patch.setattr(orbax, "_digest", lambda _: compute(other))
        wrong.save(1, tree, 0.5)
    with orbax.Checkpoints(tmp_path / "same") as same:
        jax.tree.map(np.testing.assert_array_equal, same.restore_latest(tree), tree)
    damaged = pytest.raises(qj.InputError, match=r"other/1 is damaged.*do not match their digest")
    with orbax.Checkpoints(tmp_path / "other") as wrong, damaged:
        wrong.restore_latest(tree)


@every_run
def test_damage_in_an_older_checkpoint_is_refused(
    name: str, config: qj.QincoConfig, tmp_path: Path
) -> None:
    shutil.unpack_archive(OLD / f"{name}.zip", tmp_path)
    for file in (tmp_path / "run" / "checkpoints" / "4" / "default" / "d").iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(qj.InputError, match=r"checkpoint .*/checkpoints/4 is damaged; remove"):
        qj.train(np.load(tmp_path / "x.npy"), config, RECIPE, run_dir=tmp_path / "run")


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    """The second is refused by name, before it touches anything; a killed one's lock is gone."""
    x, run = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32), tmp_path / "run"
    np.save(tmp_path / "x.npy", x)
    first = subprocess.Popen([sys.executable, "-c", WAITING, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None and first.stdout.readline() == b"training\n"
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
        with pytest.raises(qj.InputError, match=f"^process {first.pid} on .* trains in {run}"):
            qj.train(x, CONFIG, RECIPE, run_dir=run)
        after = {path: path.stat().st_mtime_ns for path in before}
        assert after | {run / ".lock": 0} == before | {run / ".lock": 0}
    finally:
        first.kill()
        first.communicate()
    model = qj.train(x, CONFIG, RECIPE, run_dir=run)
    assert (run / "model").exists() and model.dim == 4
    assert not (run / ".holder").exists()


WAITING = f"""
import sys, time
import numpy as np
import qinco_jax as qj

def log(record):
    print("training", flush=True)
    time.sleep(600)

config, recipe = qj.{CONFIG}, qj.{RECIPE}
folder = sys.argv[1]
qj.train(np.load(folder + "/x.npy"), config, recipe, run_dir=folder + "/run", log=log)
"""
