"""The transform folded into the network: the same codec of the vectors themselves."""

import dataclasses

import jax
import numpy as np
import oracle
import pytest

import qinco_jax as qj
from qinco_jax.interop.folding import folded

PLAIN = qj.QincoConfig(
    dim=6, num_steps=3, codebook_size=16, hidden_dim=9, num_blocks=1, num_candidates=5, beam_size=4
)
KINDS = {
    "qinco": {"form": "qinco", "rotate": True},
    "qinco, not rotated": {"form": "qinco"},
    "qinco2": {"embed_dim": 10, "rotate": True},
    "qinco2 without projections": {"projections": False, "rotate": True, "center": False},
}
X = oracle.random_vectors(300, 6)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_codes_and_reconstructions_are_the_same(kind: dict[str, object]) -> None:
    model = oracle.random_model(dataclasses.replace(PLAIN, **kind))
    plain = folded(model)
    assert not np.any(plain.mean) and plain.scale == 1
    assert plain.config == dataclasses.replace(model.config, center=False, rotate=False)
    codes = np.asarray(qj.encode(model, X))
    assert (np.asarray(qj.encode(plain, X)) != codes).any(axis=1).mean() < 0.01  # ties, rounded
    expected = np.asarray(qj.decode(model, codes))
    np.testing.assert_allclose(
        qj.decode(plain, codes), expected, atol=1e-5 * np.abs(expected).max()
    )


def test_what_has_no_transform_is_kept_bit_for_bit() -> None:
    once = folded(oracle.random_model(dataclasses.replace(PLAIN, rotate=True)))
    for left, right in zip(jax.tree.leaves(once), jax.tree.leaves(folded(once)), strict=True):
        np.testing.assert_array_equal(left, right)


def test_lengths_are_left_to_the_user() -> None:
    model = oracle.random_model(dataclasses.replace(PLAIN, normalize=True, rotate=True))
    with pytest.raises(qj.InputError, match=r"pass model.replace\(normalize=False\).* x / \|x\|"):
        folded(model)
    plain = folded(model.replace(normalize=False))
    units = np.float32(X / np.linalg.norm(np.float64(X), axis=1, keepdims=True))
    codes = np.asarray(qj.encode(model, X))
    assert (np.asarray(qj.encode(plain, units)) != codes).any(axis=1).mean() < 0.01
    np.testing.assert_allclose(qj.decode(plain, codes), qj.decode(model, codes), atol=1e-5)
