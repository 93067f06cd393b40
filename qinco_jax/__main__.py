"""The program `qinco`, which is also `python -m qinco_jax`."""

import os
import sys

from qinco_jax import interrupts


def run() -> None:
    """Runs a command. After Ctrl-C it ends at once, as does one of several processes that fails.

    Python would first tear itself down, while JAX's threads may still use its arrays, and crash, or
    wait for the other processes.
    """
    interrupts.ends_process()  # while modules are imported, which takes seconds
    import jax

    from qinco_jax.cli.main import main

    try:
        main()
    except SystemExit as end:
        if end.code != interrupts.INTERRUPTED and not jax.distributed.is_initialized():
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)


if __name__ == "__main__":
    run()
