"""Trains in the folder it is given and prints every step, for `test_loop` to kill it.

The vectors are moved towards their neighbours, and shuffled in pools of blocks of two rows.
"""

import sys

import numpy as np
import strict  # noqa: F401 - strict promotion changes the last bits

import qinco_jax as qj
from qinco_jax.training import feed, loop

CONFIG = qj.QincoConfig(
    num_steps=3, codebook_size=16, hidden_dim=16, num_blocks=1, num_candidates=4, beam_size=2
)
RECIPE = qj.Recipe(num_epochs=3, batch_size=64, num_updates=2)


def vectors(num_rows: int = 1000, dim: int = 8) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.float32(rng.normal(size=(num_rows, dim)) * np.linspace(0.5, 2, dim) + 1)


if __name__ == "__main__":
    loop.SAVE_SECONDS, loop.LOG_STEPS = 0.0, 1
    feed.BLOCK_BYTES, feed.POOL_BYTES = 64, 2**12
    qj.train(
        vectors(), CONFIG, RECIPE, mix=0.5, run_dir=sys.argv[1],
        log=lambda record: print(record["step"], flush=True),
    )  # fmt: skip
