"""Folders of runs and evaluations: each belongs to what was asked for there first."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.files import replacing
from qinco_jax.vectors.stored import Rows


def fingerprint(x: Rows) -> dict[str, Any]:
    """What tells vectors [N, D] from others: shape, dtype and a hash of about 1,000 rows."""
    sample = np.ascontiguousarray(np.asarray(x[:: max(1, len(x) // 1000)]))
    return {
        "shape": list(x.shape),
        "dtype": str(x.dtype),
        "sha256_of_sample": hashlib.sha256(sample.tobytes()).hexdigest(),
    }


def claim(file: Path, identity: Mapping[str, Any], contents: tuple[str, ...]) -> None:
    """Makes the folder of `file` the one of this run, or finds that it already is.

    Args:
      file: where the identity stands.
      identity: what makes this run this run and no other; json.
      contents: names that only a run leaves there.

    Raises:
      InputError: the folder belongs to another run; the differences are named.
    """
    folder = file.parent
    if not file.exists():
        for name in contents:
            if (folder / name).exists():
                raise InputError(
                    f"{folder / name} exists but belongs to no run; choose another folder"
                )
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            partial.write_text(json.dumps(identity, indent=2) + "\n")
        return
    try:
        there = _flat(json.loads(file.read_text().replace('"normalize"', '"unit_norm"')))
    except (ValueError, AttributeError) as error:
        raise InputError(f"{file} is damaged ({error}); remove {folder} to start anew") from error
    here = _flat(identity)
    differences = [
        f"{name} is {there.get(name)} there and {here.get(name)} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    if differences:
        raise InputError(
            f"{folder} belongs to another run: {'; '.join(differences)}; choose another folder or "
            "remove that one"
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
