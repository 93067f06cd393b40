"""Bytes of models beside their codes, and which smaller network is offered."""

import dataclasses

import jax
import numpy as np
import pytest

import qinco_jax as qj
from qinco_jax.cli.estimates import large_model
from qinco_jax.codecs import ours
from qinco_jax.codecs.size import size_of, smaller

CONFIG = qj.QincoConfig(dim=8, num_steps=2, codebook_size=8, embed_dim=64, num_candidates=4)
VARIANTS = {
    "plain": {},
    "no projections": {"form": "qinco", "embed_dim": None, "num_candidates": None},
    "parts": {"num_parts": 2},
    "lists": {"num_centroids": 10},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_size_of_a_config_is_that_of_its_model(name: str) -> None:
    config = dataclasses.replace(CONFIG, **VARIANTS[name])
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    model = qj.train(x, config, num_epochs=0)
    expected = sum(np.asarray(leaf).astype(np.float32).nbytes for leaf in jax.tree.leaves(model))
    assert size_of(config) == ours.of_qinco(model, model.num_steps).size == expected


@pytest.mark.parametrize("name", VARIANTS)
def test_the_largest_network_that_fits_is_offered(name: str) -> None:
    config, sizes = dataclasses.replace(CONFIG, **VARIANTS[name]), []
    most = size_of(config)
    while found := smaller(config, most - 1):
        sizes.append(size_of(dataclasses.replace(config, **found)))
        if sizes[-1] >= most:  # the smallest is offered where none fits
            break
        most = sizes[-1]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes) - 1 > 1
    assert found["num_blocks"] == 1 and found["hidden_dim"] == 16
    assert smaller(dataclasses.replace(config, **found), 0) == {}


def test_a_model_larger_than_the_codes_is_told() -> None:
    own = size_of(CONFIG)
    rows = int(8 * own / CONFIG.bits)
    assert large_model(CONFIG, rows + 1) == ""
    text = large_model(CONFIG, rows - 2)
    assert "more than the codes of the" in text and "A smaller network, --set num_blocks=1," in text
    text = large_model(CONFIG, 9)
    assert "Even the smallest network, --set embed_dim=16 --set hidden_dim=16" in text
