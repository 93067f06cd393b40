"""Pytrees in Orbax's format: one finished tree, and the rolling checkpoints of a run.

Knows no model. A tree is written beside its place and renamed, so a path holds all of it or
nothing. In Orbax's files an array has the name that `jax.tree_util.keystr` gives its place.
"""

import contextlib
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
)
from orbax.checkpoint.options import MultiprocessingOptions

from qinco_jax import kinds
from qinco_jax.errors import InputError
from qinco_jax.files import path_of, reserve
from qinco_jax.models import digest, old_digests

ARRAYS, METADATA, DIGEST = kinds.ARRAYS, kinds.MODEL, "digest"
ITEM = "default"  # Orbax's name of the only item in a checkpoint
REMEDY = "take the model from a backup or train it again"


def _alone() -> MultiprocessingOptions:
    """Orbax waits for no other process: one of several writes and reads by itself."""
    own = jax.process_index()
    return MultiprocessingOptions(primary_host=own, active_processes={own})


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Within it Orbax logs errors only, not every step of every save; other logging stays."""

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or "orbax" not in Path(record.pathname).parts

    logger = logging.getLogger("absl")
    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


def write_tree(path: str | os.PathLike[str], tree: Any, metadata: Mapping[str, Any]) -> None:
    """Writes a pytree of arrays and `metadata` as the new folder `path`.

    Raises:
      InputError: `path` exists or cannot be written; then nothing is left behind.
    """
    target = path_of(path).absolute()
    if target.exists():
        raise InputError(f"{target} exists; choose another place or remove it first")
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with _writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _check_space(target.parent, tree)
            _write(partial, tree, metadata)
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(folder: Path, tree: Any, metadata: Mapping[str, Any]) -> None:
    with quiet_orbax(), ocp.StandardCheckpointer(multiprocessing_options=_alone()) as checkpointer:
        checkpointer.save(folder / ARRAYS, _named(tree))
    content = {**metadata, "sha256": digest.sha256(metadata, digest.named(tree))}
    (folder / METADATA).write_text(json.dumps(content, indent=2) + "\n")


def read_tree(path: str | os.PathLike[str], abstract_of: Callable[[Mapping[str, Any]], Any]) -> Any:
    """The arrays that `write_tree` wrote, checked, on the default device.

    Args:
      path: the folder.
      abstract_of: maps the metadata to the pytree of `jax.ShapeDtypeStruct` to read.

    Raises:
      InputError: no such folder, or it is damaged; names the damaged file or folder.
    """
    folder = path_of(path)
    content = _read_metadata(folder)
    expected = content.pop("sha256")
    is_older = content.pop("files", None) is not None
    abstract, arrays = abstract_of(content), folder / ARRAYS
    if not arrays.is_dir():
        raise InputError(f"{arrays} is missing; {REMEDY}")
    try:
        tree = _read_arrays(arrays, abstract)
    except ValueError as error:
        raise InputError(
            f"a file in {arrays} is damaged or missing ({_reason(error)}); {REMEDY}"
        ) from error
    if not is_older and digest.sha256(content, digest.named(tree)) != expected:
        raise InputError(
            f"{folder} is damaged (its arrays and {METADATA} do not match their sha256); {REMEDY}"
        )
    return jax.device_put(tree)


def _read_arrays(folder: Path, abstract: Any) -> Any:
    """The tree of NumPy arrays that Orbax wrote into a folder.

    Orbax itself reads all at once; if one is damaged, its threads print tracebacks of the others.

    Raises:
      ValueError: an array is damaged, missing, or not as `abstract` says; names it.
    """

    def read(place: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if leaf.size == 0:
            return np.zeros(leaf.shape, leaf.dtype)
        name = jax.tree_util.keystr(place)
        array = _read_array(folder, name)
        if (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(
                f"{name} is {array.dtype} {array.shape} instead of {leaf.dtype} {leaf.shape}"
            )
        return array

    return jax.tree_util.tree_map_with_path(read, abstract)


def _read_array(folder: Path, name: str) -> np.ndarray:
    database = {"driver": "file", "path": f"{folder.resolve()}/"}  # refuses ".."
    place = {"driver": "ocdbt", "base": database, "path": f"{name}/"}
    return (
        tensorstore.open({"driver": "auto", "kvstore": place}, read=True).result().read().result()
    )


def _read_metadata(folder: Path) -> dict[str, Any]:
    """The metadata with its digest; an older folder is checked here."""
    file = folder / METADATA
    if not file.is_file():
        raise InputError(
            f"{folder} is not a saved model: {kinds.instead(folder, METADATA)}; give the folder of "
            "a model or of a run, or a .safetensors file"
        )
    try:
        content = json.loads(file.read_bytes())
        if not isinstance(content["sha256"], str):
            raise TypeError("sha256 is not a string")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged; {REMEDY}") from error
    if "files" in content:
        old_digests.check_files(file, folder / ARRAYS, content, REMEDY)
    return dict(content)


def _named(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by their names inside Orbax; TensorStore refuses empty ones.

    They are NumPy's, since Orbax refuses JAX's that one of several processes has to itself.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves if leaf.size}


def _check_space(folder: Path, tree: Any) -> None:
    """Finds a full disk before Orbax's threads do, each of which prints a traceback of its own.

    Raises:
      OSError: the disk has less space than the arrays take before compression.
    """
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    with tempfile.TemporaryFile(dir=folder) as file:
        reserve(file, folder, size)


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Turns the errors that Orbax and TensorStore raise on writing into one sentence."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"cannot write {target} ({_reason(error)}); make sure that its directory is "
            "writable and has free space, then run the same command again"
        ) from error


def _reason(error: Exception) -> str:
    """The first line of an error's message, without TensorStore's settings."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    line = text.splitlines()[0]
    return line.partition(" [tensorstore_spec")[0][:300]


class Checkpoints:
    """The rolling checkpoints of a run: the latest two and the one with the lowest error.

    Saves asynchronously; use it in a `with` block. A checkpoint that a crash left half written is
    ignored.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        keep = AnyPreservationPolicy(
            [LatestN(2), BestN(get_metric_fn=lambda metrics: -metrics["error"], n=1)]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep,
            best_fn=lambda metrics: -metrics["error"],
            multiprocessing_options=_alone(),
            create=False,
        )
        self.folder = Path(folder).absolute()
        self._quiet = contextlib.ExitStack()
        with quiet_orbax(), _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or `None` if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, tree: Any, error: float) -> None:
        """Starts saving a copy of a tree, whose buffers may be donated then; `error` ranks it."""
        if step not in self._manager.all_steps():
            copy = jax.tree.map(np.array, tree)
            item = ocp.args.StandardSave({**_named(copy), DIGEST: _bytes(_digest(copy))})
            with _writing(self.folder):
                _check_space(self.folder, copy)
                self._manager.save(step, args=item, metrics={"error": error}, force=True)

    def restore_latest(self, abstract: Any) -> Any | None:
        """The newest checkpoint's tree, or `None` if there is none.

        Raises:
          InputError: it is damaged; names it and says how to resume from the one before it.
        """
        step = self.latest_step
        if step is None:
            return None
        damaged = (
            f"checkpoint {self.folder / str(step)} is damaged; remove that folder to "
            "resume from the one before it"
        )
        arrays = self.folder / str(step) / ITEM
        try:
            tree, saved = _read_arrays(arrays, abstract), _read_array(arrays, DIGEST)
        except ValueError as error:
            raise InputError(f"{damaged} ({_reason(error)})") from error
        if saved.tobytes().hex() not in (_digest(tree), old_digests.digest(tree)):
            raise InputError(f"{damaged} (its arrays do not match their digest)")
        return jax.device_put(tree)

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
            self._manager.close()  # waits for a save in progress


def _digest(tree: Any) -> str:
    return digest.sha256({}, digest.named(tree))


def _bytes(sha256: str) -> np.ndarray:
    """A digest as an array [32] uint8."""
    return np.frombuffer(bytes.fromhex(sha256), np.uint8)
