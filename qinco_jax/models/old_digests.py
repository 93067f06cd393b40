"""Reads the digests that were written before 2026-11-27, so that old folders are still checked.

A model's folder had a hash for each file instead of one over the arrays. Nothing writes these now.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qinco_jax.errors import InputError


def check_files(file: Path, arrays: Path, content: Mapping[str, Any], remedy: str) -> None:
    """Checks an older model's folder.

    Args:
      file: of the metadata.
      arrays: the folder of arrays.
      content: the metadata, whose "files" are hashes by path below `arrays`.
      remedy: how the error messages end.

    Raises:
      InputError: the metadata or a file is damaged or missing; names it.
    """
    own = {name: value for name, value in content.items() if name != "sha256"}
    text = json.dumps(own, sort_keys=True).encode()
    if content.get("sha256") != hashlib.sha256(text).hexdigest():
        raise InputError(f"{file} is damaged; {remedy}")
    for name, expected in content["files"].items():
        path = arrays / name
        if not path.is_file():
            raise InputError(f"{path} is missing; {remedy}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise InputError(f"{path} is damaged; {remedy}")


def digest(tree: Any) -> str:
    """The digest, in hex, of an older rolling checkpoint."""
    result = hashlib.sha256()
    for place, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        result.update(f"{jax.tree_util.keystr(place)} {array.shape} {array.dtype}".encode())
        result.update(array.tobytes())
    return result.hexdigest()
