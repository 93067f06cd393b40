"""Long work on an index, in a hidden folder beside it: after a kill the same command goes on."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.models import codes as code_files
from qinco_jax.quantizers.coding import Model
from qinco_jax.search import disk
from qinco_jax.search.build import build as fit
from qinco_jax.search.index import Index
from qinco_jax.search.work import FITTED, folder_of, known_codes, unpacked, working
from qinco_jax.training.logs import stage_bar
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows, fingerprint

CODES, NEW, OLD = "codes.npy", "new", "old"


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
    work = folder_of(target)
    if target.exists() and not work.exists():
        raise InputError(f"{target} exists; choose another place or remove it first")
    checks.vectors(x, model.dim, "the database")
    known = known_codes(codes, model, x)
    task = {
        "command": "build", "model": code_files.model_fingerprint(model),
        "trained_on": fingerprint(x_train), **_origin(x, codes), **settings,
    }  # fmt: skip
    with working(target, task):
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
    work = folder_of(target)
    if not work.exists():
        disk.description(target)  # refuses what is no index
    given = None if ids is None else hashlib.sha256(ids.tobytes()).hexdigest()
    with working(target, {"command": "add", "ids": given, **_origin(x, codes)}):

        def make() -> Index:
            index = disk.load(target)
            index.new_ids(ids, len(x))  # refuses them before hours of encoding
            return _filled(index, work, x, ids, known_codes(codes, index.model, x))

        _install(target, work, make)


def _origin(x: Rows, codes: str | None) -> dict[str, Any]:
    return {"vectors": fingerprint(x), "codes": codes}


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
            with stage_bar("encoding") as advance:
                code_files.write(work / CODES, index.model, x, advance=advance)
        codes = unpacked(code_files.read(work / CODES, index.model), index.model)
    with stage_bar("adding") as advance:
        index.add(x, ids, codes=codes, advance=advance)
    return index
