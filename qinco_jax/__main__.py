"""`python -m qinco_jax` is `qinco`."""

from qinco_jax.cli import main

main()
