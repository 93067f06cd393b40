"""What `train` is given: a model to continue from, settings of the recipe, and what it refuses."""

import dataclasses
import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from killed import CONFIG, vectors

import qinco_jax as qj
from qinco_jax import seeds
from qinco_jax.training import run_folder
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
    with pytest.raises(qj.InputError, match=r"given other weights to begin from \(init\)"):
        qj.train(X, init=further, recipe=LONGER, x_val=X_VAL, run_dir=run)


def test_centroids_of_the_model_stay() -> None:
    config = dataclasses.replace(CONFIG, num_centroids=10)
    first = qj.train(X, config, num_epochs=0)
    further = qj.train(X, init=first, recipe=LONGER, x_val=X_VAL)
    assert isinstance(first, qj.Qinco) and isinstance(further, qj.Qinco)
    np.testing.assert_array_equal(further.codebook, first.codebook)
    assert not np.array_equal(further.steps.codebook, first.steps.codebook)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"config": {"num_steps": 2}}, "config must be a QincoConfig or .*, not an .* type dict"),
        ({"config": CONFIG, "recipe": CONFIG}, "recipe must be a Recipe or the name of one, not"),
        ({"config": CONFIG, "init": "path"}, r"init must be a model, .* qinco_jax\.load\(path\)"),
        ({"config": CONFIG, "seed": True}, "seed must be an integer, got True"),
        ({"config": CONFIG, "num_epochs": 1.0}, "num_epochs must be an integer, got 1.0"),
        (
            {"config": CONFIG, "num_epochs": 2**31 - 1, "batch_size": 64},
            "batches, and at most 2,147,483,647 are",
        ),
        ({"config": CONFIG, "learning_rate": np.inf}, "learning_rate must be a finite number"),
        ({"config": CONFIG, "weight_decay": np.nan}, "weight_decay must be a finite number"),
        ({"config": CONFIG, "train_joint": 1}, "train_joint must be true or false, got 1"),
        ({"config": CONFIG, "train_beam": 10**12}, "train_beam must be 1 to 16,384"),
    ],
)
def test_arguments_of_another_kind_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(qj.InputError, match=words):
        qj.train(vectors(), **given)


def test_a_whole_set_or_a_masked_array_is_no_array_of_vectors() -> None:
    with pytest.raises(qj.InputError, match="x_train must be vectors, not a data set; give a part"):
        qj.train(qj.datasets.load("sift-photos"), CONFIG)  # type: ignore[arg-type]
    with pytest.raises(qj.InputError, match="the mask of x_train would be ignored"):
        qj.train(np.ma.masked_array(vectors(), mask=False), CONFIG)


def test_numbers_of_numpy_are_numbers() -> None:
    recipe = qj.Recipe(num_epochs=np.int64(1), learning_rate=np.float32(0.5))  # type: ignore[arg-type]
    assert recipe == qj.Recipe(num_epochs=1, learning_rate=0.5)
    config = qj.QincoConfig(num_steps=np.uint8(2), joint=np.True_)  # type: ignore[arg-type]
    assert config == qj.QincoConfig(num_steps=2, joint=True) and type(config.num_steps) is int


@pytest.mark.parametrize("name", ["embed_dim", "hidden_dim", "num_blocks", "beam_size", "dim"])
def test_no_size_is_without_bounds(name: str) -> None:
    with pytest.raises(qj.InputError, match=rf"{name} must be 1 to [\d,]+, got 1000000000000"):
        qj.QincoConfig(**{name: 10**12})  # type: ignore[arg-type]
    with pytest.raises(qj.InputError, match="these sizes make a model of"):
        qj.QincoConfig(embed_dim=2**20, hidden_dim=2**20).for_dim(8)


@pytest.mark.parametrize("more", [{"mix": 0.5}, {"num_centroids": 8}, {"num_parts": 2}], ids=str)
def test_64_bit_mode_trains_the_same_model(more: dict[str, Any], tmp_path: Path) -> None:
    recipe = {name: value for name, value in more.items() if name == "mix"}
    sizes = {name: value for name, value in more.items() if name != "mix"}
    config = dataclasses.replace(CONFIG, **sizes)
    expected = qj.train(vectors(), config, num_epochs=1, **recipe)
    with jax.enable_x64(True):
        found = qj.train(vectors(), config, num_epochs=1, **recipe)
        qj.save(found, tmp_path / "model")
        loaded = qj.load(tmp_path / "model")
    for model in (found, loaded):
        for one, other in zip(*map(jax.tree.leaves, (model, expected)), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def test_settings_that_do_not_belong_are_refused() -> None:
    first = qj.train(vectors(), CONFIG, num_epochs=0)
    x = vectors()
    with pytest.raises(qj.InputError, match=r"num_steps belongs to the config.*replace\(config"):
        qj.train(x, CONFIG, num_steps=4)
    with pytest.raises(qj.InputError, match="did you mean 'num_epochs'"):
        qj.train(x, CONFIG, num_epoch=4)
    with pytest.raises(qj.InputError, match="differs from that of init in num_steps; leave"):
        qj.train(x, dataclasses.replace(CONFIG, num_steps=2), init=first)
    with pytest.raises(qj.InputError, match="give a config, such as"):
        qj.train(x)
    with pytest.raises(qj.InputError, match="seed must be an integer"):
        qj.train(x, CONFIG, seed=jax.random.key(0))
    with pytest.raises(qj.InputError, match="seed must be 0 to 2,147,483,647, got 4294967296"):
        qj.train(x, CONFIG, seed=2**32)
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


def test_a_training_that_improves_on_nothing_says_so(tmp_path: Path) -> None:
    still = qj.Recipe(num_epochs=2, batch_size=64, learning_rate=0.0)
    with pytest.warns(UserWarning, match="no epoch improved on the start") as told:
        found = qj.train(X, CONFIG, still, x_val=X_VAL)
    assert told[0].filename == __file__, "where train was called"
    assert_same(found, qj.train(X, CONFIG, x_val=X_VAL, num_epochs=0))
    parts = dataclasses.replace(CONFIG, num_parts=2)
    with pytest.warns(UserWarning, match="improved on the start in .*/part-1, so the model"):
        qj.train(X, parts, still, x_val=X_VAL, run_dir=tmp_path)
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
    parts = [(seeds.PART, number) for number in range(3)]
    uses = [*parts, *((use,) for use in range(11) if use != seeds.PART)]
    found = {seeds.seed_for(seed, *use) for seed, use in itertools.product(range(20), uses)}
    assert len(found) == 20 * len(uses)
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
    state = qj.end_epoch(state, np.float32(mse(state.model)), jax.random.key(0), recipe, 16_384)
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


def test_what_an_interrupted_run_has_kept_is_what_lies_there(tmp_path: Path) -> None:
    for made, words in (
        ("metrics", "the same command starts over"),
        ("start", "no step yet"),
        ("part-1/checkpoints/20", "the last checkpoint is kept"),
        ("model", "to measure it"),
    ):
        (tmp_path / made).mkdir(parents=True)
        assert words in run_folder.kept_of(tmp_path)
