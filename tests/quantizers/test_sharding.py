"""Batches sharded over 8 simulated devices, in processes of their own: see devices8.py."""

import os
import subprocess
import sys
from pathlib import Path

import devices8
import jax
import numpy as np
import pytest

import qinco_jax as qj
from qinco_jax.quantizers import qinco

FLAGS = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count={}"


def on_devices(count: int, *arguments: str) -> str:
    """What devices8.py prints."""
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": FLAGS.format(count),
        "PYTHONPATH": str(Path(qj.__file__).parents[1]),
    }
    command = [sys.executable, devices8.__file__, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_sharded_batches_give_the_codes_and_vectors_of_one_device() -> None:
    failures = on_devices(8)
    assert not failures, failures


@pytest.mark.parametrize(("count", "batch_size"), [(8, 64), (7, 56)])
def test_training_on_several_devices_is_training_on_1(
    tmp_path: Path, count: int, batch_size: int
) -> None:
    """7 cannot share a batch of 64 among 8 updates, so it is the next smaller one that they can."""
    on_devices(count, str(tmp_path))
    x, given = devices8.X, {"config": devices8.CONFIG, "recipe": devices8.RECIPE}
    start = qj.train(x, devices8.CONFIG, num_epochs=0)
    alone = qj.train(x, **given, x_val=x, batch_size=batch_size)
    together = qj.train(x, **given, x_val=x, batch_size=batch_size, run_dir=tmp_path)  # is finished
    if batch_size != devices8.RECIPE.batch_size:
        with pytest.raises(qj.InputError, match=r"recipe\.batch_size is 56 there and 64 here"):
            qj.train(x, **given, x_val=x, run_dir=tmp_path)

    def compare(together: jax.Array, alone: jax.Array, start: jax.Array) -> None:
        difference, movement = np.std(together - alone), np.std(alone - start)
        assert difference <= 1e-3 * movement

    jax.tree.map(compare, *map(qinco.parameters, (together, alone, start)))
