"""Sets of vectors by name or by place: `deep1m`, a folder of files, or single files."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qinco_jax.datasets import sets
from qinco_jax.datasets.holdout import cut_training
from qinco_jax.errors import InputError
from qinco_jax.vectors import checks, containers, shards
from qinco_jax.vectors.shards import read_rows
from qinco_jax.vectors.stored import Rows

PARTS = {
    "train": ("train", "learn", "training_set"),
    "database": ("database", "base"),
    "queries": ("queries", "query"),
    "groundtruth": ("groundtruth", "ground_truth", "gnd"),
    "validation": ("validation", "val"),
}
"""The stems by which a part of a set is found in a folder."""
EMBEDDED = "sift-photos"
ANN_BENCHMARKS = {"train", "test", "neighbors"}
"""The datasets by which a file of ann-benchmarks is known."""


class Dataset(NamedTuple):
    """A set of vectors; large parts are read-only memory maps, or read when asked for.

    Attributes:
      name: for people and for folders of results.
      train: [N, D] training vectors.
      database: [S, D] vectors to encode and search, or `None`.
      queries: [Q, D], or `None`.
      groundtruth: [Q, k] integers, the database rows nearest to each query, nearest first, or
        `None`.
      validation: [V, D] vectors to choose the best model by, or `None`: then some training vectors
        are held back.
    """

    name: str
    train: Rows
    database: Rows | None = None
    queries: Rows | None = None
    groundtruth: np.ndarray | None = None
    validation: Rows | None = None


def load(source: str | os.PathLike[str], **files: str | os.PathLike[str]) -> Dataset:
    """Loads a set of vectors.

    In a folder, a part such as the training vectors is found as one of: a file `train.npy`; shards,
    whose number follows the stem (`train-0.npy`, `train.00000-of-00010.parquet`), in the order of
    the numbers; a folder `train/` of files of one ending, in the same order. The stems are those of
    `PARTS`, the endings those of `shards.ENDINGS`; where two of these are there, neither is taken.

    Args:
      source: `sift-photos`, which comes with the package; a name of `sets.SETS`, with or without a
        size (`deep1m`, `deep1m/500k`), which is downloaded and prepared where it is not yet; a
        folder with `train` and optionally `database`, `queries`, `groundtruth` and `validation`;
        training vectors as `shards.read_rows` takes them:
        a file, a pattern such as `"parts/*.npy"`, or `FILE::NAME`; or an HDF5 file of
        ann-benchmarks. That one's `train` is its database, of which every tenth row is cut off
        to train with (`cut_training`).
      **files: places, as `read_rows` takes them, of `database`, `queries` or `groundtruth` to
        take instead.

    Raises:
      InputError: no such name or place, an unfit file, or parts that do not fit together.
    """
    name = os.fspath(source)
    if name == EMBEDDED:
        title, parts = name, _embedded()
    elif name.partition("/")[0] in sets.SETS:
        title, parts = name.replace("/", "-"), _published(name)
    else:
        title, parts = _name_of(Path(name)), _own(name)
    parts |= {part: read_rows(path) for part, path in files.items()}
    if parts.get("groundtruth") is not None:
        parts["groundtruth"] = np.asarray(parts["groundtruth"])
    return _checked(Dataset(title, **parts))


def _published(text: str) -> dict[str, Any]:
    from qinco_jax.datasets import official  # what downloads need takes a while to import

    name, known, size = sets.named(text)
    if "all" in known.files:
        ((_, path),) = official.fetch(name, size, official.downloads())
        return _of_place(str(path))
    from qinco_jax.datasets import builders  # TFDS takes a while to import

    return builders.load(name, size)


def _own(name: str) -> dict[str, Any]:
    place, _ = shards.split_name(name)
    if Path(name).is_dir():
        return _of_folder(Path(name))
    there = Path(place).exists() or shards.is_pattern(place)
    if there or Path(place).suffix in shards.ENDINGS or os.sep in place:
        return _of_place(name)
    raise InputError(
        f"there is no set {name!r} and no such file or folder; there are the sets {EMBEDDED}, "
        f"{', '.join(sets.SETS)}; for your own vectors give the path of a folder or file"
    )


def _name_of(path: Path) -> str:
    """The path's last part and a hash of the whole, so that no two sets share a name."""
    whole = path.resolve()
    name = re.sub(r"[*?\[\]:]+", "_", whole.name)
    return f"{name}-{hashlib.sha256(str(whole).encode()).hexdigest()[:6]}"


def _embedded() -> dict[str, Any]:
    """SIFT descriptors of freely licensed photographs, listed in sift-photos-ATTRIBUTION.tsv."""
    file = resources.files("qinco_jax.datasets") / "sift-photos.npz"
    with resources.as_file(file) as path, np.load(path) as arrays:
        return {part: arrays[part] for part in arrays.files}


def _of_place(name: str) -> dict[str, Any]:
    """The parts of a file of ann-benchmarks, or training vectors alone."""
    path = Path(name)
    hdf5 = path.suffix in containers.HDF5 and path.is_file()
    if not hdf5 or not containers.tables(path).keys() >= ANN_BENCHMARKS:
        return {"train": read_rows(name)}
    neighbours = np.asarray(containers.read(path, "neighbors"))
    train, database, groundtruth = cut_training(containers.read(path, "train"), neighbours)
    return {
        "train": train,
        "database": database,
        "queries": containers.read(path, "test"),
        "groundtruth": groundtruth,
    }


def _of_folder(folder: Path) -> dict[str, Any]:
    found = {part: _find(folder, stems) for part, stems in PARTS.items()}
    if not found["train"]:
        raise InputError(
            f"{folder} holds no training vectors; expected train with one of the endings "
            f"{', '.join(shards.ENDINGS)}"
        )
    return {part: shards.read_files(paths) for part, paths in found.items() if paths}


def _find(folder: Path, stems: Sequence[str]) -> list[Path]:
    """The file or the shards of a part of a set, in order; none if there are none."""
    endings = "|".join(map(re.escape, shards.ENDINGS))
    name = re.compile(rf"({'|'.join(stems)})([-_.]?\d.*)?({endings})")
    found: dict[tuple[str | None, ...], list[Path]] = {}
    for path in sorted(folder.iterdir(), key=shards.natural_key):
        if match := name.fullmatch(path.name):
            stem, number, ending = match.groups()
            found.setdefault((stem, "shards" if number else "file", ending), []).append(path)
        elif path.name in stems and path.is_dir():
            for file in sorted(path.iterdir(), key=shards.natural_key):
                if file.suffix in shards.ENDINGS and not file.name.startswith("."):
                    found.setdefault((path.name, "folder", file.suffix), []).append(file)
    if len(found) > 1:
        one, other, *_ = (paths[0].relative_to(folder) for paths in found.values())
        raise InputError(f"{folder} holds both {one} and {other}; leave one of them there")
    paths = next(iter(found.values()), [])
    _check_complete(folder, paths)
    return paths


def _check_complete(folder: Path, paths: Sequence[Path]) -> None:
    """Refuses shards that say how many they are and are not as many."""
    counts = [re.search(r"\d+-of-(\d+)", path.name) for path in paths]
    for path, count in zip(paths, counts, strict=True):
        if count and int(count[1]) != len(paths):
            raise InputError(
                f"{folder} holds {len(paths)} files like {path.name}, not {int(count[1])}; fetch "
                "the others too"
            )


def _checked(dataset: Dataset) -> Dataset:
    dim = dataset.train.shape[1]
    parts: Mapping[str, Rows | None] = dataset._asdict()
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
