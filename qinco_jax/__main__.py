"""The program `qinco`, which is also `python -m qinco_jax`."""

import os
import sys

from qinco_jax.cli.main import INTERRUPTED, main


def run() -> None:
    """Runs a command. After Ctrl-C it ends at once.

    Python would first tear itself down, while JAX's threads may still use its arrays, and crash.
    """
    try:
        main()
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)


if __name__ == "__main__":
    run()
