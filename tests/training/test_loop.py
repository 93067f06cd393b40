"""Training as a user meets it: the same result every time, whatever stops it on the way."""

import dataclasses
import gc
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import killed
import numpy as np
import pytest
from killed import CONFIG, RECIPE, vectors

import qinco_jax as qj
from qinco_jax.interrupts import Interrupted
from qinco_jax.training import feed, loop
from qinco_jax.training import recipe as recipe_module
from qinco_jax.training import step as training


def leaves(model: qj.Qinco) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model)]


def assert_same(a: qj.Qinco, b: qj.Qinco) -> None:
    for left, right in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)


def interrupt(record: dict[str, float]) -> None:
    """Ctrl-C, once."""
    if record["step"] == 20:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def uninterrupted() -> qj.Qinco:
    return qj.train(vectors(), CONFIG, RECIPE)


def test_same_seed_same_model(uninterrupted: qj.Qinco) -> None:
    assert_same(uninterrupted, qj.train(vectors(), CONFIG, RECIPE))
    other = qj.train(vectors(), CONFIG, RECIPE, seed=1)
    assert not np.array_equal(other.codebook, uninterrupted.codebook)


def test_training_lowers_the_error_of_the_residual_quantizer() -> None:
    x = vectors(4000)
    config = dataclasses.replace(CONFIG, form="qinco2", embed_dim=8)
    start = qj.train(x, config, num_epochs=0)
    model = qj.train(x, config, num_epochs=10, batch_size=64)
    error = [np.square(x - qj.decode(m, qj.encode(m, x))).sum(1).mean() for m in (start, model)]
    assert error[1] < 0.97 * error[0]


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_every_recipe_trains(schedule: str, compute_dtype: str) -> None:
    records: list[dict[str, float]] = []
    qj.train(
        vectors(), CONFIG, RECIPE, schedule=schedule, compute_dtype=compute_dtype, clip=None,
        weight_decay=0.0, log=lambda record: records.append(dict(record)),
    )  # fmt: skip
    errors = [record["val_mse"] for record in records if "val_mse" in record]
    assert len(errors) == 1 + RECIPE.num_epochs and errors[-1] < 1.05 * errors[0]
    assert all(0 <= record["waiting"] <= 1 for record in records if "loss" in record)


def test_ctrl_c_saves_and_the_same_call_goes_on(tmp_path: Path, uninterrupted: qj.Qinco) -> None:
    with pytest.raises(Interrupted, match=r"stopped at step 2[01] .* again to resume"):
        qj.train(vectors(), CONFIG, RECIPE, run_dir=tmp_path / "run", log=interrupt)
    steps: list[float] = []
    model = qj.train(
        vectors(), CONFIG, RECIPE, run_dir=tmp_path / "run", log=lambda r: steps.append(r["step"])
    )
    assert min(steps) > 20
    assert_same(model, uninterrupted)


def test_a_set_in_pools_trains_the_same_in_memory_and_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: qj.Qinco
) -> None:
    monkeypatch.setattr(feed, "BLOCK_BYTES", 64)
    monkeypatch.setattr(feed, "POOL_BYTES", 2**12)
    np.save(tmp_path / "x.npy", vectors())
    in_pools = qj.train(vectors(), CONFIG, RECIPE)
    assert not np.array_equal(in_pools.codebook, uninterrupted.codebook)
    assert_same(in_pools, qj.train(np.load(tmp_path / "x.npy", mmap_mode="r"), CONFIG, RECIPE))


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    model = qj.train(vectors(), CONFIG, RECIPE, run_dir=tmp_path)
    records: list[object] = []
    again = qj.train(vectors(), CONFIG, RECIPE, run_dir=tmp_path, log=records.append)
    assert not records
    assert_same(again, model)
    assert_same(qj.load(tmp_path / "model"), model)


def test_the_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    qj.train(vectors(), CONFIG, RECIPE, run_dir=tmp_path, num_epochs=0)
    with pytest.raises(qj.InputError, match=r"recipe.num_epochs is 0 there and 3 here"):
        qj.train(vectors(), CONFIG, RECIPE, run_dir=tmp_path, x_val=vectors()[:9], mix=0)
    with pytest.raises(qj.InputError, match=r"it was given other training vectors"):
        qj.train(vectors() + 1, CONFIG, RECIPE, run_dir=tmp_path, num_epochs=0)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    qj.save(qj.train(vectors(), CONFIG, num_epochs=0), tmp_path / "model")
    with pytest.raises(qj.InputError, match="/model exists but belongs to no run"):
        qj.train(vectors(), CONFIG, RECIPE, run_dir=tmp_path)


def test_a_model_of_one_step_trains_and_is_kept(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_steps=1)
    model = qj.train(vectors(), config, RECIPE, run_dir=tmp_path)
    assert_same(qj.load(tmp_path / "model"), model)
    assert qj.encode(model, vectors()).shape == (1000, 1)


def test_what_is_returned_is_never_worse_than_the_start() -> None:
    x, x_val = vectors(200), vectors(1300)[1000:]
    start = qj.train(x, CONFIG, num_epochs=0, x_val=x_val)
    model = qj.train(x, CONFIG, RECIPE, x_val=x_val, learning_rate=1.0)
    error = [np.square(x_val - qj.decode(m, qj.encode(m, x_val))).sum() for m in (start, model)]
    assert error[1] <= error[0] * (1 + 1e-6)


def test_a_loss_that_diverges_stops_with_the_last_checkpoint_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "LOG_STEPS", 1)
    with pytest.raises(loop.Diverged, match=r"became NaN or Inf by step \d+; the checkpoint of"):
        qj.train(
            vectors(), CONFIG, RECIPE, run_dir=tmp_path, learning_rate=1e3, clip=None, warmup=0.9
        )
    with loop.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        state = loop._restore(checkpoints, CONFIG.for_dim(8), RECIPE)
    assert state is not None and all(np.isfinite(leaf).all() for leaf in leaves(state.model))


def run_and_kill_at(folder: Path, *steps: int) -> qj.Qinco:
    """Runs the same command until it ends, killed each time that it reaches one of `steps`."""
    command = [sys.executable, str(Path(killed.__file__)), str(folder)]
    for step in (*steps, None):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip() == str(step):
                    process.send_signal(signal.SIGKILL)
        assert process.returncode == (0 if step is None else -signal.SIGKILL)
    return qj.load(folder / "model")


def test_killed_at_any_moment_it_ends_with_the_same_model(tmp_path: Path) -> None:
    """Checkpoints are saved at every step here, so a kill hits one that is being written."""
    often_killed = run_and_kill_at(tmp_path / "killed", 1, 20, 42)
    assert_same(often_killed, run_and_kill_at(tmp_path / "uninterrupted"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        qj.train(vectors(), CONFIG, RECIPE, run_dir=tmp_path, log=interrupt)
    newest = max((tmp_path / "checkpoints").iterdir(), key=lambda path: int(path.name))
    for path in newest.rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(qj.InputError, match=r"checkpoint .*/checkpoints/\d+ is damaged; remove"):
        qj.train(vectors(), CONFIG, RECIPE, run_dir=tmp_path)
    gc.collect()  # what Orbax leaves open after a failed restore is reported here


def test_64_bit_mode_widens_nothing_in_a_loop_of_ones_own() -> None:
    model = qj.train(vectors(), CONFIG, num_epochs=0)
    with jax.enable_x64(True):
        state = training.init_state(model, RECIPE)
        kinds = [leaf.dtype for leaf in jax.tree.leaves(state)]
        state, loss = training.train_step(state, vectors()[: RECIPE.batch_size], RECIPE, 10)
        used = jnp.full_like(state.usage, 100).at[0, 3].set(0)
        state = dataclasses.replace(state, usage=used)
        state = training.end_epoch(state, jnp.float32(1), jax.random.key(0), RECIPE, 16_384)
    assert [leaf.dtype for leaf in jax.tree.leaves(state)] == kinds
    assert loss.dtype == jnp.float32 and not state.usage.any(), "a codeword was drawn anew"


def test_a_codeword_that_nothing_used_is_drawn_anew() -> None:
    model = qj.train(vectors(), CONFIG, num_epochs=0)
    state = training.init_state(model, RECIPE)
    used = jnp.full_like(state.usage, 100).at[0, 3].set(0).at[2, 5].set(0)
    before = jax.tree.map(jnp.copy, state.model)
    state = dataclasses.replace(
        state, usage=used, residual_mean=state.residual_mean + 7.0,
        moments=jax.tree.map(jnp.ones_like, state.moments),
    )  # fmt: skip
    after = training.end_epoch(state, jnp.float32(1), jax.random.key(0), RECIPE, 16_384)
    changed = np.argwhere((after.model.codebook != before.codebook).any(-1)).tolist()
    assert changed == [[3]]
    for book in ("codebook", "preselect"):
        new, old = getattr(after.model.steps, book), getattr(before.steps, book)
        assert np.argwhere((new != old).any(-1)).tolist() == [[1, 5]]
        assert np.abs(new[1, 5] - 7).max() < 5
    first, steps = after.moments[1].mu  # of Adam
    for moments, dead in ((first, [[3]]), (steps.codebook, [[1, 5]]), (steps.preselect, [[1, 5]])):
        assert np.argwhere((moments == 0).any(-1)).tolist() == dead
    assert (steps.up == 1).all()
    assert not after.usage.any()
    assert_same(after.best, before)


@pytest.mark.parametrize("times, num_rows", [(1, 16_384), (100, 300)])
def test_few_vectors_say_nothing_of_a_codeword_that_none_used(times: int, num_rows: int) -> None:
    """As of 300 rows and 256 codewords, of which a third stay unused by chance, in every epoch."""
    model = qj.train(vectors(), CONFIG, num_epochs=0)
    state = training.init_state(model, RECIPE)
    used = np.full(state.usage.shape, times, np.int32)
    used[0, 3] = 0
    state = dataclasses.replace(state, usage=jnp.asarray(used))
    after = training.end_epoch(state, jnp.float32(1), jax.random.key(0), RECIPE, num_rows)
    np.testing.assert_array_equal(after.model.codebook, model.codebook)
    if times == 1:  # they are counted on until there are enough
        np.testing.assert_array_equal(after.usage, used)


def test_the_plateau_schedule_lowers_the_rate_and_gives_up() -> None:
    recipe = dataclasses.replace(RECIPE, schedule="plateau", patience=2, warmup=0.0)
    state = training.init_state(qj.train(vectors(), CONFIG, num_epochs=0), recipe)
    rates = []
    for mse in [3.0, 2.0, *[2.5] * 10]:
        assert not training.is_exhausted(state, recipe)
        state = training.end_epoch(state, jnp.float32(mse), jax.random.key(0), recipe, 16_384)
        rates.append(float(training.rate(state, recipe, 100)) / recipe.learning_rate)
    np.testing.assert_allclose(rates[:6], [1, 1, 1, 0.1, 0.1, 0.01], rtol=1e-5)
    assert training.is_exhausted(state, recipe)


def test_the_cosine_reaches_its_floor() -> None:
    recipe = dataclasses.replace(RECIPE, final_rate=0.01, warmup=0.1)
    state = training.init_state(qj.train(vectors(), CONFIG, num_epochs=0), recipe)

    def at(step: int) -> float:
        there = dataclasses.replace(state, step=jnp.int32(step))
        return float(training.rate(there, recipe, 1000))

    assert at(99) > 0.98 * recipe.learning_rate > 4 * at(20)
    np.testing.assert_allclose(at(1000), 0.01 * recipe.learning_rate, rtol=1e-3)


@pytest.mark.parametrize(
    ("x", "changes", "message"),
    [
        (np.where(np.arange(1000)[:, None] == 700, np.nan, vectors()), {}, "row 700 .* NaN or Inf"),
        (np.where(np.arange(1000)[:, None] == 990, np.inf, vectors()), {}, "row 90 .* NaN or Inf"),
        (vectors(10), {}, "9 training vectors for 16 codewords"),
        (vectors()[:0], {}, "0 training vectors"),
        (vectors()[0], {}, r"x_train has shape \(8,\)"),
        (vectors() > 0, {}, "dtype bool"),
        (vectors(), {"num_epoch": 3}, "did you mean 'num_epochs'"),
        (vectors(), {"schedule": "linear"}, "unknown schedule 'linear'; known: cosine, plateau"),
        (vectors(), {"batch_size": 0}, "batch_size must be 1 to"),
        (vectors(), {"batch_size": 7, "num_updates": 8}, "7 rows cannot be shared by 8 updates"),
        (vectors(), {"train_candidates": 17}, "train_candidates must be at most 16"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_first(
    x: np.ndarray, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(qj.InputError, match=message):
        qj.train(x, CONFIG, RECIPE, run_dir=tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_config_refuses_what_makes_no_model() -> None:
    for changes in ({"num_steps": 0}, {"codebook_size": 1}, {"num_candidates": 17}, {"form": "x"}):
        with pytest.raises(qj.InputError, match=re.escape(next(iter(changes)))):
            dataclasses.replace(CONFIG, **changes)
    with pytest.raises(qj.InputError, match="vectors, got 8"):
        qj.train(vectors(), dataclasses.replace(CONFIG, dim=9), num_epochs=0)


def test_the_default_length_is_minutes_whatever_the_set() -> None:
    recipe = recipe_module.RECIPES["small"]
    for num_rows in (95_000, 490_000, 10_000_000):
        batch_size, _, num_batches = recipe_module.length(recipe, num_rows)
        assert 1 <= num_batches * batch_size / recipe.default_rows < 1.3
