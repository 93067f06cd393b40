"""Trains in the folder it is given and prints every step, for `test_fit` to kill it."""

import sys

import conftest  # noqa: F401 - its strict promotion changes the last bits
from test_fit import CONFIG, RECIPE, vectors

from qinco_jax import fit

fit.SAVE_SECONDS, fit.LOG_STEPS = 0.0, 1
fit.train(
    vectors(), CONFIG, RECIPE, run_dir=sys.argv[1], log=lambda r: print(r["step"], flush=True)
)
