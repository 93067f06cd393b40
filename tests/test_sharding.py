"""Batches sharded over 8 simulated devices, checked by one process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import devices8
import jax
import numpy as np
import pytest

import qinco_jax as qj
from qinco_jax import qinco

ROOT = Path(qj.__file__).parents[1]
pytestmark = pytest.mark.xdist_group("devices8")  # one worker, so that there is one process


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What devices8.py found, and where it put the model it trained."""
    saved = tmp_path_factory.mktemp("devices8") / "model"
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, devices8.__file__, str(saved)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "saved": str(saved)}


@pytest.mark.parametrize("name", devices8.NAMES)
def test_sharded_batch_gives_the_codes_and_vectors_of_one_device(
    name: str, results: dict[str, str]
) -> None:
    assert results[name] == ""


def test_training_on_8_devices_is_training_on_1(results: dict[str, str]) -> None:
    start = qj.train(devices8.X, devices8.CONFIG, num_epochs=0)
    alone = qj.train(devices8.X, devices8.CONFIG, devices8.RECIPE)
    together = qj.load(results["saved"])

    def compare(together: np.ndarray, alone: np.ndarray, start: np.ndarray) -> None:
        difference, movement = np.std(together - alone), np.std(alone - start)
        assert difference <= 1e-2 * movement

    jax.tree.map(compare, *map(qinco.parameters, (together, alone, start)))
