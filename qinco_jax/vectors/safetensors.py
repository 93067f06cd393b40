"""Tensors of `.safetensors` files, memory-mapped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qinco_jax.vectors import formats, npy
from qinco_jax.vectors.tables import Table, explained

ENDINGS = (".safetensors",)
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": npy.BFLOAT16,
    **{f"I{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
}


def tables(path: Path) -> dict[str, Table]:
    """The tensors in a file by name; raises as `containers.tables` does."""
    from safetensors import SafetensorError, safe_open

    with explained(path, SafetensorError, ValueError):
        with safe_open(path, framework="numpy"):
            pass  # checks that the header is valid and the tensors fill the rest of the file
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: _tensor(path, 8 + length, entry) for name, entry in header.items()}


def _tensor(path: Path, begin: int, entry: Mapping[str, Any]) -> Table:
    shape, dtype = tuple(entry["shape"]), DTYPES.get(entry["dtype"])
    what = f"{entry['dtype']} {shape}"
    if dtype is None or len(shape) != 2:
        return Table(what, None)

    def rows() -> np.ndarray:
        formats.check_shape(path, *shape)
        with explained(path, ValueError):
            return np.memmap(path, dtype, "r", begin + entry["data_offsets"][0], shape)

    return Table(what, rows)
