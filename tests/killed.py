"""Trains in the folder it is given and prints every step, for `test_fit` to kill it.

The vectors are shuffled in 7 pools of blocks of two rows.
"""

import sys

import conftest  # noqa: F401 - its strict promotion changes the last bits
from test_fit import CONFIG, RECIPE, vectors

from qinco_jax import fit
from qinco_jax.data import feed

fit.SAVE_SECONDS, fit.LOG_STEPS = 0.0, 1
feed.BLOCK_BYTES, feed.POOL_BYTES = 64, 2**12
fit.train(
    vectors(), CONFIG, RECIPE, run_dir=sys.argv[1], log=lambda r: print(r["step"], flush=True)
)
