"""Sets of vectors by name or by place: `sift-photos`, a folder of files, or single files."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qinco_jax import checks
from qinco_jax.data import formats
from qinco_jax.errors import InputError

PARTS = {
    "train": ("train", "learn", "training_set"),
    "database": ("database", "base"),
    "queries": ("queries", "query"),
    "groundtruth": ("groundtruth", "ground_truth", "gnd"),
}
"""The stems by which a part of a set is found in a folder."""


class Dataset(NamedTuple):
    """A set of vectors; large parts are read-only memory maps.

    Attributes:
      name: for people and for folders of results.
      train: [N, D] training vectors.
      database: [S, D] vectors to encode and search, or `None`.
      queries: [Q, D], or `None`.
      groundtruth: [Q, k] integers, the database rows nearest to each query, nearest first, or
        `None`.
    """

    name: str
    train: np.ndarray
    database: np.ndarray | None = None
    queries: np.ndarray | None = None
    groundtruth: np.ndarray | None = None


def load(source: str | os.PathLike[str], **files: str | os.PathLike[str]) -> Dataset:
    """Loads a set of vectors.

    Args:
      source: a name of the catalog (`sift-photos`); a folder with `train.*` and optionally
        `database.*`, `queries.*` and `groundtruth.*` in the formats of `formats.py`; or a file of
        training vectors.
      **files: files to take for `database`, `queries` or `groundtruth` instead.

    Raises:
      InputError: no such name or place, an unfit file, or parts that do not fit together.
    """
    name = os.fspath(source)
    if name in CATALOG:
        parts = CATALOG[name]()
    elif Path(name).is_dir():
        parts = _of_folder(Path(name))
    elif Path(name).exists() or Path(name).suffix in formats.ENDINGS or os.sep in name:
        parts = {"train": formats.read(name)}
    else:
        raise InputError(
            f"there is no set {name!r} and no such file or folder; there are the sets "
            f"{', '.join(CATALOG)}; for your own vectors give the path of a folder or file"
        )
    parts |= {part: formats.read(path) for part, path in files.items()}
    return _checked(Dataset(name if name in CATALOG else _name_of(Path(name)), **parts))


def _name_of(path: Path) -> str:
    """The path's last part and a hash of the whole, so that no two sets share a name."""
    whole = path.resolve()
    return f"{whole.name}-{hashlib.sha256(str(whole).encode()).hexdigest()[:6]}"


def _embedded() -> dict[str, np.ndarray]:
    """SIFT descriptors of freely licensed photographs, listed in sift-photos-ATTRIBUTION.tsv."""
    file = resources.files("qinco_jax.data") / "sift-photos.npz"
    with resources.as_file(file) as path, np.load(path) as arrays:
        return {part: arrays[part] for part in PARTS}


CATALOG = {"sift-photos": _embedded}


def _of_folder(folder: Path) -> dict[str, np.ndarray]:
    found = {part: _find(folder, stems) for part, stems in PARTS.items()}
    if found["train"] is None:
        raise InputError(
            f"{folder} holds no training vectors; expected train with one of the endings "
            f"{', '.join(formats.ENDINGS)}"
        )
    return {part: formats.read(path) for part, path in found.items() if path is not None}


def _find(folder: Path, stems: Iterable[str]) -> Path | None:
    """The one file of `folder` with a known ending and one of `stems`."""
    names = [folder / (stem + ending) for stem in stems for ending in formats.ENDINGS]
    there = [path for path in names if path.exists()]
    if len(there) > 1:
        raise InputError(
            f"{folder} holds both {there[0].name} and {there[1].name}; leave one of them there"
        )
    return there[0] if there else None


def _checked(dataset: Dataset) -> Dataset:
    dim = dataset.train.shape[1]
    parts: Mapping[str, np.ndarray | None] = dataset._asdict()
    for part in ("train", "database", "queries"):
        if (x := parts[part]) is not None:
            checks.vectors(x, what=f"the {part} part of {dataset.name}")
            if x.shape[1] != dim:
                raise InputError(
                    f"the {part} part of {dataset.name} has {x.shape[1]} dimensions a vector, the "
                    f"training vectors {dim}"
                )
    truth = dataset.groundtruth
    if truth is None:
        return dataset
    if dataset.queries is None or dataset.database is None:
        raise InputError(f"{dataset.name} has a ground truth but no database or no queries")
    if truth.dtype.kind not in "iu" or len(truth) != len(dataset.queries):
        raise InputError(
            f"the ground truth of {dataset.name} is {truth.dtype} {truth.shape}; expected integers "
            f"[{len(dataset.queries)}, k], one row a query"
        )
    if truth.min() < 0 or truth.max() >= len(dataset.database):
        raise InputError(
            f"the ground truth of {dataset.name} names row {truth.max()} (lowest {truth.min()}); "
            f"its database has {len(dataset.database)} rows"
        )
    return dataset
