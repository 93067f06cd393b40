"""One process of a training, for test_processes.py, which starts several.

With a signal, a step and a command line it runs the command, and sends itself the signal at that
step; with WAIT and seconds it waits as long for the others. With a port, its number and a folder it
is a program of two processes that is refused things.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import strict  # noqa: F401
from killed import CONFIG, RECIPE, vectors

import qinco_jax as qj
from qinco_jax.__main__ import run
from qinco_jax.errors import InputError
from qinco_jax.training import loop, processes
from qinco_jax.training import train as module


def command(name: str, step: int) -> None:
    """The command line in `sys.argv`, saved at every step."""
    loop.SAVE_SECONDS, loop.LOG_STEPS = 0.0, 1
    if name == "WAIT":
        processes.START_SECONDS = step
    begun, train_step = 0, loop.training.train_step

    def signalled(*given: Any) -> Any:
        nonlocal begun
        begun += 1
        if begun == step and name.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, name))
        return train_step(*given)

    loop.training.train_step = signalled
    run()


def refused(number: int, folder: str) -> None:
    """Prints what each call of `train` raises where the second process differs, or has bad rows."""

    def said(call: Callable[[], Any]) -> None:
        try:
            call()
        except InputError as error:
            print(error, flush=True)

    x, other = vectors(), number == 1
    said(lambda: qj.train(x, CONFIG, RECIPE, seed=number))
    said(lambda: qj.train(x + number, CONFIG, RECIPE))
    bad = np.where(np.arange(1000)[:, None] == 700, np.nan, x) if other else x
    said(lambda: qj.train(bad, CONFIG, RECIPE))
    version, module.__version__ = module.__version__, "0.0" if other else module.__version__
    said(lambda: qj.train(x, CONFIG, RECIPE))
    module.__version__ = version

    def full(record: dict[str, float]) -> None:
        if record["step"] == 20:
            raise OSError(28, "No space left on device", "metrics.jsonl")

    said(lambda: qj.train(x, CONFIG, RECIPE, run_dir=folder, log=full))


if __name__ == "__main__":
    first, second, *rest = sys.argv[1:]
    if len(rest) > 1:
        sys.argv[1:] = rest
        command(first, int(second))
    else:
        jax.distributed.initialize(f"127.0.0.1:{first}", 2, int(second))
        refused(int(second), *rest)
        os._exit(0)  # without waiting for the other one, which may wait for this
