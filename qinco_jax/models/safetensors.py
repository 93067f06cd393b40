"""Pytrees in one `.safetensors` file, which every language reads.

Knows no model. A tensor's name is its place in the tree, such as `steps.codebook` or
`parts.0.mean`; a `None` in the tree has no tensor. The file's metadata has one entry,
`qinco_jax`: JSON with the version, the config, and `sha256`, the digest of the rest and the tensors
(`qinco_jax.models.digest`). To read it without JAX:

    file = safetensors.safe_open("model.safetensors", framework="numpy")
    config = json.loads(file.metadata()["qinco_jax"])["config"]
    codebooks = file.get_tensor("steps.codebook")
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.files import path_of, replacing
from qinco_jax.kinds import MODEL_ENTRY
from qinco_jax.models import digest

SUFFIX, KEY = ".safetensors", MODEL_ENTRY
SHOWN_FAULTS = 5


def write_tree(path: str | os.PathLike[str], tree: Any, metadata: Mapping[str, Any]) -> None:
    """Writes a pytree of arrays and `metadata` as the new file `path`.

    Raises:
      InputError: `path` exists.
      OSError: it cannot be written; then nothing is left behind.
    """
    from safetensors.numpy import save

    target = path_of(path).absolute()
    if target.exists():
        raise InputError(f"{target} exists; choose another place or remove it first")
    tensors = {name: np.array(leaf, order="C") for name, leaf in digest.named(tree).items()}
    content = {**metadata, "sha256": digest.sha256(metadata, tensors)}
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial:
        partial.write_bytes(save(tensors, {KEY: json.dumps(content)}))


def read_tree(path: str | os.PathLike[str], abstract_of: Callable[[Mapping[str, Any]], Any]) -> Any:
    """The arrays that `write_tree` wrote, checked, on the default device.

    Args:
      path: the file.
      abstract_of: maps the metadata to the pytree of `jax.ShapeDtypeStruct` to read.

    Raises:
      InputError: no such file, not one of `write_tree`, damaged, or with tensors that are missing,
        unknown, or of another shape or dtype; names them.
    """
    path = path_of(path)
    metadata, tensors = _read(path)
    abstract = abstract_of(metadata)
    _compare(path, _described(tensors), _described(digest.named(abstract)))
    return jax.device_put(
        jax.tree_util.tree_map_with_path(lambda place, _: tensors[digest.name_of(place)], abstract)
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The metadata and the tensors of a file, checked against its digest."""
    with _opened(path) as file:
        text = (file.metadata() or {}).get(KEY)
        if text is None:
            raise InputError(
                f"{path} holds tensors, but no metadata {KEY!r}, so qinco_jax did not save it as a "
                "model; to read vectors from it, pass it as a file of vectors"
            )
        metadata = json.loads(text)
        expected = metadata.pop("sha256")
        tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
        if digest.sha256(metadata, tensors) != expected:
            raise ValueError("its content does not match its sha256")
        return dict(metadata), tensors


def _compare(path: Path, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{name} is unknown" for name in found if name not in wanted]
    faults += [
        f"{name} is {found[name]} instead of {wanted[name]}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    if faults:
        more = f" and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        raise InputError(
            f"{path} does not hold the tensors of its config: "
            f"{', '.join(faults[:SHOWN_FAULTS])}{more}; write it again from the model"
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open file with a valid header, whose tensors fill the rest of it."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path} is not a saved model: there is no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except InputError:
        raise
    except (
        SafetensorError, OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError
    ) as error:  # fmt: skip
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"{path} is damaged ({reason}); take the model from a backup or train it again"
        ) from error


def _described(arrays: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{array.dtype} {array.shape}" for name, array in arrays.items()}
