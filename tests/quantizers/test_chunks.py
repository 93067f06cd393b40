"""Rows on accelerators, in a way that CPUs can take too, and blocks for an accelerator's memory."""

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import host_reads
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import qinco_jax as qj
from qinco_jax.quantizers import batching, chunks, coding
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Stored

CONFIG = qj.QincoConfig(
    dim=8, num_steps=3, codebook_size=16, hidden_dim=8, num_blocks=1, num_candidates=4, beam_size=3
)
MODEL = oracle.random_model(CONFIG)
X = oracle.random_vectors(50, 8)
CODES = np.asarray(qj.encode(MODEL, X))
X_HAT = np.asarray(qj.decode(MODEL, CODES))
BLOCK = 16


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU in the role of one: nothing but what is meant to goes to it and comes back."""
    monkeypatch.setattr(chunks, "_is_accelerator", lambda device: True)
    monkeypatch.setattr(coding, "block_rows", lambda *cost: BLOCK)
    np.asarray(MODEL.mean), float(MODEL.scale)
    with jax.transfer_guard("disallow"):
        yield


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of arrays that are read by the host."""
    return host_reads.noted(monkeypatch)


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("count", [0, 1, 7, 16, 17, 32, 50])
def test_rows_stay_on_a_device(count: int, read: list[tuple[int, ...]]) -> None:
    device = jax.devices()[0]
    x, codes = jax.device_put((X[:count], CODES[:count]), device)
    found = qj.encode(MODEL, x, output="errors")
    x_hat = qj.decode(MODEL, codes)
    extremes = [(2, 8), (2, 3)] if count else []  # a column's least and greatest
    assert read == [(8,), *extremes]  # the model's mean before
    assert all(leaf.committed and leaf.devices() == {device} for leaf in (*found, x_hat))
    np.testing.assert_array_equal(found[0], CODES[:count])
    np.testing.assert_allclose(x_hat, X_HAT[:count], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("count", [0, 7, 16, 50])
def test_rows_of_the_host_are_sent_in_chunks(count: int, read: list[tuple[int, ...]]) -> None:
    codes = qj.encode(MODEL, Stored([X[:count]]))
    x_hat = qj.decode(MODEL, CODES[:count])
    assert read == [(8,)]  # the model's mean
    np.testing.assert_array_equal(codes, CODES[:count])
    np.testing.assert_allclose(x_hat, X_HAT[:count], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("accelerator")
def test_one_row_on_a_device() -> None:
    x, code = jax.device_put((X[3], CODES[3]))
    np.testing.assert_array_equal(qj.encode(MODEL, x), CODES[3])
    np.testing.assert_allclose(qj.decode(MODEL, code), X_HAT[3], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("where", [jax.device_put, np.asarray], ids=["device", "host"])
def test_bad_rows_are_named(where: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SEARCHED_ROWS", 20)
    x = np.array(X)
    x[41, 2] = np.nan
    with pytest.raises(qj.InputError, match="row 41 of the vectors holds NaN or Inf"):
        qj.encode(MODEL, where(x))
    x[41, 2] = -1e30
    with pytest.raises(qj.InputError, match=r"row 41 of the vectors holds 1e\+30, and float32"):
        qj.encode(MODEL, where(x))
    for bad in (-1, 16, 2**31 - 1):
        codes = CODES.astype(np.int32)
        codes[[45, 49], 1] = bad
        with pytest.raises(qj.InputError, match=f"code {bad} in row 45, column 1 is outside 0..15"):
            qj.decode(MODEL, where(codes))


@pytest.mark.usefixtures("accelerator")
def test_another_number_of_rows_compiles_no_network() -> None:
    qj.encode(MODEL, jax.device_put(X[:20]))
    before = chunks._chunk._cache_size()
    for count in (21, 33, 47, 50):
        qj.encode(MODEL, jax.device_put(X[:count]))
        qj.encode(MODEL, X[:count])
    assert chunks._chunk._cache_size() == before


def test_a_model_on_a_device_is_prepared_once() -> None:
    model = jax.device_put(oracle.random_model(CONFIG, seed=3), jax.devices()[0])
    x = jax.device_put(X, jax.devices()[0])
    before = set(chunks._kept)
    for rows in (X, x, X[:3]):
        qj.encode(model, rows)
        qj.decode(model, CODES)
    assert len(set(chunks._kept) - before) == 1


@pytest.mark.parametrize(
    "memory, expected",
    [(None, 512), (2**40, 512), (2**30, 32), (2**24, 1)],
    ids=["unknown", "large", "small", "tiny"],
)
def test_blocks_fit_an_accelerator(
    memory: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = SimpleNamespace(
        memory_stats=lambda: None if memory is None else {"bytes_limit": memory}
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    model = jax.eval_shape(lambda: jax.tree.map(jnp.zeros_like, MODEL))
    config = dataclasses.replace(CONFIG, embed_dim=128, hidden_dim=256, form="qinco2")
    model = dataclasses.replace(model, codebook=jnp.zeros((256, 128)), config=config)
    row = coding.memory(model, qj.quantizers.qinco.Search(16, 32, joint=False), "float32")
    assert batching.block_rows(512, row) == expected
    assert batching.block_rows(2, 64) == batching.ROWS or memory == 2**24
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert batching.block_rows(512, row) == 4


def test_a_coarse_codebook_alone_encodes() -> None:
    model = oracle.random_model(dataclasses.replace(CONFIG, num_centroids=20)).first_columns(1)
    codes, errors = qj.encode(model, X, output="errors")
    distances = np.square(X[:, None] - np.asarray(qj.decode(model, np.arange(20)[:, None]))).sum(2)
    np.testing.assert_array_equal(codes[:, 0], distances.argmin(axis=1))
    np.testing.assert_allclose(errors, distances.min(axis=1), rtol=1e-4)
    beams, errors = qj.encode(model, X, output="beams")
    np.testing.assert_array_equal(beams[:, 0], codes)
    assert np.isinf(errors[:, 1:]).all()
