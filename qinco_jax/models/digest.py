"""The digest that tells a damaged model from an intact one, in every format."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def sha256(metadata: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    """The SHA-256, in hex, over metadata and named arrays.

    It is taken over

        json.dumps(metadata, sort_keys=True)
        for each array in the order of names: f"{name} {shape} {dtype}", then its bytes

    with shape and dtype as NumPy prints them.
    """
    result = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        result.update(f"{name} {array.shape} {array.dtype}".encode())
        result.update(array.tobytes())
    return result.hexdigest()


def named(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by their place, such as `steps.codebook` or `parts.0.mean`."""
    return {name_of(place): leaf for place, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def name_of(place: Any) -> str:
    """The name of the array at a place, given as JAX gives it."""
    return jax.tree_util.keystr(place, simple=True, separator=".")
