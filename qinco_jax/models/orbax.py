"""Pytrees on disk, in Orbax's format: one finished tree, and the rolling checkpoints of a run.

Knows no model. A tree is written beside its place and renamed, so a path holds all of it or
nothing; hashes tell a damaged file from a good one.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
)

from qinco_jax.errors import InputError

ARRAYS, METADATA, DIGEST = "arrays", "model.json", "digest"


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Within it Orbax does not log every step of every save."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def write_tree(path: str | os.PathLike[str], tree: Any, metadata: Mapping[str, Any]) -> None:
    """Writes a pytree of arrays and `metadata` as the new folder `path`.

    Raises:
      InputError: `path` exists or cannot be written; then nothing is left behind.
    """
    target = Path(path).absolute()
    if target.exists():
        raise InputError(f"{target} exists; choose another place or remove it first")
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with _writing(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(partial, tree, metadata)
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(folder: Path, tree: Any, metadata: Mapping[str, Any]) -> None:
    with quiet_orbax(), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / ARRAYS, _named(tree))
    content = {**metadata, "files": _hashes(folder / ARRAYS)}
    text = json.dumps({**content, "sha256": _hash_of(content)}, indent=2)
    (folder / METADATA).write_text(text + "\n")


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata that `write_tree` put beside the arrays, after checking every file.

    Raises:
      InputError: no such checkpoint, or a file of it is missing or damaged; names the file.
    """
    folder, remedy = Path(path), "take the model from a backup or train it again"
    file = folder / METADATA
    if not file.is_file():
        raise InputError(f"{folder} is no saved model: {file} is missing")
    try:
        content = json.loads(file.read_bytes())
        known = content.pop("sha256") == _hash_of(content)
    except (ValueError, KeyError, AttributeError):
        known = False
    if not known:
        raise InputError(f"{file} is damaged; {remedy}")
    there = _hashes(folder / ARRAYS)
    for name, expected in content["files"].items():
        if there.get(name) != expected:
            state = "damaged" if name in there else "missing"
            raise InputError(f"{folder / ARRAYS / name} is {state}; {remedy}")
    return content


def read_tree(path: str | os.PathLike[str], abstract: Any) -> Any:
    """The arrays that `write_tree` wrote, on the default device.

    Args:
      path: the folder, checked by `read_metadata`.
      abstract: pytree of `jax.ShapeDtypeStruct` as they must be.
    """
    with quiet_orbax(), ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore((Path(path) / ARRAYS).absolute(), _abstract(abstract))
    return _unnamed(found, abstract)


def _hashes(folder: Path) -> dict[str, str]:
    """The hash of every file below a folder, by its relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def _hash_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(tree: Any) -> np.ndarray:
    """A hash [32] uint8 of all arrays of a tree with their names and shapes."""
    result = hashlib.sha256()
    for name, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        result.update(f"{jax.tree_util.keystr(name)} {array.shape} {array.dtype}".encode())
        result.update(array.tobytes())
    return np.frombuffer(result.digest(), np.uint8)


def _named(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by name; TensorStore takes none that are empty."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves if leaf.size}


def _unnamed(named: Mapping[str, Any], abstract: Any) -> Any:
    """The tree like `abstract` whose arrays `_named` named."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            named[jax.tree_util.keystr(path)] if leaf.size else np.zeros(leaf.shape, leaf.dtype)
        ),
        abstract,
    )


def _abstract(abstract: Any) -> dict[str, Any]:
    """The named arrays of an abstract tree, each placed on the default device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
        for name, leaf in _named(abstract).items()
    }


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise when they cannot write into one sentence."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(
            f"cannot write to {folder} ({reason}); see that it is writable and has space, then run "
            "the same again"
        ) from error


class Checkpoints:
    """The rolling checkpoints of a run: the latest two and the one with the lowest error.

    Saving is asynchronous, in a `with` block. A checkpoint that a crash left half written does not
    count.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        keep = AnyPreservationPolicy(
            [LatestN(2), BestN(get_metric_fn=lambda metrics: -metrics["error"], n=1)]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep, best_fn=lambda metrics: -metrics["error"]
        )
        self.folder = Path(folder).absolute()
        self._quiet = contextlib.ExitStack()
        with quiet_orbax(), _writing(self.folder):
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    @property
    def latest_step(self) -> int | None:
        """Of the newest checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, tree: Any, error: float) -> None:
        """Starts to save a copy of a tree, whose buffers may be donated then; `error` ranks it."""
        if step not in self._manager.all_steps():
            copy = jax.tree.map(np.array, tree)
            item = ocp.args.StandardSave({**_named(copy), DIGEST: _digest(copy)})
            with _writing(self.folder):
                self._manager.save(step, args=item, metrics={"error": error}, force=True)

    def restore_latest(self, abstract: Any) -> Any | None:
        """The newest checkpoint's tree, or `None` where there is none.

        Raises:
          InputError: it is damaged; names it and says how to go on from the one before.
        """
        step = self.latest_step
        if step is None:
            return None
        damaged = (
            f"checkpoint {self.folder / str(step)} is damaged; remove that folder to "
            "resume from the one before it"
        )
        item = {**_abstract(abstract), DIGEST: jax.ShapeDtypeStruct((32,), np.uint8)}
        try:
            saved = self._manager.restore(step, args=ocp.args.StandardRestore(item))
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise InputError(f"{damaged} ({str(error).splitlines()[0][:200]})") from error
        tree = _unnamed(saved, abstract)
        if not np.array_equal(saved[DIGEST], _digest(tree)):
            raise InputError(f"{damaged} (its arrays do not match their digest)")
        return tree

    def __enter__(self) -> "Checkpoints":
        self._quiet.enter_context(quiet_orbax())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._quiet, _writing(self.folder):
            self._manager.close()  # waits for a save under way
