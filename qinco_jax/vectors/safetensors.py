"""Tensors of `.safetensors` files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.kinds import MODEL_ENTRY
from qinco_jax.remote.paths import AnyPath, size_of
from qinco_jax.vectors import formats, npy
from qinco_jax.vectors.located import rows_at
from qinco_jax.vectors.stored import Rows
from qinco_jax.vectors.tables import Table, explained

ENDINGS = (".safetensors",)
MAX_HEADER = 100_000_000  # bytes, as in the format's own readers
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": npy.BFLOAT16,
    **{f"I{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
}


def tables(path: AnyPath) -> dict[str, Table]:
    """The tensors in a file by name; raises as `containers.tables` does."""
    from safetensors import SafetensorError, safe_open

    with explained(path, SafetensorError, ValueError):
        if isinstance(path, Path):
            with safe_open(path, framework="numpy"):
                pass  # checks that the header is valid and the tensors fill the rest of the file
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, MAX_HEADER)))
        if MODEL_ENTRY in (header.pop("__metadata__", None) or {}):
            raise InputError(f"{path} is a saved model, not a file of vectors; give the vectors")
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if 8 + length + end != size_of(path):
            raise ValueError("its tensors do not fill it")
    return {name: _tensor(path, 8 + length, entry) for name, entry in header.items()}


def _tensor(path: AnyPath, begin: int, entry: Mapping[str, Any]) -> Table:
    shape, dtype = tuple(entry["shape"]), DTYPES.get(entry["dtype"])
    what = f"{entry['dtype']} {shape}"
    if dtype is None or len(shape) != 2:
        return Table(what, None)

    def rows() -> Rows:
        formats.check_shape(path, *shape)
        with explained(path, ValueError):
            return rows_at(path, begin + entry["data_offsets"][0], shape, dtype)

    return Table(what, rows)
