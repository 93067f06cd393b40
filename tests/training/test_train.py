"""What `train` is given: a model to continue from, settings of the recipe, and what it refuses."""

import dataclasses
import itertools
import json
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from killed import CONFIG, vectors

import qinco_jax as qj
from qinco_jax.training import run_folder, seeds
from qinco_jax.training.recipe import of_preset

X, X_VAL = np.split(vectors(4000), [3600])
LONGER = qj.Recipe(num_epochs=10, batch_size=64)


def mse(model: qj.Qinco | qj.Product, x: np.ndarray = X_VAL) -> float:
    return float(np.square(x - qj.decode(model, qj.encode(model, x))).sum(axis=1).mean())


def assert_same(a: object, b: object) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("parts", [1, 2])
def test_training_goes_on_from_a_model(parts: int, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_parts=parts)
    first = qj.train(X, config, num_epochs=0)
    assert_same(first, qj.train(X, init=first, num_epochs=0))
    run = tmp_path / "run"
    further = qj.train(X, init=first, recipe=LONGER, x_val=X_VAL, run_dir=run)
    assert further.config == first.config and mse(further) < mse(first)
    assert_same(further, qj.train(X, first.config, LONGER, x_val=X_VAL, init=first, run_dir=run))
    assert_same(run_folder.start_of(run, further), first)
    with pytest.raises(qj.InputError, match="belongs to another run: init is"):
        qj.train(X, init=further, recipe=LONGER, x_val=X_VAL, run_dir=run)


def test_centroids_of_the_model_stay() -> None:
    config = dataclasses.replace(CONFIG, num_centroids=10)
    first = qj.train(X, config, num_epochs=0)
    further = qj.train(X, init=first, recipe=LONGER, x_val=X_VAL)
    assert isinstance(first, qj.Qinco) and isinstance(further, qj.Qinco)
    np.testing.assert_array_equal(further.codebook, first.codebook)
    assert not np.array_equal(further.steps.codebook, first.steps.codebook)


def test_settings_that_do_not_belong_are_refused() -> None:
    first = qj.train(vectors(), CONFIG, num_epochs=0)
    x = vectors()
    with pytest.raises(qj.InputError, match=r"num_steps belongs to the config.*replace\(config"):
        qj.train(x, CONFIG, num_steps=4)
    with pytest.raises(qj.InputError, match="did you mean 'num_epochs'"):
        qj.train(x, CONFIG, num_epoch=4)
    with pytest.raises(qj.InputError, match="the config differs from that of init"):
        qj.train(x, dataclasses.replace(CONFIG, num_steps=2), init=first)
    with pytest.raises(qj.InputError, match="give a config, such as"):
        qj.train(x)
    with pytest.raises(qj.InputError, match="seed must be an integer"):
        qj.train(x, CONFIG, seed=jax.random.key(0))
    with pytest.raises(qj.InputError, match="did you mean 'small'"):
        qj.train(x, "smal")
    with pytest.raises(qj.InputError, match="leave out centroids"):
        qj.train(x, init=first, centroids=x[:10])


def test_a_preset_is_given_by_name() -> None:
    x = vectors(300)
    model = qj.train(x, "small", num_epochs=0)
    assert model.config == qj.PRESETS["small"].for_dim(8)
    assert_same(model, qj.train(x, qj.PRESETS["small"], num_epochs=0))


def test_a_recipe_is_given_by_name_or_chosen_by_the_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = vectors(300)
    qj.train(x, "small", "accelerator", num_epochs=0, run_dir=tmp_path)
    there = json.loads((tmp_path / run_folder.IDENTITY).read_text())["recipe"]
    assert (there["batch_size"], there["default_rows"]) == (296, 4_800_000)  # of 300 rows
    with pytest.raises(qj.InputError, match="unknown recipe 'accelerato'; did you mean"):
        qj.train(x, "small", "accelerato")
    assert of_preset("small") is qj.RECIPES["small"]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert of_preset("small") is qj.RECIPES["accelerator"]
    assert of_preset("qinco2-M") is qj.RECIPES["qinco2-M"]


def test_a_training_that_improves_on_nothing_says_so() -> None:
    still = qj.Recipe(num_epochs=2, batch_size=64, learning_rate=0.0)
    with pytest.warns(UserWarning, match="no epoch improved on the start"):
        found = qj.train(X, CONFIG, still, x_val=X_VAL)
    assert_same(found, qj.train(X, CONFIG, x_val=X_VAL, num_epochs=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qj.train(X, CONFIG, LONGER, x_val=X_VAL)


@pytest.mark.parametrize("num_rows", [300, 5000])
def test_few_rows_of_noise_never_end_worse_than_they_began(num_rows: int, tmp_path: Path) -> None:
    """Noise has nothing to learn; by the search and on the vectors that training goes by."""
    x = np.random.default_rng(0).normal(size=(num_rows, 8)).astype(np.float32)
    recipe = qj.Recipe(num_epochs=3, batch_size=64, learning_rate=0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that no epoch improved on the start
        model = qj.train(x, CONFIG, recipe, run_dir=tmp_path)
    start, held_back = run_folder.start_of(tmp_path, model), x[-(num_rows // 10) :]
    assert start is not None
    assert mse(model, held_back) <= mse(start, held_back) * (1 + 1e-6)


def test_every_use_of_a_seed_has_numbers_of_its_own() -> None:
    uses = itertools.product(range(20), [(0,), (1,), (2, 0), (2, 1), (2, 2)])
    assert len({seeds.seed_for(seed, *use) for seed, use in uses}) == 100
    config = dataclasses.replace(CONFIG, num_parts=2)
    model = qj.train(np.tile(X[:, :4], 2), config, num_epochs=0)  # both sub-vectors are alike
    assert isinstance(model, qj.Product)
    first, second = model.parts
    assert np.abs(first.steps.up - second.steps.up).max() > 0.1


def test_a_loop_of_ones_own_trains() -> None:
    """The public pieces of the loop, put together as the README shows."""
    recipe = qj.Recipe(batch_size=256)
    model = qj.train(X, CONFIG, num_epochs=0)
    assert isinstance(model, qj.Qinco)
    state = qj.init_state(model, recipe)
    for step in range(60):
        rows = np.random.default_rng(step).choice(len(X), recipe.batch_size, replace=False)
        state, value = qj.train_step(state, X[rows], recipe, 60)
    assert int(state.step) == 60 and np.isfinite(float(value))
    z = (X - np.asarray(model.mean)) / np.asarray(model.scale)
    (at_start, _), (total, x_hat) = (qj.loss(m, z, qj.encode(m, X)) for m in (model, state.model))
    assert x_hat.shape == (3, *X.shape) and 0 < float(total) < float(at_start)
    last = jax.device_get(state.model)
    state = qj.end_epoch(state, np.float32(mse(state.model)), jax.random.key(0), recipe)
    assert_same(state.best, last)


@pytest.mark.parametrize(
    ("mix", "doing"), [(0.0, "residual k-means"), (0.7, "residual k-means of moved vectors")]
)
def test_the_kmeans_before_training_is_told(mix: float, doing: str) -> None:
    told: dict[str, list[tuple[float, float]]] = {}

    def advance(done: float, total: float, doing: str = "") -> None:
        told.setdefault(doing, []).append((done, total))

    config = dataclasses.replace(CONFIG, num_centroids=10)
    qj.train(X, config, num_epochs=0, x_val=X_VAL, mix=mix, advance=advance)
    assert list(told) == ["nearest neighbours"] * (mix > 0) + ["coarse k-means", doing]
    assert told[doing] == [(m, CONFIG.num_steps) for m in range(CONFIG.num_steps + 1)]
    assert told["coarse k-means"][-1][0] == told["coarse k-means"][-1][1]
