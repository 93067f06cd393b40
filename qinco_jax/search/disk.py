"""Indexes on disk: a folder with the model, the lists and a description."""

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from qinco_jax import kinds, optional
from qinco_jax.errors import InputError
from qinco_jax.files import path_of, replacing
from qinco_jax.models import digest, disk
from qinco_jax.models.codes import model_fingerprint
from qinco_jax.quantizers import precision
from qinco_jax.search import distance, pairwise, scan
from qinco_jax.search.index import Index
from qinco_jax.version import __version__

DESCRIPTION, MODEL, LISTS, ARRAYS = kinds.INDEX, "model", kinds.LISTS, "decoder.npz"
REMEDY = "take the index from a backup or build it again"


def save(index: Index, path: str | os.PathLike[str]) -> None:
    """Saves an index as the new folder `path`, written beside it and renamed.

    Raises:
      InputError: `path` exists or cannot be written; then nothing is left behind. Or the index is
        mapped, so that its folder can be copied instead.
    """
    faiss = optional.faiss(scan.WANTED)
    if not isinstance(index, Index):
        raise InputError(
            f"an object of type {type(index).__name__} is not an index; call save(index, path)"
        )
    target = path_of(path)
    if scan.is_mapped(index.lists):  # Faiss would write where its file lies
        raise InputError("the index is mapped from its file; copy its folder instead of saving it")
    if target.exists() or target.is_symlink():
        raise InputError(f"{target} exists; choose another place or remove it first")
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        disk.save(index.model, partial / MODEL)
        arrays: dict[str, Any] = {"list_vectors": index.list_vectors, "tables": index.tables}
        np.savez(
            partial / ARRAYS, origin=index.reading.origin, **arrays | pairwise.arrays(index.pairs)
        )
        faiss.write_index(index.lists, str(partial / LISTS))
        files = {name: _facts(partial / name) for name in (LISTS, ARRAYS)}
        content = {**describe(index), "next_id": index.next_id, "files": files}
        content |= {"model_sha256": model_fingerprint(index.model), "points": index.points}
        (partial / DESCRIPTION).write_text(_text(content))
        partial.rename(target)
    except (OSError, RuntimeError) as error:  # Faiss raises the latter
        raise InputError(
            f"cannot write {target} ({str(error).splitlines()[0]}); make sure that its directory "
            "is writable and has free space"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_points(index: Index, path: str | os.PathLike[str]) -> None:
    """Writes an index's operating points into its folder; nothing else of it changes.

    Raises:
      InputError: there is no index, or its description is damaged.
    """
    content = {**description(path), "points": index.points}
    with replacing(path_of(path) / DESCRIPTION) as partial:
        partial.write_text(_text(content))


def _text(content: dict[str, Any]) -> str:
    """The description as text, with a digest of itself."""
    return json.dumps({**content, "sha256": digest.sha256(content, {})}, indent=2) + "\n"


def describe(index: Index) -> dict[str, Any]:
    """How an index was built and what it takes, as json."""
    return {
        "version": __version__,
        "made": index.made,
        "vectors": len(index),
        "dim": index.model.dim,
        "metric": index.metric,
        "num_lists": len(index.list_vectors),
        "residual": bool(index.lists.by_residual),
        "code_bytes": index.code_bytes,
        "bytes_in_memory": len(index) * (index.code_bytes + 8),
        "reading": distance.settings(index.reading),
        "pairs": 0 if index.pairs is None else len(index.pairs.decoder.tables),
        "model": index.model.config.settings,
    }


@precision.in_32_bits
def load(
    path: str | os.PathLike[str], *, mmap: bool = False, compute_dtype: str | None = None
) -> Index:
    """Loads an index that `save` wrote.

    Args:
      path: its folder.
      mmap: whether the lists stay in their file and are read as they are searched; such an index
        takes no further vectors, and the file's bytes are not checked.
      compute_dtype: of the network that re-ranks, as of `Index`.

    Raises:
      InputError: there is no index, or it is damaged; names the file. Or an unknown dtype.
    """
    precision.check(compute_dtype)
    faiss = optional.faiss(scan.WANTED)
    folder = path_of(path)
    content = description(folder)
    for name, facts in content["files"].items():
        _check(folder / name, facts, whole=not mmap or name != LISTS)
    model = disk.load(folder / MODEL)
    if model_fingerprint(model) != content["model_sha256"]:
        raise InputError(
            f"the model in {folder} is not the one that the codes were made with; {REMEDY}"
        )
    flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if mmap else 0
    try:
        lists = faiss.read_index(str(folder / LISTS), flags)
        with np.load(folder / ARRAYS) as arrays:
            list_vectors, tables, origin = (
                arrays[name] for name in ("list_vectors", "tables", "origin")
            )
            pairs = pairwise.of_arrays(arrays, list_vectors, lists.by_residual)
        reading = distance.from_settings(content["reading"], origin)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} is damaged ({str(error)[:200]}); {REMEDY}") from error
    facts = content["next_id"], content["made"], content["points"]
    return Index(model, list_vectors, tables, reading, lists, *facts, pairs, compute_dtype)


def description(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What stands beside an index: how it was built, its size, and its operating points.

    Raises:
      InputError: there is no index, or the description is damaged.
    """
    folder = path_of(path)
    file = folder / DESCRIPTION
    if not file.is_file():
        whole = "give a folder that `qinco index build` has written"
        remedy = "give one of its shards" if (folder / kinds.SHARDS).is_file() else whole
        raise InputError(
            f"{folder} is not an index: {kinds.instead(folder, DESCRIPTION)}; {remedy}"
        )
    try:
        content = json.loads(file.read_bytes())
        if content.pop("sha256") != digest.sha256(content, {}):
            raise ValueError("its text does not match its sha256")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is damaged ({error}); {REMEDY}") from error
    return dict(content)


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _check(path: Path, facts: dict[str, Any], whole: bool) -> None:
    """Refuses a file of another size, or of other bytes if `whole`."""
    if not path.is_file() or path.stat().st_size != facts["bytes"]:
        size = path.stat().st_size if path.is_file() else "no"
        raise InputError(f"{path} has {size} bytes instead of {facts['bytes']}; {REMEDY}")
    if whole and _facts(path) != facts:
        raise InputError(f"{path} is damaged (its bytes do not match their sha256); {REMEDY}")
