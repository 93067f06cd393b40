"""Saves an index in the folder it is given and kills itself at a step, for `test_disk`."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import indexes
import numpy as np
import strict  # noqa: F401

from qinco_jax.search import disk

if __name__ == "__main__":
    step, target = sys.argv[1], Path(sys.argv[2])

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def torn(*_: Any, **__: Any) -> None:
        next(target.parent.glob(".*/model")).joinpath("torn").write_bytes(b"half")
        die()

    if step == "arrays":
        np.savez = torn
    elif step == "facts":
        disk._facts = die
    elif step == "rename":
        Path.rename = die  # type: ignore[assignment]
    index = indexes.filled()
    print("saving", flush=True)
    disk.save(index, target)
