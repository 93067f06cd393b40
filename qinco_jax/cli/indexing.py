"""Long work on an index, in a hidden folder beside it: after a kill the same command goes on."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qinco_jax.cli.codes import bar
from qinco_jax.errors import InputError
from qinco_jax.files import locked, replacing
from qinco_jax.models import codes as code_files
from qinco_jax.quantizers import packing
from qinco_jax.quantizers.coding import Model
from qinco_jax.search import disk
from qinco_jax.search.build import build as fit
from qinco_jax.search.index import Index
from qinco_jax.training.logs import stage_bar
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows, derived, fingerprint

TASK, FITTED, CODES, NEW, OLD = "task.json", "fitted", "codes.npy", "new", "old"


def build(
    target: Path,
    model: Model,
    x_train: Rows,
    x: Rows,
    codes: str | None,
    made: dict[str, Any],
    **settings: Any,
) -> None:
    """Builds the new index `target`: fits it on `x_train` [T, D] and adds `x` [N, D].

    Args:
      target: a new folder.
      model: whose codes are kept.
      x_train: to fit on.
      x: to add.
      codes: file of their codes; `None` encodes them.
      made: what else its description says of how it was built.
      **settings: of `search.build`.

    Raises:
      InputError: `target` exists, the codes are another model's or others in number, or another
        command has left unfinished work there.
    """
    work = _work_of(target)
    if target.exists() and not work.exists():
        raise InputError(f"{target} exists; choose another place or remove it first")
    checks.vectors(x, model.dim, "the database")
    known = _known(codes, model, x)
    task = {
        "command": "build", "model": code_files.model_fingerprint(model),
        "trained_on": fingerprint(x_train), **_origin(x, codes), **settings,
    }  # fmt: skip
    with _working(target, task):
        if target.exists():  # the kill came before the end of the clearing up
            return

        def make() -> Index:
            if not (work / FITTED).exists():
                with stage_bar("fitting lists and decoders"):
                    empty = fit(model, x_train, **settings)
                empty.made |= made
                disk.save(empty, work / FITTED)
            return _filled(disk.load(work / FITTED), work, x, None, known)

        _install(target, work, make)


def extend(target: Path, x: Rows, ids: np.ndarray | None, codes: str | None) -> None:
    """Adds vectors [N, D] to the index `target`, which a new one replaces once it is written.

    Args:
      target: the folder of an index.
      x: to add.
      ids: [N], or `None`.
      codes: file of their codes; `None` encodes them.

    Raises:
      InputError: as `Index.add`, or as `build`.
    """
    work = _work_of(target)
    if not work.exists():
        disk.description(target)  # refuses what is no index
    given = None if ids is None else hashlib.sha256(ids.tobytes()).hexdigest()
    with _working(target, {"command": "add", "ids": given, **_origin(x, codes)}):

        def make() -> Index:
            index = disk.load(target)
            index.new_ids(ids, len(x))  # refuses them before hours of encoding
            return _filled(index, work, x, ids, _known(codes, index.model, x))

        _install(target, work, make)


def _origin(x: Rows, codes: str | None) -> dict[str, Any]:
    return {"vectors": fingerprint(x), "codes": codes}


def _work_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.work")


@contextlib.contextmanager
def _working(target: Path, task: dict[str, Any]) -> Iterator[None]:
    """Makes the folder for unfinished work on an index, or goes on in it; removed at the end.

    Raises:
      InputError: it is another task's, or another process is at it.
    """
    work, lock = _work_of(target), target.with_name(f".{target.name}.lock")
    if not target.parent.is_dir():
        raise InputError(f"there is no directory {target.parent}; create it first")
    with locked(lock, f"works on {target}"):
        if (work / TASK).exists():
            _check_same(work, task)
        else:
            work.mkdir(exist_ok=True)
            with replacing(work / TASK) as partial:
                partial.write_text(json.dumps(task, indent=2) + "\n")
        try:
            yield
            shutil.rmtree(work)
        except BaseException:
            if {path.name for path in work.iterdir()} == {TASK}:  # nothing to go on with
                shutil.rmtree(work)
            raise
        finally:
            lock.unlink(missing_ok=True)


def _check_same(work: Path, task: dict[str, Any]) -> None:
    begun = json.loads((work / TASK).read_bytes())
    if begun != json.loads(json.dumps(task)):
        names = [name for name in {**begun, **task} if begun.get(name) != task.get(name)]
        raise InputError(
            f"{work} holds the unfinished work of a command with another {' and '.join(names)}; "
            "run that one again to finish it, or remove the folder"
        )


def _install(target: Path, work: Path, make: Callable[[], Index]) -> None:
    """Puts the index that `make` gives in place of `target`, whichever step a kill has stopped."""
    new, old = work / NEW, work / OLD
    if not new.exists():
        if old.exists():
            return  # in place already
        disk.save(make(), new)
    if target.exists():
        target.rename(old)
    new.rename(target)


def _filled(index: Index, work: Path, x: Rows, ids: np.ndarray | None, codes: Rows | None) -> Index:
    if codes is None:
        if not (work / CODES).exists():
            with bar("encoding") as advance:
                code_files.write(work / CODES, index.model, x, advance=advance)
        codes = _unpacked(code_files.read(work / CODES, index.model), index.model)
    with bar("adding") as advance:
        index.add(x, ids, codes=codes, advance=advance)
    return index


def _known(path: str | None, model: Model, x: Rows) -> Rows | None:
    """The codes [N, columns] of vectors in a file, unpacked as they are read."""
    if path is None:
        return None
    rows = code_files.read(path, model)
    if len(rows) != len(x):
        raise InputError(
            f"{path} holds {len(rows):,} codes of {len(x):,} vectors; give the codes of these "
            "vectors, or none to encode them"
        )
    return _unpacked(rows, model)


def _unpacked(rows: Rows, model: Model) -> Rows:
    return derived(rows, lambda packed: packing.from_rows(packed, model.config))
