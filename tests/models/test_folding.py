"""The transform folded into the network: the same codec. Needs no Faiss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import qinco_jax as qj
from qinco_jax.models.faiss import folded

PLAIN = qj.QincoConfig(
    dim=6, num_steps=3, codebook_size=16, hidden_dim=9, num_blocks=1, num_candidates=5, beam_size=4
)
KINDS = {
    "qinco": {"form": "qinco", "rotate": True},
    "qinco, not rotated": {"form": "qinco"},
    "qinco-lr": {"form": "qinco-lr", "rotate": True},
    "qinco2": {"embed_dim": 10, "rotate": True},
    "qinco2 without projections": {"projections": False, "rotate": True, "center": False},
}
X = oracle.random_vectors(300, 6)


def assert_same_codec(model: qj.Qinco, plain: qj.Qinco, x: np.ndarray) -> None:
    """`plain` has of vectors `x` the codes and reconstructions that `model` has of `X`."""
    codes = np.asarray(qj.encode(model, X))
    assert (np.asarray(qj.encode(plain, x)) != codes).any(axis=1).mean() < 0.01  # ties, rounded
    expected = np.asarray(qj.decode(model, codes))
    np.testing.assert_allclose(
        qj.decode(plain, codes), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_codes_and_reconstructions_are_the_same(kind: dict[str, object]) -> None:
    model = oracle.random_model(dataclasses.replace(PLAIN, **kind))
    plain = folded(model)
    form = "qinco" if model.config.form == "qinco-lr" else model.config.form
    assert plain.config == dataclasses.replace(model.config, form=form, center=False, rotate=False)
    assert not np.any(plain.mean) and plain.scale == 1
    assert_same_codec(model, plain, X)


def test_a_coarse_codebook_is_folded_as_well() -> None:
    model = oracle.random_model(dataclasses.replace(PLAIN, form="qinco", rotate=True))
    centroids = np.random.default_rng(1).normal(size=(30, 6))
    config = dataclasses.replace(model.config, num_steps=2, num_centroids=len(centroids))
    model = model.replace(codebook=jnp.asarray(centroids, jnp.float32), config=config)
    assert_same_codec(model, folded(model), X)


def test_what_has_no_transform_is_kept_bit_for_bit() -> None:
    once = folded(oracle.random_model(dataclasses.replace(PLAIN, rotate=True)))
    for left, right in zip(jax.tree.leaves(once), jax.tree.leaves(folded(once)), strict=True):
        np.testing.assert_array_equal(left, right)


def test_lengths_are_left_to_the_user() -> None:
    model = oracle.random_model(dataclasses.replace(PLAIN, unit_norm=True, rotate=True))
    with pytest.raises(qj.InputError, match=r"set unit_norm=False in its config.* x / \|x\|"):
        folded(model)
    config = dataclasses.replace(model.config, unit_norm=False)
    plain = folded(model.replace(config=config))
    units = np.float32(X / np.linalg.norm(np.float64(X), axis=1, keepdims=True))
    assert_same_codec(model, plain, units)
