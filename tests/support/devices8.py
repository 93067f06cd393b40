"""What test_sharding.py runs in a process of its own, with 8 simulated devices, or fewer.

Without an argument it prints how sharded batches fail; with one it trains a model on all devices
in the run's folder that the argument names.
"""

import dataclasses
import functools
import itertools
import sys
import traceback

import host_reads
import jax
import numpy as np
import oracle
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import qinco_jax as qj

CONFIG = qj.QincoConfig(
    dim=6, num_steps=3, codebook_size=16, hidden_dim=8, num_candidates=5, beam_size=4
)
MODELS = {
    "qinco": oracle.random_model(CONFIG),
    "ivf": oracle.random_model(dataclasses.replace(CONFIG, num_centroids=300)),
    "product": oracle.random_product(dataclasses.replace(CONFIG, num_parts=2)),
}
RECIPE = qj.Recipe(num_epochs=2, batch_size=64, learning_rate=1e-3)
X = oracle.random_vectors(320, 6)  # on one device two blocks
MESHES = [((8,), ("data",), P("data")), ((4, 2), ("a", "b"), P(("a", "b")))]
"""Shape, axes, and how rows are sharded."""


@functools.cache
def codes_of(name: str) -> np.ndarray:
    return np.asarray(qj.encode(MODELS[name], X))


def assert_same(name: str, codes: jax.Array, x_hat: jax.Array) -> None:
    np.testing.assert_array_equal(codes, codes_of(name))
    expected = qj.decode(MODELS[name], codes_of(name))
    np.testing.assert_allclose(x_hat, expected, rtol=1e-5, atol=1e-5)


def eager(name: str, mesh: jax.sharding.Mesh, spec: P) -> None:
    x, codes = (jax.device_put(a, NamedSharding(mesh, spec)) for a in (X, codes_of(name)))
    with pytest.MonkeyPatch.context() as patch:
        read = host_reads.noted(patch)
        found = qj.encode(MODELS[name], x), qj.decode(MODELS[name], codes)
        of_model = {(), (X.shape[1],), (X.shape[1] // 2,)}  # scale and mean, of parts too
        assert set(read) <= {*of_model, (2, *x.shape[1:]), (2, *codes.shape[1:])}  # and extremes
    assert_same(name, *found)
    assert qj.encode(MODELS[name], x).sharding.is_equivalent_to(x.sharding, 2)


def under_jit(name: str, mesh: jax.sharding.Mesh, spec: P) -> None:
    x, codes = (jax.device_put(a, NamedSharding(mesh, spec)) for a in (X, codes_of(name)))
    model = jax.device_put(MODELS[name], NamedSharding(mesh, P()))
    assert_same(name, jax.jit(qj.encode)(model, x), jax.jit(qj.decode)(model, codes))


def under_shard_map(name: str, mesh: jax.sharding.Mesh, spec: P) -> None:
    x, codes = (jax.device_put(a, NamedSharding(mesh, spec)) for a in (X, codes_of(name)))
    model = jax.device_put(MODELS[name], NamedSharding(mesh, P()))
    shard_map = functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), spec), out_specs=spec)
    found = jax.jit(shard_map(qj.encode))(model, x), jax.jit(shard_map(qj.decode))(model, codes)
    assert_same(name, *found)


def refused(name: str, mesh: jax.sharding.Mesh, spec: P) -> None:
    x, codes = np.array(X), np.array(codes_of(name), np.int32)
    x[70, 2], codes[200, 1] = np.nan, 99
    x, codes = (jax.device_put(a, NamedSharding(mesh, spec)) for a in (x, codes))
    with pytest.raises(qj.InputError, match="row 70 "):
        qj.encode(MODELS[name], x)
    if name == "qinco":
        many = np.tile(X, (20, 1))  # of few numbers XLA's minimum is NaN where one is
        many[4321, 3] = np.nan
        with pytest.raises(qj.InputError, match=r"row 4321 .* NaN"):
            qj.encode(MODELS[name], jax.device_put(many, NamedSharding(mesh, spec)))
    with pytest.raises(qj.InputError, match="code 99 in row 200, column 1"):
        qj.decode(MODELS[name], codes)


def on_a_device_of_ones_own(name: str, mesh: jax.sharding.Mesh, spec: P) -> None:
    device = jax.devices()[2]
    x = jax.device_put(X, device)
    codes = qj.encode(MODELS[name], x)
    model = jax.device_put(MODELS[name], device)
    for found in (codes, qj.decode(MODELS[name], codes), qj.encode(model, X)):
        assert found.devices() == {device}
    np.testing.assert_array_equal(codes, codes_of(name))


def failures() -> dict[str, str]:
    """What went wrong, for each way of calling and model on each mesh that failed."""
    found = {}
    kinds = AxisType.Auto, AxisType.Explicit
    for way, name, (sizes, axes, spec), kind in itertools.product(WAYS, MODELS, MESHES, kinds):
        if name != "qinco" and len(axes) > 1:
            continue  # one kind of mesh tells enough of the variants
        mesh = jax.make_mesh(sizes, axes, axis_types=(kind,) * len(axes))
        try:
            way(name, mesh, spec)
        except Exception:
            found[f"{way.__name__}, {name}, axes {axes}, {kind.name}"] = traceback.format_exc()
    return found


WAYS = eager, under_jit, under_shard_map, refused, on_a_device_of_ones_own

if __name__ == "__main__":
    if len(sys.argv) > 1:
        qj.train(X, CONFIG, RECIPE, x_val=X, run_dir=sys.argv[1])
    else:
        assert jax.device_count() == 8
        print("\n".join(f"{name}:\n{trace}" for name, trace in failures().items()))
