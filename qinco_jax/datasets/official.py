"""The published files of the named sets: downloaded if missing, cropped and checked."""

import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from qinco_jax.datasets import catalog, download
from qinco_jax.datasets.catalog import File, NamedSet
from qinco_jax.datasets.crop import crop, row_bytes
from qinco_jax.datasets.download import Missing, Remote
from qinco_jax.datasets.transfers import Cut, check_space
from qinco_jax.errors import InputError
from qinco_jax.files import path_of
from qinco_jax.vectors import formats
from qinco_jax.vectors.stored import Rows
from qinco_jax.words import format_size


class Wanted(NamedTuple):
    """A file that a set needs.

    Attributes:
      part: train, database, queries or groundtruth; `all` for one file with all of them.
      file: as it is published.
      rows: to take, see `NamedSet.rows`; `None` takes all.
      remote: how it is downloaded.
    """

    part: str
    file: File
    rows: int | None
    remote: Remote


FOLDER = "qinco_jax"  # in the download directory of TFDS


def data_folder() -> Path:
    """The directory of prepared sets, as in TFDS: TFDS_DATA_DIR or ~/tensorflow_datasets."""
    return path_of(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def downloads() -> Path:
    """The directory of downloaded files."""
    return data_folder() / "downloads" / FOLDER


def wanted(known: NamedSet, size: str, folder: Path) -> list[Wanted]:
    """The file for each part of a set at a size: an existing one, or else the first choice."""
    return [forms[0] for forms in _forms(known, size, folder)]


def _forms(known: NamedSet, size: str, folder: Path) -> list[list[Wanted]]:
    """For each part the forms in which it is published; existing ones only, if there are any."""
    every = []
    for part, files in known.files.items():
        rows = known.rows(part, size)
        forms = [
            Wanted(part, file, rows, remote)
            for file in files
            for remote in _remotes(file, part, rows, known)
        ]
        # A whole database can be a thousand times larger than the wanted rows: never fetch it.
        fetched = forms[:1] if part == "database" else forms
        every.append([form for form in forms if is_present(form, folder)] or fetched)
    return every


def is_present(entry: Wanted, folder: Path) -> bool:
    """Whether a file is in the download directory, perhaps compressed."""
    path = folder / entry.remote.name
    packed = entry.file.address.endswith(".gz") and Path(f"{path}.gz").exists()
    return packed or path.exists()


def fetch(name: str, size: str, folder: Path) -> list[tuple[Wanted, Path]]:
    """Downloads the missing files of a set, with progress.

    First prints what will be downloaded: sources, sizes and the target directory.

    Args:
      name: in `catalog.SETS`.
      size: one of that set's.
      folder: the download directory.

    Returns:
      The files and their paths.

    Raises:
      InputError: a download failed; the message says which files to place by hand, and where.
    """
    known = catalog.SETS[name]
    try:
        found = [_found(forms, folder) for forms in _forms(known, size, folder)]
    except InputError as error:
        raise InputError(f"{error}\n{_by_hand(known, size, folder)}") from error
    missing = [one for _, missing in found for one in missing]
    check_space(folder, sum(one.size or 0 for one in missing), f"{name}/{size}")
    if missing:
        tqdm.write(announcement(f"{name}/{size}", missing, folder), sys.stderr)
    return [(entry, _fetched(entry, folder)) for entry, _ in found]


def _found(forms: Sequence[Wanted], folder: Path) -> tuple[Wanted, list[Missing]]:
    """The first form that exists or that a server provides."""
    errors = []
    for form in forms:
        try:
            return form, download.plan([form.remote], folder)
        except InputError as error:
            errors.append(error)
    raise errors[0]


def _by_hand(known: NamedSet, size: str, folder: Path) -> str:
    lines = [
        f"  {entry.file.source}\n    as {folder / entry.file.path}"
        for entry in wanted(known, size, folder)
        if not is_present(entry, folder)
    ]
    return "\n".join(["without a network, place these files by hand:", *lines])


def announcement(title: str, missing: Sequence[Missing], folder: Path) -> str:
    """A message that names the files to download, their sources, sizes and target directory."""
    known = [one.size for one in missing if one.size is not None]
    unknown = len(missing) - len(known)
    more = f" and {unknown} files of unknown size" if unknown else ""
    lines = [
        f"  {format_size(one.size):>10}  {one.address} as {one.remote.name}" for one in missing
    ]
    head = f"{title}: downloading {format_size(sum(known))}{more} to {folder}"
    return "\n".join([head, *lines])


def parts_of(known: NamedSet, files: list[tuple[Wanted, Path]]) -> dict[str, np.ndarray]:
    """Memory maps [N, D] by part; validation takes the last rows of the whole training file.

    Raises:
      InputError: a file differs from the published one.
    """
    parts = {entry.part: _checked(formats.read(path), path, entry, known) for entry, path in files}
    train, truth = parts["train"], parts.get("groundtruth")
    if len(train) < 2:
        raise InputError(f"{known.files['train'][0].path} holds {len(train)} rows; 2 are needed")
    if truth is not None:
        _check_truth(truth, len(parts["queries"]), len(parts["database"]))
    asked = next(entry.rows for entry, _ in files if entry.part == "train")
    held = min(catalog.VALIDATION_ROWS, -(-len(train) // 10))
    parts["train"] = train[: min(asked or len(train), len(train)) - held]
    parts["validation"] = train[-held:]
    return parts


def _check_truth(truth: np.ndarray, num_queries: int, num_rows: int) -> None:
    if truth.dtype.kind not in "iu" or len(truth) != num_queries:
        raise InputError(
            f"the ground truth is {truth.dtype} {truth.shape}, but needs integers and one row for "
            f"each of {num_queries} queries; remove that file and its .sha256, and fetch it again"
        )
    if truth.min() < 0 or truth.max() >= num_rows:
        raise InputError(
            f"the ground truth has ids {truth.min()} to {truth.max()} for a database of "
            f"{num_rows} rows; remove that file and its .sha256, and fetch it again"
        )


def _remotes(file: File, part: str, rows: int | None, known: NamedSet) -> list[Remote]:
    """The ways to download a file: only the wanted rows, if not all are, and the whole file."""
    path = PurePosixPath(file.path)
    whole = Remote(file.path, (file.source,))
    if not catalog.mirror():
        size = _size(path.suffix, file.rows, known) if file.rows else file.size
        whole = whole._replace(size=size, sha256=file.sha256)
    if rows is None or (file.rows is not None and rows >= file.rows):
        return [whole]
    last = catalog.VALIDATION_ROWS if part == "train" else 0
    taken = f"first{rows - last}last{last}" if last else f"first{rows}"
    cut = Remote(
        str(path.with_name(f"{path.stem}.{taken}{path.suffix}")),
        (file.source,),
        cut=Cut(
            rows - last, last, row_bytes(path.suffix, known.dim, known.dtype),
            None if catalog.mirror() else file.rows,
        ),
        finish=functools.partial(crop, ending=path.suffix),
    )  # fmt: skip
    return [cut, whole]


def _size(ending: str, rows: int, known: NamedSet) -> int | None:
    """Bytes of a whole file; `None` for .npy, whose header has no fixed length."""
    if ending == ".npy":
        return None
    return (8 if ending.endswith("bin") else 0) + rows * row_bytes(ending, known.dim, known.dtype)


def _fetched(entry: Wanted, folder: Path) -> Path:
    """Downloads a file if missing, with a progress bar."""
    exists = (folder / entry.remote.name).exists()
    with tqdm(desc=entry.remote.name, unit="B", unit_scale=True, disable=exists) as bar:

        def advance(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return download.fetch(entry.remote, folder, advance)


def _checked(rows: Rows, path: Path, entry: Wanted, known: NamedSet) -> np.ndarray:
    """The wanted rows.

    Raises:
      InputError: the file is not what was published.
    """
    if not isinstance(rows, np.ndarray):
        raise InputError(
            f"{path} is in Fortran order or of another byte order than the published file; remove "
            "it and its .sha256, and fetch it again"
        )
    fits = rows.shape[1] == known.dim and rows.dtype == known.dtype
    if entry.part != "groundtruth" and not fits:
        raise InputError(
            f"{path} holds {rows.dtype} of {rows.shape[1]} dimensions, but the published file has "
            f"{known.dtype} of {known.dim}; remove it and its .sha256, and fetch it again"
        )
    expected = entry.rows or entry.file.rows
    if expected and len(rows) < expected and not catalog.mirror():
        raise InputError(
            f"{path} holds {len(rows)} rows, but {expected} are needed; remove it and its .sha256, "
            "and fetch it again"
        )
    return rows if entry.part == "train" else rows[: entry.rows]


def verified(files: Sequence[tuple[Wanted, Path]], folder: Path) -> list[dict[str, str | int]]:
    """The path, address, size and verified SHA-256 of each file.

    Raises:
      InputError: a file differs from the published or the downloaded one.
    """
    return [
        {
            "path": entry.remote.name,
            "address": entry.file.address,
            "bytes": path.stat().st_size,
            "sha256": download.verify(entry.remote, folder),
        }
        for entry, path in files
    ]
