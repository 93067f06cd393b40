"""Training rows moved towards their neighbours: which, how far, and the same at every reading."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import qinco_jax as qj
from qinco_jax.quantizers import qinco
from qinco_jax.training import mixing, run_folder, step
from qinco_jax.training import train as train_module
from qinco_jax.training.recipe import RECIPES, with_mix

X = np.random.default_rng(0).normal(size=(700, 5)).astype(np.float32)
X[600:620] = X[0]  # more copies of a row than neighbours that are looked for


def by_brute_force(x: np.ndarray) -> np.ndarray:
    """Squared distances [N, N] in float64, infinite from a row to itself."""
    error = np.square(x[:, None].astype(np.float64) - x[None]).sum(-1)
    np.fill_diagonal(error, np.inf)
    return error


@pytest.mark.parametrize(("block", "offset"), [(4096, 0.0), (300, 100.0)])
def test_neighbours_are_the_nearest_other_rows(
    block: int, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixing, "BLOCK", block)
    found = mixing.nearest_others(X + np.float32(offset), 4 + (block == 300))  # compiled anew
    error = by_brute_force(X)
    assert found.dtype == np.int32 and (found != np.arange(len(X))[:, None]).all()
    reached = np.take_along_axis(error, found, axis=1)
    np.testing.assert_allclose(reached, np.sort(error)[:, : found.shape[1]], atol=1e-3)
    assert all(len(set(row)) == len(row) for row in found.tolist())


def test_a_few_rows_have_fewer_neighbours() -> None:
    assert np.sort(mixing.nearest_others(X[:3], 8)).tolist() == [[1, 2], [0, 2], [0, 1]]


def test_moved_rows_lie_between_a_row_and_a_neighbour() -> None:
    neighbours = mixing.nearest_others(X, 4)
    found = mixing.mixed(X, neighbours, 0.7, seed=0, copies=30)
    moved = np.asarray(found).reshape(30, *X.shape).astype(np.float64)
    way = X[neighbours].astype(np.float64) - X[:, None]  # [N, k, D]
    squares = np.maximum(np.square(way).sum(-1), 1e-12)
    share = np.einsum("cnd,nkd->cnk", moved - X, way) / squares
    beside = moved[:, :, None] - X[:, None] - share[..., None] * way
    best = np.square(beside).sum(-1).argmin(-1)[..., None]  # which neighbour
    assert np.take_along_axis(np.square(beside).sum(-1), best, axis=-1).max() < 1e-9
    lone = squares.min(axis=1) > 1e-6  # where there are no copies of the row
    shares = np.take_along_axis(share, best, axis=-1)[:, lone]
    assert -1e-5 < shares.min() < 0.01 and 0.69 < shares.max() < 0.7 + 1e-5
    assert abs(shares.mean() - 0.35) < 0.01
    assert (np.bincount(best[:, lone].ravel()) / best[:, lone].size > 0.2).all()
    assert len(np.unique(shares[:, 0])) == 30  # drawn anew for each copy


def test_a_moved_row_depends_on_seed_and_place_alone() -> None:
    neighbours = mixing.nearest_others(X, 4)
    found = mixing.mixed(X, neighbours, 0.7, seed=3, copies=4)
    assert found.shape == (2800, 5) and found.dtype == np.float32
    whole, rows = np.asarray(found), np.random.default_rng(1).choice(2800, 40)
    np.testing.assert_array_equal(found[rows], whole[rows])
    np.testing.assert_array_equal(found[1000:1300], whole[1000:1300])
    fewer = mixing.mixed(X, neighbours, 0.7, seed=3, copies=2)
    np.testing.assert_array_equal(np.asarray(fewer), whole[:1400])
    other = np.asarray(mixing.mixed(X, neighbours, 0.7, seed=4, copies=4))
    assert (other != whole).any(axis=1).mean() > 0.95


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_of_one_length_keep_it(dtype: type) -> None:
    x = (3 * X / np.linalg.norm(X, axis=1, keepdims=True)).astype(dtype)
    moved = np.asarray(mixing.mixed(x, mixing.nearest_others(x, 4), 1.0, seed=0, copies=3))
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 3, rtol=1e-3)


def test_held_back_rows_decide_whether_rows_are_moved(tmp_path: Path) -> None:
    config = qj.QincoConfig(num_steps=2, hidden_dim=4, num_blocks=1, num_candidates=2, beam_size=2)
    decided = []
    for name, num_rows, dim, size in (("few", 200, 32, 64), ("many", 8000, 4, 4)):
        sizes = dataclasses.replace(config, codebook_size=size)
        x = np.random.default_rng(0).normal(size=(1000 + num_rows, dim)).astype(np.float32)
        given = {"x_train": x[1000:], "config": sizes, "x_val": x[:1000], "num_epochs": 0}
        model = qj.train(**given, run_dir=tmp_path / name)
        found = run_folder.decided(tmp_path / name, run_folder.Mixing)
        assert found is not None
        assert (found.held_back > 1.1 * found.own) == (found.moved is not None)
        assert bool(found.mix) == (
            found.moved is not None and found.moved <= 1.02 * found.held_back
        )
        np.testing.assert_array_equal(model.codebook, qj.train(**given, mix=found.mix).codebook)
        decided.append(found.mix)
    assert decided == [0.7, 0.0]


def test_what_is_asked_for_or_has_many_rows_is_not_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "FEW_ROWS", 500)
    config = qj.QincoConfig(num_steps=1, codebook_size=4, num_candidates=2, beam_size=2)
    for name, x, changes in (("many", X, {}), ("asked", X[:400], {"mix": 0.0})):
        run = tmp_path / name
        qj.train(x, config, x_val=X[:9], run_dir=run, num_epochs=0, **changes)
        assert run_folder.decided(run, run_folder.Mixing) is None
        recipe = json.loads((run / run_folder.IDENTITY).read_text())["recipe"]
        assert "mix" not in recipe and recipe["weight_decay"] == 0.1  # as before there was mixing


def test_the_papers_recipes_move_no_rows() -> None:
    assert [name for name, recipe in RECIPES.items() if recipe.mix != 0] == ["small", "accelerator"]
    decay = [with_mix(qj.Recipe(), mix).weight_decay for mix in (0.0, 0.7)]
    assert decay == [0.1, 0.5] and with_mix(qj.Recipe(weight_decay=0.2), 0.7).weight_decay == 0.2


def test_a_share_that_is_none_and_rows_that_are_too_many_are_refused() -> None:
    with pytest.raises(qj.InputError, match=r"mix must be 0 to 1, got 1\.5"):
        qj.Recipe(mix=1.5)
    with pytest.raises(qj.InputError, match=r"mix=0\.7 .* 200,001 are too many .* set mix=0"):
        config = qj.QincoConfig(num_steps=1, codebook_size=4, num_candidates=2, beam_size=2)
        qj.train(np.zeros((200_001, 1), np.uint8), config, mix=0.7, x_val=np.zeros((1, 1)))


def test_where_rows_are_moved_codebooks_do_not_decay() -> None:
    config = qj.QincoConfig(num_steps=2, codebook_size=4, num_candidates=2, beam_size=2)
    parameters = qinco.parameters(qj.train(X, config, num_epochs=0, mix=0.0))
    for mix, factor in ((0.0, 0.9), (0.7, 1.0)):
        optimizer = step._optimizer(qj.Recipe(mix=mix, weight_decay=0.1), 1.0)
        zero = jax.tree.map(jnp.zeros_like, parameters)
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes float and int
            changes, _ = optimizer.update(zero, optimizer.init(parameters), parameters)
        first, rest = optax.apply_updates(parameters, changes)
        for after, before, share in (
            (first, parameters[0], factor),
            (rest.codebook, parameters[1].codebook, factor),
            (rest.preselect, parameters[1].preselect, factor),
            (rest.up, parameters[1].up, 0.9),
        ):
            np.testing.assert_allclose(after, share * np.asarray(before), rtol=1e-6)


def test_a_run_whose_codebooks_decayed_is_refused_by_name(tmp_path: Path) -> None:
    config = qj.QincoConfig(num_steps=2, codebook_size=4, num_candidates=2, beam_size=2)
    given: dict[str, Any] = {"x_train": X[:300], "config": config, "mix": 0.7, "num_epochs": 0}
    qj.train(**given, run_dir=tmp_path)
    file = tmp_path / run_folder.IDENTITY
    known = json.loads(file.read_text())
    del known["recipe"]["decayed"]
    file.write_text(json.dumps(known))
    with pytest.raises(qj.InputError, match=r"recipe\.decayed is None there and matrices here"):
        qj.train(**given, run_dir=tmp_path)
