"""Files of codes: written block by block, resumed after an interruption, bound to their model.

Codes are a plain `.npy` of packed rows (`packing.to_rows`). Beside `codes.npy`, `codes.npy.json`
says which model made them, from which vectors and with which search; whoever moves the one should
move the other.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, overload

import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.files import check_same_work, locked, replacing
from qinco_jax.interrupts import Interrupted, noticed
from qinco_jax.models import code_shards, digest
from qinco_jax.quantizers import coding, packing, precision
from qinco_jax.quantizers.coding import Model
from qinco_jax.quantizers.qinco import Search
from qinco_jax.remote import copies
from qinco_jax.remote.paths import AnyPath, RemotePath, place_of
from qinco_jax.vectors import checks, formats
from qinco_jax.vectors.stored import Rows, fingerprint
from qinco_jax.version import __version__

BLOCK_ROWS = 4096, 65536  # the first block, at most, and the largest
BLOCK_SECONDS = 1.0  # blocks grow while they take less
DAMAGED = "remove it to use the codes unchecked, or encode the vectors again"

Advance = Callable[[int, int], Any]
"""Shows progress: (rows done, of how many)."""


def write(
    path: str | os.PathLike[str],
    model: Model,
    x: Rows,
    *,
    num_candidates: int | None = None,
    beam_size: int | None = None,
    joint: bool | None = None,
    compute_dtype: str | None = None,
    what: str = "the vectors",
    advance: Advance = lambda done, total: None,
) -> None:
    """Encodes vectors of any number into the new file `path`.

    What is done is kept beside it: the same call goes on there after Ctrl-C, a crash or a kill, and
    another one is refused.

    Args:
      path: a new `.npy` file. If it is a URL, the codes wait in `copies.cache_folder()` until they
        are complete, and are uploaded then.
      model: of M steps and K codewords.
      x: [N, D] vectors, read block by block.
      num_candidates: A, as of `encode`.
      beam_size: B, as of `encode`.
      joint: as of `encode`.
      compute_dtype: as of `encode`.
      what: the name of the vectors, for messages.
      advance: called with the rows done, at first those of an earlier call, and N.

    Raises:
      InputError: `path` exists or cannot be written, vectors or options do not fit the model,
        another process writes the same file, or another call has left unfinished work there.
      Interrupted: Ctrl-C; the message says how many rows are kept.
    """
    target = checked(path, model, x, what)
    search = search_for(model, num_candidates, beam_size, joint, compute_dtype)
    origin = made_by(model, x, search)
    if isinstance(target, Path):
        _write(target, model, x, search, origin, what, advance)
        return
    local = copies.kept_place(target, origin)
    if not local.exists():  # an earlier upload failed
        local.parent.mkdir(parents=True, exist_ok=True)
        _write(local, model, x, search, origin, what, advance)
    copies.upload(_beside(local), _beside(target))
    copies.upload(local, target)
    _remove(_beside(local), local)


def search_for(
    model: Model,
    num_candidates: int | None = None,
    beam_size: int | None = None,
    joint: bool | None = None,
    compute_dtype: str | None = None,
) -> dict[str, Any]:
    """The search that `encoded` takes, where `None` means the model's own and this device's."""
    search = dataclasses.asdict(coding.search_of(model, num_candidates, beam_size, joint))
    return {**search, "compute_dtype": precision.resolve(compute_dtype)}


def rows_together(model: Model, search: Mapping[str, Any]) -> int:
    """Rows of a block of `encoded`; fewer are padded to as many."""
    chosen = {name: search[name] for name in ("num_candidates", "beam_size", "joint")}
    return coding.rows_together(model, Search(**chosen), search["compute_dtype"])


def checked(path: str | os.PathLike[str], model: Model, x: Rows, what: str) -> AnyPath:
    """The place of a new file of codes; raises `InputError` where `write` would at once."""
    target = place_of(path)
    if target.suffix != ".npy":
        raise InputError(f"codes are written as .npy; name the output {target}.npy")
    if isinstance(target, Path):
        formats.check_new(target, formats.NEW_ENDINGS)
    else:
        copies.check_new(target)
    checks.vectors(x, model.dim, what)
    return target


def _write(
    target: Path,
    model: Model,
    x: Rows,
    search: Mapping[str, Any],
    origin: Mapping[str, Any],
    what: str,
    advance: Advance,
) -> None:
    partial, progress = _hidden(target, "partial"), _hidden(target, "progress")
    shape, lock = (len(x), origin["bytes"]), _hidden(target, "lock")
    with locked(lock, f"writes {target}"), noticed() as interrupted:
        done = _done(progress, origin)
        if done == 0:
            partial.unlink(missing_ok=True)
            _write_json(progress, {**origin, "done": 0})
        advance(done, len(x))
        first = rows_together(model, search)
        try:
            if done == 0:  # a bad one among the first vectors leaves nothing behind
                checks.finite(x[: BLOCK_ROWS[0]], 0, what)
            with formats.create(target, shape, origin["dtype"], partial) as out:
                for span in _blocks(done, len(x), first):
                    rows = checks.finite(x[span], span.start, what)
                    out[span] = encoded(model, rows, search)
                    _write_json(progress, {**origin, "done": span.stop})
                    advance(span.stop, len(x))
                    if interrupted.is_set() and span.stop < len(x):
                        raise Interrupted(_how_to_resume(span.stop, len(x)))
                _write_json(_beside(target), origin)
        except InputError:
            if _done(progress, origin) == 0:  # else the blocks before are worth keeping
                _remove(partial, progress, lock)
            raise
        _remove(progress, lock)  # before the block ends, which raises a late Ctrl-C


def _how_to_resume(done: int, total: int) -> str:
    return (
        f"stopped after {done:,} of {total:,} vectors, whose codes are kept; run the same command "
        "again to resume"
    )


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def read(path: str | os.PathLike[str], model: Model, x: Rows | None = None) -> Rows:
    """Opens packed codes [N, bytes] after checking that they are the model's.

    Codes without a `.json` beside them, such as `np.save` makes, are checked for their width alone.

    Args:
      path: a file, or a folder of shards, which may be remote (`code_shards`).
      model: that made them, or of whose steps they are the first.
      x: [N, D], the vectors whose codes they should be, where these are at hand; in another dtype
        they cannot be told from others.

    Raises:
      InputError: no such file or folder, unfinished shards, or codes of another model, of other
        vectors or in another order.
    """
    described: bytes | None
    if code_shards.is_folder(path):
        rows, described = code_shards.read(path)
        beside = code_shards.place_of_manifest(path)
    else:
        rows, place = formats.read(path), _beside(place_of(path))
        described = place.read_bytes() if place.exists() else None
        beside = str(place)
    if x is not None and len(rows) != len(x):
        raise InputError(
            f"{path} holds {len(rows):,} codes of {len(x):,} vectors; give the codes of these "
            "vectors, or none to encode them"
        )
    columns = packing.from_rows(np.asarray(rows[:1]), model.config).shape[1]
    if described is not None:
        try:
            origin = json.loads(described)
            maker, encoded = origin["model"], dict(origin["vectors"])
            shape = [encoded["shape"][0], origin["bytes"]]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(f"{beside} is damaged ({error!r}); {DAMAGED}") from error
        if shape != list(rows.shape):
            raise InputError(
                f"{beside} is of {shape[0]} codes of {shape[1]} bytes, and {path} holds "
                f"{rows.shape[0]} of {rows.shape[1]}; {DAMAGED}"
            )
        if maker != model_fingerprint(model.first_columns(columns)):
            raise InputError(
                f"{path} holds codes of another model, as {beside} says; use that "
                "model, or encode the vectors with this one"
            )
        own = encoded if x is None else fingerprint(x)
        if own["dtype"] == encoded.get("dtype") and own != encoded:
            raise InputError(
                f"{path} holds codes of other vectors, or of these in another order, as {beside} "
                "says; give the codes of these vectors, or none to encode them"
            )
    return rows


def encoded(model: Model, x: np.ndarray, search: Mapping[str, Any]) -> np.ndarray:
    """Packed codes of a block of vectors, by the program that encodes blocks of any number.

    The last vectors of a file may be few. The program for few rows rounds differently, and codes
    should not depend on where the blocks of a file or its shards begin.

    Args:
      model: of M steps and K codewords.
      x: [R, D] finite vectors.
      search: A, B, joint and compute_dtype, by the names that `encode` gives them.
    """
    rows = rows_together(model, search)
    enough = x if len(x) >= rows else np.resize(x, (rows, x.shape[1]))  # repeats them
    found = np.asarray(coding.encode(model, enough, **search))[: len(x)]
    return packing.to_rows(found, model.config)


def model_fingerprint(model: Model) -> str:
    """What tells a model's codes from another's: SHA-256, in hex, of all that decoding uses."""
    arrays = digest.named(model)
    return digest.sha256({}, {name: arrays[name] for name in arrays if "preselect" not in name})


def read_blocks(num_rows: int, advance: Advance) -> Iterator[slice]:
    """Slices of rows that grow while each takes less than a second, so progress shows early."""
    advance(0, num_rows)
    for span in _blocks(0, num_rows, BLOCK_ROWS[0]):
        yield span
        advance(span.stop, num_rows)


def _blocks(begin: int, num_rows: int, first: int) -> Iterator[slice]:
    fewest, most = BLOCK_ROWS
    size = min(first, fewest)
    while begin < num_rows:
        started = time.monotonic()
        yield slice(begin, min(begin + size, num_rows))
        begin += size
        if time.monotonic() - started < BLOCK_SECONDS / 2:
            size = min(2 * size, most)


def made_by(model: Model, x: Rows, search: Mapping[str, Any]) -> dict[str, Any]:
    """What made codes: the model, the vectors [N, D] and the search, as `encoded` takes it."""
    width, dtype = packing.row_shape(model.config)
    return {
        "model": model_fingerprint(model),
        "vectors": fingerprint(x),
        "search": search,
        "bytes": width,
        "dtype": str(dtype),
        "version": __version__,
    }


def _done(progress: Path, origin: Mapping[str, Any]) -> int:
    """The rows that an earlier call left; 0 if there was none.

    Raises:
      InputError: it was of another origin.
    """
    try:
        left = json.loads(progress.read_bytes())
        done = left.pop("done")
    except (OSError, ValueError, KeyError, AttributeError):
        return 0
    if done:
        check_same_work(progress, left, origin)
    return int(done)


@overload
def _beside(path: Path) -> Path: ...
@overload
def _beside(path: RemotePath) -> RemotePath: ...
def _beside(path: AnyPath) -> AnyPath:
    """The place of the description of a file of codes."""
    return path.with_name(f"{path.name}.json")


def _hidden(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{ending}")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")
