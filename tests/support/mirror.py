"""Small files of the official names and formats, for a local server to hand out."""

import gzip
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np

from qinco_jax.datasets import catalog
from qinco_jax.vectors import formats

ROWS = {"train": 1500, "database": 300, "queries": 20, "groundtruth": 20}


def vectors(name: str, part: str) -> np.ndarray:
    """What a part of a set holds in the mirror."""
    known = catalog.SETS[name]
    rng = np.random.default_rng([len(part), known.dim])
    x = rng.integers(0, 200, (ROWS[part], known.dim))
    return (x if known.dtype == "uint8" else x / 16).astype(known.dtype)


def nearest(name: str, count: int = 10) -> np.ndarray:
    """The true ground truth of a set in the mirror."""
    queries, database = (vectors(name, part).astype(np.float64) for part in ("queries", "database"))
    distances = np.square(queries[:, None] - database[None]).sum(-1)
    return np.argsort(distances, axis=1, kind="stable")[:, :count].astype(np.int32)


def build(folder: Path) -> None:
    """Writes every file of every named set below `folder`, as a mirror holds them."""
    for name, known in catalog.SETS.items():
        for part, files in known.files.items():
            for file in files:
                path = folder / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.exists():  # sets share files
                    continue
                if part == "all":
                    _write_hdf5(path, name)
                else:
                    rows = nearest(name) if part == "groundtruth" else vectors(name, part)
                    write(path, rows)
                    _pack(path, PurePosixPath(file.address).name)


def write(path: Path, rows: np.ndarray) -> None:
    with formats.create(path, rows.shape, rows.dtype) as out:
        out[:] = rows


def _pack(path: Path, published: str) -> None:
    if published.endswith(".gz"):
        path.with_name(published).write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


def _write_hdf5(path: Path, name: str) -> None:
    parts: dict[str, Any] = {
        "train": vectors(name, "database"),
        "test": vectors(name, "queries"),
        "neighbors": nearest(name, 100),
    }
    with h5py.File(path, "w") as file:
        for part, rows in parts.items():
            file[part] = rows
        file["distances"] = np.zeros(parts["neighbors"].shape, np.float32)
