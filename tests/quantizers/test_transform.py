"""Vectors scaled, centered and rotated by the model: what it sees, keeps and gives back."""

import dataclasses
import functools
import json
import os
import signal
from pathlib import Path

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from click.testing import CliRunner
from hypothesis import strategies as st

import qinco_jax as qj
from qinco_jax.cli import main as cli
from qinco_jax.evaluate import tables
from qinco_jax.interrupts import Interrupted
from qinco_jax.models import orbax
from qinco_jax.quantizers import qinco, transform

D = 6
CONFIG = qj.QincoConfig(
    dim=D, num_steps=3, codebook_size=16, hidden_dim=8, num_blocks=1, num_candidates=5, beam_size=4
)
RECIPE = qj.Recipe(num_epochs=3, batch_size=64, num_updates=2)
PLAIN = {"unit_norm": False, "center": True, "rotate": False}
EVERY = {
    "plain": PLAIN,
    "unit_norm": {**PLAIN, "unit_norm": True},
    "not centered": {**PLAIN, "center": False},
    "rotate": {**PLAIN, "rotate": True},
    "rotate alone": {**PLAIN, "center": False, "rotate": True},
    "all": dict.fromkeys(PLAIN, True),
}
every_transform = pytest.mark.parametrize("options", EVERY.values(), ids=EVERY)


def correlated(num_rows: int, seed: int = 0) -> np.ndarray:
    """Vectors whose variance lies along axes of no single dimension, away from 0."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(num_rows, D)) * 2.0 ** -np.arange(D)
    axes = np.linalg.qr(np.random.default_rng(9).normal(size=(D, D)))[0]
    return np.float32(mixed @ axes + 1)


X = correlated(1200)
MODELS = {
    name: oracle.random_model(dataclasses.replace(CONFIG, **options))
    for name, options in EVERY.items()
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
EVERYTHING = MODELS["all"]


def leaves(model: qj.Qinco) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model)]


def assert_same(a: qj.Qinco, b: qj.Qinco) -> None:
    assert a.config == b.config
    for left, right in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)


def units(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(np.float64(x), axis=1, keepdims=True)


@every_model
def test_model_space_codes_and_vectors_are_the_oracles(model: qj.Qinco) -> None:
    x, wide = oracle.random_vectors(20, D), oracle.in_float64(model)
    z = transform.to_model_space(jnp.asarray(x), model.transform)
    np.testing.assert_allclose(
        z, [oracle.to_model_space(wide, row) for row in x], rtol=1e-4, atol=1e-5
    )
    back = transform.from_model_space(z, model.transform)
    np.testing.assert_allclose(
        back, units(x) if model.config.unit_norm else x, rtol=1e-4, atol=1e-5
    )
    found = [oracle.encode(model, row, 5, 4)[0] for row in x]
    codes = qj.encode(model, x)
    assert (np.asarray(codes) != found).any(axis=1).sum() <= 1  # a tie, up to rounding
    expected = [oracle.decode(model, row) for row in np.asarray(codes)]
    np.testing.assert_allclose(qj.decode(model, codes), expected, rtol=1e-4, atol=1e-4)


@every_transform
def test_a_fitted_transform_does_what_it_says(options: dict[str, bool]) -> None:
    found = transform.of_rows(X, **options)
    z = np.asarray(transform.to_model_space(jnp.asarray(X), found), np.float64)
    if options["center"]:
        np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(z.var(axis=0).mean(), 1, rtol=1e-5)
    else:
        assert not np.any(found.mean)
        np.testing.assert_allclose(np.square(z).mean(), 1, rtol=1e-5)
    if options["rotate"]:
        rotation = np.asarray(found.rotation, np.float64)
        np.testing.assert_allclose(rotation.T @ rotation, np.eye(D), atol=1e-6)
        covariance = np.cov(z.T)
        variances = np.diag(covariance)
        assert np.all(np.diff(variances) < 0)
        np.testing.assert_allclose(covariance, np.diag(variances), atol=1e-5)
        largest = np.take_along_axis(rotation, np.abs(rotation).argmax(axis=0)[None], axis=0)
        assert np.all(largest > 0)
        again = transform.of_rows(X.copy(), **options).rotation
        np.testing.assert_array_equal(again, found.rotation)
    else:
        assert found.rotation is None


def test_a_rotation_of_rows_in_blocks_is_that_of_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = transform.of_rows(X, rotate=True).rotation
    monkeypatch.setattr(transform, "COVARIANCE_ROWS", 100)
    np.testing.assert_allclose(transform.of_rows(X, rotate=True).rotation, whole, atol=1e-6)


@every_model
def test_a_model_is_the_plain_one_of_vectors_transformed_by_hand(model: qj.Qinco) -> None:
    config = dataclasses.replace(model.config, unit_norm=False, center=True, rotate=False)
    plain = dataclasses.replace(
        model, mean=jnp.zeros(D), scale=jnp.float32(1), rotation=None, config=config
    )
    z = np.asarray(transform.to_model_space(jnp.asarray(X), model.transform))
    codes = qj.encode(model, X)
    differ = (np.asarray(codes) != np.asarray(qj.encode(plain, z))).any(axis=1)
    assert differ.mean() < 0.01  # ties, up to the rounding of a product in blocks
    x_hat = transform.from_model_space(qj.decode(plain, codes), model.transform)
    np.testing.assert_allclose(qj.decode(model, codes), x_hat, rtol=1e-5, atol=1e-5)


@hypothesis.given(st.integers(-40, 40), st.integers(0, 1000))
def test_a_model_with_unit_norm_is_blind_to_length(exponent: int, seed: int) -> None:
    x = oracle.random_vectors(20, D, seed)
    codes = qj.encode(EVERYTHING, x)
    np.testing.assert_array_equal(qj.encode(EVERYTHING, np.float32(2.0**exponent) * x), codes)


@pytest.mark.parametrize("length", [1e-30, 1e-18, 1e19, 3e37, 3e38])
def test_vectors_of_any_length_become_unit_vectors(length: float) -> None:
    x = units(X) * length
    found = np.asarray(transform.unit(jnp.asarray(x, jnp.float32)))
    np.testing.assert_allclose(found, units(X), rtol=1e-5, atol=1e-6)


def test_a_vector_of_zeros_stays_one() -> None:
    zeros = np.zeros((3, D), np.float32)
    np.testing.assert_array_equal(transform.unit(jnp.asarray(zeros)), zeros)
    np.testing.assert_array_equal(transform.approximated(np.uint8(zeros), True), zeros)
    slopes = jax.grad(lambda x: jnp.sum(transform.to_model_space(x, EVERYTHING.transform)))(zeros)
    assert np.all(np.isfinite(slopes))
    x = np.concatenate([zeros, X])
    model = qj.train(x, dataclasses.replace(CONFIG, unit_norm=True), num_epochs=0)
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves(model))
    assert np.all(np.isfinite(qj.decode(model, qj.encode(model, x))))


def test_a_rotation_keeps_errors() -> None:
    model = qj.train(X, dataclasses.replace(CONFIG, rotate=True), num_epochs=0)
    codes = qj.encode(model, X)
    z = transform.to_model_space(jnp.asarray(X), model.transform)
    inside = jnp.sum(jnp.square(z - qinco.reconstructions(model, codes)[-1]), axis=1)
    outside = np.square(X - np.asarray(qj.decode(model, codes))).sum(axis=1)
    np.testing.assert_allclose(inside * model.scale**2, outside, rtol=1e-3, atol=1e-6)


@every_transform
def test_the_untrained_model_is_the_residual_quantizer(options: dict[str, bool]) -> None:
    config = dataclasses.replace(CONFIG, **options)
    rq = qj.rq.train(X, CONFIG.num_steps, CONFIG.codebook_size, **options)
    model = qj.train(X, config, num_epochs=0)
    assert model.config == dataclasses.replace(config, embed_dim=D)
    codes = qj.rq.encode(rq, X)
    np.testing.assert_allclose(qj.decode(model, codes), qj.rq.decode(rq, codes), atol=1e-5)
    ours, theirs = (
        np.square(transform.approximated(X, options["unit_norm"]) - x_hat).sum(axis=1).mean()
        for x_hat in (qj.decode(model, qj.encode(model, X)), qj.rq.decode(rq, codes))
    )
    assert ours < 1.05 * theirs


@every_transform
def test_training_improves_on_the_residual_quantizer(options: dict[str, bool]) -> None:
    records: list[dict[str, float]] = []
    config = dataclasses.replace(CONFIG, **options)
    model = qj.train(
        X, config, RECIPE, num_epochs=10, log=lambda record: records.append(dict(record))
    )
    errors = [record["val_mse"] for record in records if "val_mse" in record]
    assert min(errors) < 0.95 * errors[0]
    held_back = X[-len(X) // 10 :]
    goal = units(held_back) if options["unit_norm"] else held_back
    codes = qj.encode(model, held_back)
    measured = np.square(goal - qj.decode(model, codes)).sum(axis=1).mean()
    np.testing.assert_allclose(measured, min(errors), rtol=1e-4)


def interrupt(record: dict[str, float]) -> None:
    """Ctrl-C, once."""
    if record["step"] == 20:
        os.kill(os.getpid(), signal.SIGINT)


def test_a_resumed_training_ends_with_the_same_model(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, rotate=True, unit_norm=True)
    with pytest.raises(Interrupted):
        qj.train(X, config, RECIPE, run_dir=tmp_path, log=interrupt)
    resumed = qj.train(X, config, RECIPE, run_dir=tmp_path)
    assert_same(resumed, qj.train(X, config, RECIPE))
    assert_same(qj.load(tmp_path / "model"), resumed)
    with pytest.raises(qj.InputError, match=r"config.rotate is True there and None here"):
        qj.train(X, dataclasses.replace(config, rotate=False), RECIPE, run_dir=tmp_path)


@every_model
def test_a_saved_model_keeps_its_transform(model: qj.Qinco, tmp_path: Path) -> None:
    qj.save(model, tmp_path / "model")
    assert_same(qj.load(tmp_path / "model"), model)


def test_a_model_and_a_run_from_before_there_were_transforms_are_read(tmp_path: Path) -> None:
    model = qj.train(X, CONFIG, num_epochs=0, run_dir=tmp_path / "run")
    assert [name for name in PLAIN if name in (tmp_path / "run" / "run.json").read_text()] == []
    old = {name: x for name, x in dataclasses.asdict(model.config).items() if name not in PLAIN}
    orbax.write_tree(tmp_path / "old", model, {"version": "0.1.0", "config": old})
    assert_same(qj.load(tmp_path / "old"), model)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(model)]
    assert not any("rotation" in name for name in names)


@every_model
def test_jit_vmap_grad_and_prefix(model: qj.Qinco) -> None:
    x, codes = X[:40], np.asarray(qj.encode(model, X[:40]))
    encode, decode = (functools.partial(f, model) for f in (qj.encode, qj.decode))
    for wrap in (jax.jit, jax.vmap):
        assert (np.asarray(wrap(encode)(x)) != codes).any(axis=1).sum() <= 1
        np.testing.assert_allclose(wrap(decode)(codes), decode(codes), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(qj.encode(model, x[3]), codes[3])
    slopes = jax.grad(lambda model: jnp.sum(qj.decode(model, codes) ** 2))(model)
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves(slopes))
    assert model.rotation is None or np.any(slopes.rotation)
    shorter = qj.prefix(model, 2)
    assert shorter.config.transform == model.config.transform
    np.testing.assert_array_equal(qj.decode(shorter, codes[:, :2]), qj.decode(model, codes[:, :2]))


def test_a_preselector_is_fitted_in_the_models_space() -> None:
    config = dataclasses.replace(EVERYTHING.config, num_candidates=None)
    steps = EVERYTHING.steps.replace(preselect=None)
    bare = dataclasses.replace(EVERYTHING, steps=steps, config=config)
    x = oracle.random_vectors(2000, D, seed=1)
    fitted, goal = qj.fit_preselector(bare, x, num_candidates=4), units(x)
    best, found = (
        np.square(goal - qj.decode(bare, qj.encode(model, x, beam_size=1))).sum()
        for model in (bare, fitted)
    )
    assert found < 1.05 * best


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_no_truth_value_is_refused(name: str) -> None:
    with pytest.raises(qj.InputError, match=f"{name} must be true or false, got 1"):
        dataclasses.replace(CONFIG, **{name: 1})


def test_a_quantizer_of_another_transform_is_refused() -> None:
    rq = qj.rq.train(X, CONFIG.num_steps, CONFIG.codebook_size, rotate=True)
    with pytest.raises(qj.InputError, match=r"'rotate': True.* the config with .*'rotate': False"):
        qj.init(jax.random.key(0), CONFIG, rq)


SETTINGS = ["codebook_size=16", "hidden_dim=8", "num_epochs=1", "unit_norm=true", "rotate=true"]


def run(*arguments: object) -> str:
    ran = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert ran.exit_code == 0, ran.output
    return ran.output


def test_the_command_line_trains_and_measures_unit_vectors(tmp_path: Path) -> None:
    for name, x in (("train", X), ("database", X[:300]), ("queries", correlated(40, seed=1))):
        np.save(tmp_path / f"{name}.npy", 100 * x)
    np.save(tmp_path / "groundtruth.npy", np.zeros((40, 100), np.int32))  # of some other metric
    settings = [*SETTINGS, "mix=0"]
    out, sets = tmp_path / "run", [part for text in settings for part in ("--set", text)]
    text = run("train", "--dataset", tmp_path, "--out", out, "--bytes", 1, *sets)
    assert "by cosine; the error is that of unit vectors" in text
    model = qj.load(out / "model")
    assert model.config.transform == {"unit_norm": True, "center": True, "rotate": True}
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {row["codec"] for row in rows} == {
        "RQ B=32 unit", "QINCo2 A=2 B=32 joint unit, before training", "QINCo2 A=2 B=32 joint unit",
    }  # fmt: skip
    assert all(row["unit_norm"] and 0 < row["mse"] < 1 for row in rows)
    run("encode", out / "model", tmp_path / "database.npy", tmp_path / "codes.npy")
    run("decode", out / "model", tmp_path / "codes.npy", tmp_path / "decoded.npy")
    error = np.square(units(X[:300]) - np.load(tmp_path / "decoded.npy")).sum(axis=1).mean()
    found = next(row for row in rows if row["codec"].endswith("joint unit") and row["bytes"] == 1)
    np.testing.assert_allclose(found["mse"], error, rtol=1e-4)
    assert found["relative_error"] > error  # a share of what unit vectors vary by
    assert " unit |" in run("evaluate", out / "model", "--dataset", tmp_path)


def test_a_comparison_claims_no_best_of_errors_of_two_kinds() -> None:
    rows = [{"unit_norm": True, "mse": 0.1}, {"unit_norm": False, "mse": 20.0}]
    assert tables.columns(rows)[0].best is None
    assert tables.columns(rows[1:])[0].best is min


def test_a_comparison_names_models_of_unit_vectors(tmp_path: Path) -> None:
    data = qj.datasets.Dataset("made", X, X[:200], X[-30:], None)
    settings = ["codebook_size=16", "hidden_dim=8", "num_epochs=0", "unit_norm=true"]
    rows = qj.compare(data, ["small"], [1], tmp_path, settings=settings, metrics=["cosine"])
    assert [row["unit_norm"] for row in rows] == [True]
    assert rows[0]["settings"]["config"]["unit_norm"] and rows[0]["label"].endswith(" unit")
    assert "MSE of unit vectors" in (tmp_path / "report.html").read_text()
