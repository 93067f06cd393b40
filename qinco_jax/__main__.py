"""`python -m qinco_jax` is `qinco`."""

from qinco_jax.cli.main import main

main()
