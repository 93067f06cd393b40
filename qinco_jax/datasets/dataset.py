"""Data sets by name or path: `deep1m`, a directory of files, or single files."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qinco_jax.datasets import catalog
from qinco_jax.datasets.holdout import cut_training
from qinco_jax.errors import InputError, unknown
from qinco_jax.files import text_of
from qinco_jax.remote.paths import AnyPath, RemotePath, place_of
from qinco_jax.vectors import checks, containers, folders, hdf5, shards
from qinco_jax.vectors.shards import read_rows
from qinco_jax.vectors.stored import Rows

PARTS = {
    "train": ("train", "learn", "training_set"),
    "database": ("database", "base"),
    "queries": ("queries", "query"),
    "groundtruth": ("groundtruth", "ground_truth", "gnd"),
    "validation": ("validation", "val"),
}
"""The stems of the files of each part in a directory."""
MAIN = "train", "database", "queries"
HUB = "data"
"""Where sets in the layout of Hugging Face have their files, beside a README.md."""
ANN_BENCHMARKS = {"train", "test", "neighbors"}
"""The names that identify a file of ann-benchmarks."""
DISTANCES = {"euclidean": "l2", "angular": "cosine"}
"""The metric of each `distance` of ann-benchmarks that vectors of numbers are searched by."""


class Dataset(NamedTuple):
    """A data set; large parts are read-only memory maps or a `Stored`, which is read on demand.

    Attributes:
      name: for messages and result directories.
      train: [N, D] training vectors.
      database: [S, D] vectors to encode and search, or `None`.
      queries: [Q, D], or `None`.
      groundtruth: [Q, k] integers, the database rows nearest to each query, nearest first, or
        `None`.
      validation: [V, D] vectors to select the best model, or `None` to hold out training vectors.
      metric: "l2" or "cosine", by which the set is searched and its ground truth was made; `None`
        if its files do not say.
    """

    name: str
    train: Rows
    database: Rows | None = None
    queries: Rows | None = None
    groundtruth: np.ndarray | None = None
    validation: Rows | None = None
    metric: str | None = None


def load(source: str | os.PathLike[str], **files: str | os.PathLike[str]) -> Dataset:
    """Loads a data set.

    In a directory, each part, such as the training vectors, is one of: a file `train.npy`; shards
    with a number after the stem (`train-0.npy`, `train.00000-of-00010.parquet`), in the order of
    the numbers; a directory `train/` of files with one ending, in the same order. `PARTS` has the
    stems, `folders.ENDINGS` the endings; it is an error if a part is found in two ways. Without
    files of vectors of its own, the directory may have all that in a directory `data`, as sets of
    Hugging Face do. If no file has a stem of `PARTS`, the shards of one array, such as `emb_0.npy`
    and `emb_1.npy`, are training vectors (`folders.family`).

    Args:
      source: `sift-photos`, which comes with the package; a name in `catalog.SETS`, with or without
        a size (`deep1m`, `deep1m/500k`), which is downloaded and prepared if necessary; a directory
        with `train` and optionally `database`, `queries`, `groundtruth` and `validation`, as above;
        training vectors as for `shards.read_rows`: a file, a pattern such as `"parts/*.npy"`, or
        `FILE::NAME`; a file that holds several of these parts by their stems, such as an `.npz`
        with `train` and `queries`; or a file with the names of ann-benchmarks, whose `train` is its
        database: every tenth row of it becomes a training vector instead (`cut_training`). Its
        `distance`, in HDF5, gives the metric. `~` is the home directory. Paths may be URLs, such as
        `s3://bucket/folder`.
      **files: paths of `database`, `queries` or `groundtruth` to use instead, as for `read_rows`.

    Raises:
      InputError: the name or path does not exist, a file is invalid, or the parts do not match.
    """
    name = os.path.expanduser(text_of(source))
    if name == catalog.EMBEDDED:
        title, parts = name, _embedded()
    elif name.partition("/")[0] in catalog.SETS:
        title, parts = name.replace("/", "-"), _published(name)
    else:
        title, parts = _name_of(name), _from_files(name)
    parts |= {part: read_rows(path) for part, path in files.items()}
    if parts.get("groundtruth") is not None:
        parts["groundtruth"] = np.asarray(parts["groundtruth"])
    return _checked(Dataset(title, **parts))


def _published(text: str) -> dict[str, Any]:
    from qinco_jax.datasets import official  # tqdm is slow to import

    name, known, size = catalog.named(text)
    if "all" in known.files:
        ((_, path),) = official.fetch(name, size, official.downloads())
        return _from_path(str(path))
    from qinco_jax.datasets import builders  # TFDS is slow to import

    return builders.load(name, size)


def _from_files(name: str) -> dict[str, Any]:
    path, inside = shards.split_name(name)
    place = place_of(path)
    if isinstance(place, RemotePath) and shards.is_pattern(path):
        return {"train": read_rows(name)}
    if place.is_dir():
        return _from_folder(place, inside)
    exists = place.exists() or shards.is_pattern(path)
    if exists or place.suffix in folders.ENDINGS or os.sep in path:
        return _from_path(name)
    known = [catalog.EMBEDDED, *catalog.SETS]
    raise InputError(unknown("data set, file or folder", name, known))


def _name_of(text: str) -> str:
    """The last component of a path and a hash of the whole, which makes the name unique."""
    place = place_of(text)
    whole = place.resolve() if isinstance(place, Path) else place
    name = re.sub(r"[*?\[\]:]+", "_", whole.name)
    return f"{name}-{hashlib.sha256(str(whole).encode()).hexdigest()[:6]}"


def _embedded() -> dict[str, Any]:
    """SIFT descriptors of the freely licensed photographs in sift-photos-ATTRIBUTION.tsv."""
    file = resources.files("qinco_jax.datasets") / "sift-photos.npz"
    with resources.as_file(file) as path, np.load(path) as arrays:
        return {part: arrays[part] for part in arrays.files}


def _from_path(name: str) -> dict[str, Any]:
    """The parts that a file holds, or training vectors alone."""
    path = place_of(name)
    if path.suffix not in containers.ENDINGS or not path.is_file():
        return {"train": read_rows(name)}
    tables = containers.tables(path)
    if tables.keys() >= ANN_BENCHMARKS:
        return _of_ann_benchmarks(path)
    usable = [key for key, table in tables.items() if table.open is not None]
    stems = {part: [stem for stem in PARTS[part] if stem in usable] for part in PARTS}
    if not stems["train"] or sum(map(bool, stems.values())) == 1:
        return {"train": read_rows(name)}
    for part, found in stems.items():
        if len(found) > 1:
            raise InputError(
                f"{path} holds {' and '.join(found)}, which are names of the same part, "
                f"{part}; rename one of them"
            )
    return {part: containers.read(path, *found) for part, found in stems.items() if found}


def _of_ann_benchmarks(path: AnyPath) -> dict[str, Any]:
    metric = _metric_of(path) if path.suffix in hdf5.ENDINGS else None
    neighbors = np.asarray(containers.read(path, "neighbors"))
    train, database, groundtruth = cut_training(containers.read(path, "train"), neighbors)
    return {
        "train": train,
        "database": database,
        "queries": containers.read(path, "test"),
        "groundtruth": groundtruth,
        "metric": metric,
    }


def _metric_of(path: AnyPath) -> str | None:
    """The metric that a file of ann-benchmarks names; `None` if it names none."""
    distance = hdf5.attribute(path, "distance")
    if distance is None:
        return None
    if distance.lower() not in DISTANCES:
        raise InputError(
            f"{path} is searched by the distance {distance!r}, and files of ann-benchmarks are "
            f"read only with {' or '.join(DISTANCES)}; give its vectors by name instead, "
            f"{path}::train"
        )
    return DISTANCES[distance.lower()]


def _from_folder(folder: AnyPath, name: str | None) -> dict[str, Any]:
    found = {part: _find(folder, stems) for part, stems in PARTS.items()}
    if not any(found.values()):
        if not folders.vector_files(folder) and (folder / HUB).is_dir():
            return _from_folder(folder / HUB, name)
        found["train"] = folders.shards_of(folder, f", or call them {', '.join(MAIN)}")
    if not found["train"]:
        raise InputError(
            f"{folder} holds no training vectors, but "
            f"{folders.listed(folders.vector_files(folder))}; call them train.npy, or train-0.npy, "
            "train-1.npy and so on, or with another ending of a file of vectors"
        )
    return {part: shards.read_files(paths, name) for part, paths in found.items() if paths}


def _find(folder: AnyPath, stems: Sequence[str]) -> list[AnyPath]:
    """The file or shards of a part of a data set, in order."""
    endings = "|".join(map(re.escape, folders.ENDINGS))
    name = re.compile(rf"({'|'.join(stems)})([-_.]?\d.*)?({endings})")
    found: dict[tuple[str | None, ...], list[AnyPath]] = {}
    inside: Iterable[AnyPath] = folder.iterdir()
    for path in sorted(inside, key=folders.natural_key):
        if match := name.fullmatch(path.name):
            stem, number, ending = match.groups()
            found.setdefault((stem, "shards" if number else "file", ending), []).append(path)
        elif path.name in stems and path.is_dir():
            for file in folders.vector_files(path):
                found.setdefault((path.name, "folder", file.suffix), []).append(file)
    if len(found) > 1:
        one, other, *_ = (str(paths[0]).removeprefix(f"{folder}/") for paths in found.values())
        raise InputError(f"{folder} holds both {one} and {other}; remove one of them")
    paths = next(iter(found.values()), [])
    folders.check_complete(folder, paths)
    return paths


def _checked(dataset: Dataset) -> Dataset:
    dim = dataset.train.shape[1]
    parts: Mapping[str, Rows | None] = dataset._asdict()
    for part in ("train", "database", "queries"):
        if (x := parts[part]) is not None:
            checks.vectors(x, what=f"the {part} part of {dataset.name}")
            if x.shape[1] != dim:
                raise InputError(
                    f"the {part} part of {dataset.name} has {x.shape[1]} dimensions a vector, but "
                    f"the training vectors have {dim}; use vectors of the same kind"
                )
    truth = dataset.groundtruth
    if truth is None:
        return dataset
    if dataset.queries is None or dataset.database is None:
        raise InputError(
            f"{dataset.name} has a ground truth but no database or no queries; give both of these, "
            "or leave out the ground truth"
        )
    if truth.dtype.kind not in "iu" or len(truth) != len(dataset.queries):
        raise InputError(
            f"the ground truth of {dataset.name} is {truth.dtype} {truth.shape}; expected integers "
            f"[{len(dataset.queries)}, k], one row a query"
        )
    if truth.min() < 0 or truth.max() >= len(dataset.database):
        raise InputError(
            f"the ground truth of {dataset.name} has ids {truth.min()} to {truth.max()}, but its "
            f"database has {len(dataset.database)} rows; use the ground truth of this database"
        )
    return dataset
