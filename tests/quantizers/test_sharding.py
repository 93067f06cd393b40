"""Batches sharded over 8 simulated devices, in processes of their own: see devices8.py."""

import os
import subprocess
import sys
from pathlib import Path

import devices8
import jax
import numpy as np

import qinco_jax as qj
from qinco_jax.quantizers import qinco

FLAGS = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"


def on_8_devices(*arguments: str) -> str:
    """What devices8.py prints."""
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": FLAGS,
        "PYTHONPATH": str(Path(qj.__file__).parents[1]),
    }
    command = [sys.executable, devices8.__file__, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_sharded_batches_give_the_codes_and_vectors_of_one_device() -> None:
    failures = on_8_devices()
    assert not failures, failures


def test_training_on_8_devices_is_training_on_1(tmp_path: Path) -> None:
    on_8_devices(str(tmp_path / "model"))
    together = qj.load(tmp_path / "model")
    start = qj.train(devices8.X, devices8.CONFIG, num_epochs=0)
    alone = qj.train(devices8.X, devices8.CONFIG, devices8.RECIPE, x_val=devices8.X)

    def compare(together: jax.Array, alone: jax.Array, start: jax.Array) -> None:
        difference, movement = np.std(together - alone), np.std(alone - start)
        assert difference <= 1e-3 * movement

    jax.tree.map(compare, *map(qinco.parameters, (together, alone, start)))
