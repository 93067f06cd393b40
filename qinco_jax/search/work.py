"""Long work on an index, in a hidden folder beside it: after a kill the same command goes on."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qinco_jax.errors import InputError
from qinco_jax.files import check_same_work, locked, replacing
from qinco_jax.models import codes as code_files
from qinco_jax.quantizers import packing
from qinco_jax.quantizers.coding import Model
from qinco_jax.vectors.stored import Rows, derived

TASK, FITTED = "task.json", "fitted"


def folder_of(target: Path) -> Path:
    """The folder for unfinished work on an index."""
    return target.with_name(f".{target.name}.work")


@contextlib.contextmanager
def working(target: Path, task: dict[str, Any]) -> Iterator[Path]:
    """Makes the folder for unfinished work on an index, or goes on in it; removed at the end.

    Args:
      target: the index.
      task: what tells this work from other work, as json.

    Raises:
      InputError: it is another task's, or another process is at it.
    """
    work, lock = folder_of(target), target.with_name(f".{target.name}.lock")
    if not target.parent.is_dir():
        raise InputError(f"there is no directory {target.parent}; create it first")
    with locked(lock, f"works on {target}"):
        if (work / TASK).exists():
            check_same_work(work, json.loads((work / TASK).read_bytes()), task)
        else:
            work.mkdir(exist_ok=True)
            with replacing(work / TASK) as partial:
                partial.write_text(json.dumps(task, indent=2) + "\n")
        try:
            yield work
            shutil.rmtree(work)
        except BaseException:
            if {path.name for path in work.iterdir()} == {TASK}:  # nothing to go on with
                shutil.rmtree(work)
            raise
        finally:
            lock.unlink(missing_ok=True)


def known_codes(path: str | None, model: Model, x: Rows) -> Rows | None:
    """The codes [N, columns] of vectors in a file, unpacked as they are read; `None` without one.

    Raises:
      InputError: they are another model's, or those of other vectors.
    """
    if path is None:
        return None
    return unpacked(code_files.read(path, model, x), model)


def unpacked(rows: Rows, model: Model) -> Rows:
    """Packed codes [N, bytes] as codes [N, columns], when they are read."""
    return derived(rows, lambda packed: packing.from_rows(packed, model.config))
