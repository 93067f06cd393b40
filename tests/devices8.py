"""What test_sharding.py runs in a process of its own, with 8 simulated devices.

Prints a JSON object, name of a check -> "" or what went wrong, and saves a model that was trained
on all devices as the folder that is named on the command line.
"""

import functools
import json
import sys
import traceback

import jax
import numpy as np
import oracle
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import qinco_jax as qj

jax.config.update("jax_disable_most_optimizations", True)
CONFIG = qj.QincoConfig(
    dim=6, num_steps=3, codebook_size=16, hidden_dim=8, num_candidates=5, beam_size=4
)
MODEL = oracle.random_model(CONFIG)
RECIPE = qj.Recipe(num_epochs=2, batch_size=64, learning_rate=1e-3)
X = oracle.random_vectors(512, 6)
CODES = np.asarray(qj.encode(MODEL, X))
X_HAT = np.asarray(qj.decode(MODEL, CODES))
MESHES = {"1-d": ((8,), ("data",), P("data")), "2-d": ((4, 2), ("a", "b"), P(("a", "b")))}
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


def under_jit_inside_mesh(mesh: jax.sharding.Mesh, spec: P) -> None:
    with jax.set_mesh(mesh):
        under_jit(mesh, spec)


def under_shard_map(mesh: jax.sharding.Mesh, spec: P) -> None:
    x, codes = (jax.device_put(a, NamedSharding(mesh, spec)) for a in (X, CODES))
    model = jax.device_put(MODEL, NamedSharding(mesh, P()))
    shard_map = functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), spec), out_specs=spec)
    assert_same(
        jax.jit(shard_map(qj.encode))(model, x), jax.jit(shard_map(qj.decode))(model, codes)
    )


def stays_in_place(mesh: jax.sharding.Mesh, spec: P) -> None:
    x = jax.device_put(X, NamedSharding(mesh, spec))
    model = jax.device_put(MODEL, NamedSharding(mesh, P()))
    program = jax.jit(qj.encode).lower(model, x).compile().as_text()
    assert not [name for name in ("all-gather", "all-to-all", "all-reduce") if name in program]


WAYS = (eager, under_jit, under_jit_inside_mesh, under_shard_map, stays_in_place)
AXIS_TYPES = (AxisType.Auto, AxisType.Explicit)
NAMES = [f"{w.__name__}-{shape}-{k.name}" for w in WAYS for shape in MESHES for k in AXIS_TYPES]


def checks() -> dict[str, functools.partial]:
    """All `NAMES`; needs 8 devices."""
    found = {}
    for how in WAYS:
        for shape, (sizes, axes, spec) in MESHES.items():
            for kind in AXIS_TYPES:
                mesh = jax.make_mesh(sizes, axes, axis_types=(kind,) * len(axes))
                found[f"{how.__name__}-{shape}-{kind.name}"] = functools.partial(how, mesh, spec)
    return found


if __name__ == "__main__":
    results = {}
    for name, check in checks().items():
        try:
            check()
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()
    qj.save(qj.train(X, CONFIG, RECIPE), sys.argv[1])
    print(json.dumps(results))
