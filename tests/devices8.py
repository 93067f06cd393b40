"""What test_sharding.py runs in a process of its own, with 8 simulated devices.

Without an argument it prints how sharded batches fail; with one it trains a model on all devices
and saves it as the folder that the argument names.
"""

import functools
import sys
import traceback

import jax
import numpy as np
import oracle
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import qinco_jax as qj

CONFIG = qj.QincoConfig(
    dim=6, num_steps=3, codebook_size=16, hidden_dim=8, num_candidates=5, beam_size=4
)
MODEL = oracle.random_model(CONFIG)
RECIPE = qj.Recipe(num_epochs=2, batch_size=64, learning_rate=1e-3)
X = oracle.random_vectors(320, 6)  # on one device two blocks
CODES = np.asarray(qj.encode(MODEL, X))
X_HAT = np.asarray(qj.decode(MODEL, CODES))
MESHES = [((8,), ("data",), P("data")), ((4, 2), ("a", "b"), P(("a", "b")))]
"""Shape, axes, and how rows are sharded."""


def assert_same(codes: jax.Array, x_hat: jax.Array) -> None:
    np.testing.assert_array_equal(codes, CODES)
    np.testing.assert_allclose(x_hat, X_HAT, rtol=1e-5, atol=1e-5)


def eager(mesh: jax.sharding.Mesh, spec: P) -> None:
    x, codes = (jax.device_put(a, NamedSharding(mesh, spec)) for a in (X, CODES))
    assert_same(qj.encode(MODEL, x), qj.decode(MODEL, codes))
    assert qj.encode(MODEL, x).sharding.is_equivalent_to(x.sharding, 2)


def under_jit(mesh: jax.sharding.Mesh, spec: P) -> None:
    x, codes = (jax.device_put(a, NamedSharding(mesh, spec)) for a in (X, CODES))
    model = jax.device_put(MODEL, NamedSharding(mesh, P()))
    assert_same(jax.jit(qj.encode)(model, x), jax.jit(qj.decode)(model, codes))


def under_shard_map(mesh: jax.sharding.Mesh, spec: P) -> None:
    x, codes = (jax.device_put(a, NamedSharding(mesh, spec)) for a in (X, CODES))
    model = jax.device_put(MODEL, NamedSharding(mesh, P()))
    shard_map = functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), spec), out_specs=spec)
    assert_same(
        jax.jit(shard_map(qj.encode))(model, x), jax.jit(shard_map(qj.decode))(model, codes)
    )


def failures() -> dict[str, str]:
    """What went wrong, for each way of calling on each mesh that failed."""
    found = {}
    for way in (eager, under_jit, under_shard_map):
        for sizes, axes, spec in MESHES:
            for kind in (AxisType.Auto, AxisType.Explicit):
                mesh = jax.make_mesh(sizes, axes, axis_types=(kind,) * len(axes))
                try:
                    way(mesh, spec)
                except Exception:
                    found[f"{way.__name__}, axes {axes}, {kind.name}"] = traceback.format_exc()
    return found


if __name__ == "__main__":
    assert jax.device_count() == 8
    if len(sys.argv) > 1:
        qj.save(qj.train(X, CONFIG, RECIPE, x_val=X), sys.argv[1])
    else:
        print("\n".join(f"{name}:\n{trace}" for name, trace in failures().items()))
