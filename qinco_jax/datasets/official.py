"""Published files on this machine: fetched where they are missing, cropped, checked."""

import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from qinco_jax.datasets import download, sets
from qinco_jax.datasets.crop import crop, row_bytes
from qinco_jax.datasets.download import Missing, Remote
from qinco_jax.datasets.sets import File, NamedSet
from qinco_jax.datasets.transfers import Cut, check_room
from qinco_jax.errors import InputError
from qinco_jax.vectors import formats


class Wanted(NamedTuple):
    """A file that a set needs.

    Attributes:
      part: train, database, queries or groundtruth; `all` for one file of all of them.
      file: as it is published.
      rows: taken of it, see `NamedSet.rows`; `None` takes all.
      remote: how it is fetched.
    """

    part: str
    file: File
    rows: int | None
    remote: Remote


FOLDER = "qinco_jax"  # in the folder of downloads of TFDS


def data_folder() -> Path:
    """Where sets are prepared, as TFDS has it: TFDS_DATA_DIR or ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def downloads() -> Path:
    """Where published files are put."""
    return data_folder() / "downloads" / FOLDER


def wanted(known: NamedSet, size: str, place: Path) -> list[Wanted]:
    """The files of a set at a size, one for each part: what is there, or else its first form."""
    return [forms[0] for forms in _forms(known, size, place)]


def _forms(known: NamedSet, size: str, place: Path) -> list[list[Wanted]]:
    """For each part the forms in which it can be had; where one is there, only that."""
    every = []
    for part, files in known.files.items():
        rows = known.rows(part, size)
        forms = [
            Wanted(part, file, rows, remote)
            for file in files
            for remote in _remotes(file, part, rows, known)
        ]
        # The whole of a database can be a thousand times what is wanted; it is never fetched then.
        fetched = forms[:1] if part == "database" else forms
        every.append([form for form in forms if is_there(form, place)] or fetched)
    return every


def is_there(entry: Wanted, place: Path) -> bool:
    """Whether a file is among the downloads, be it packed."""
    path = place / entry.remote.name
    packed = entry.file.address.endswith(".gz") and Path(f"{path}.gz").exists()
    return packed or path.exists()


def fetch(name: str, size: str, place: Path) -> list[tuple[Wanted, Path]]:
    """Fetches the published files of a set that are missing, with progress.

    Before the first byte it is said what will be fetched, from where, how much and to which place.

    Args:
      name: of `sets.SETS`.
      size: of that set's.
      place: the folder of downloads.

    Returns:
      The files and where they lie.

    Raises:
      InputError: a download failed; the sentence says which file is to be placed where by hand.
    """
    known = sets.SETS[name]
    try:
        found = [_found(forms, place) for forms in _forms(known, size, place)]
    except InputError as error:
        raise InputError(f"{error}\n{_by_hand(known, size, place)}") from error
    missing = [one for _, missing in found for one in missing]
    check_room(place, sum(one.size or 0 for one in missing), f"{name}/{size}")
    if missing:
        tqdm.write(announcement(f"{name}/{size}", missing, place), sys.stderr)
    return [(entry, _fetched(entry, place)) for entry, _ in found]


def _found(forms: Sequence[Wanted], place: Path) -> tuple[Wanted, list[Missing]]:
    """The first form that is there or that a server gives."""
    errors = []
    for form in forms:
        try:
            return form, download.plan([form.remote], place)
        except InputError as error:
            errors.append(error)
    raise errors[0]


def _by_hand(known: NamedSet, size: str, place: Path) -> str:
    lines = [
        f"  {entry.file.source}\n    as {place / entry.file.path}"
        for entry in wanted(known, size, place)
        if not is_there(entry, place)
    ]
    return "\n".join(["without a network, place by hand what is missing:", *lines])


def announcement(title: str, missing: Sequence[Missing], place: Path) -> str:
    """What will be downloaded, from where, how many bytes and where to."""
    known = [one.size for one in missing if one.size is not None]
    unknown = len(missing) - len(known)
    more = f" and {unknown} of unknown size" if unknown else ""
    lines = [f"  {amount(one.size):>10}  {one.address} as {one.remote.name}" for one in missing]
    head = f"{title}: downloading {amount(sum(known))}{more} to {place}"
    return "\n".join([head, *lines])


def parts_of(known: NamedSet, files: list[tuple[Wanted, Path]]) -> dict[str, np.ndarray]:
    """Memory maps [N, D] by part; the validation rows are the last of the whole training file.

    Raises:
      InputError: a file is not what was published.
    """
    parts = {entry.part: _checked(formats.read(path), path, entry, known) for entry, path in files}
    train, truth = parts["train"], parts.get("groundtruth")
    if len(train) < 2:
        raise InputError(f"{known.files['train'][0].path} holds {len(train)} rows; 2 are needed")
    if truth is not None:
        _check_truth(truth, len(parts["queries"]), len(parts["database"]))
    asked = next(entry.rows for entry, _ in files if entry.part == "train")
    held = min(sets.VALIDATION_ROWS, -(-len(train) // 10))
    parts["train"] = train[: min(asked or len(train), len(train)) - held]
    parts["validation"] = train[-held:]
    return parts


def _check_truth(truth: np.ndarray, num_queries: int, num_rows: int) -> None:
    if truth.dtype.kind not in "iu" or len(truth) != num_queries:
        raise InputError(
            f"the ground truth is {truth.dtype} {truth.shape}, not integers, one row for each of "
            f"the {num_queries} queries; remove that file and its .sha256, and fetch it again"
        )
    if truth.min() < 0 or truth.max() >= num_rows:
        raise InputError(
            f"the ground truth names row {truth.max()} (lowest {truth.min()}) of a database of "
            f"{num_rows} rows; remove that file and its .sha256, and fetch it again"
        )


def _remotes(file: File, part: str, rows: int | None, known: NamedSet) -> list[Remote]:
    """How a file can be had: by the rows that are wanted, where these are not all; and whole."""
    path = PurePosixPath(file.path)
    whole = Remote(file.path, (file.source,))
    if not sets.mirror():
        size = _size(path.suffix, file.rows, known) if file.rows else file.size
        whole = whole._replace(size=size, sha256=file.sha256)
    if rows is None or (file.rows is not None and rows >= file.rows):
        return [whole]
    last = sets.VALIDATION_ROWS if part == "train" else 0
    taken = f"first{rows - last}last{last}" if last else f"first{rows}"
    cut = Remote(
        str(path.with_name(f"{path.stem}.{taken}{path.suffix}")),
        (file.source,),
        cut=Cut(
            rows - last, last, row_bytes(path.suffix, known.dim, known.dtype),
            None if sets.mirror() else file.rows,
        ),
        finish=functools.partial(crop, ending=path.suffix),
    )  # fmt: skip
    return [cut, whole]


def _size(ending: str, rows: int, known: NamedSet) -> int | None:
    """Bytes of a whole file; `None` for .npy, whose header has no fixed length."""
    if ending == ".npy":
        return None
    return (8 if ending.endswith("bin") else 0) + rows * row_bytes(ending, known.dim, known.dtype)


def _fetched(entry: Wanted, place: Path) -> Path:
    """Fetches a file where it is missing, with a progress bar."""
    there = (place / entry.remote.name).exists()
    with tqdm(desc=entry.remote.name, unit="B", unit_scale=True, disable=there) as bar:

        def advance(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return download.fetch(entry.remote, place, advance)


def _checked(rows: np.ndarray, path: Path, entry: Wanted, known: NamedSet) -> np.ndarray:
    """The rows that were asked for.

    Raises:
      InputError: the file is not what was published.
    """
    fits = rows.shape[1] == known.dim and rows.dtype == known.dtype
    if entry.part != "groundtruth" and not fits:
        raise InputError(
            f"{path} holds {rows.dtype} of {rows.shape[1]} dimensions; {known.dtype} of "
            f"{known.dim} were published, so remove it and its .sha256, and fetch it again"
        )
    expected = entry.rows or entry.file.rows
    if expected and len(rows) < expected and not sets.mirror():
        raise InputError(
            f"{path} holds {len(rows)} rows, but {expected} are needed; remove it and its .sha256, "
            "and fetch it again"
        )
    return rows if entry.part == "train" else rows[: entry.rows]


def verified(files: Sequence[tuple[Wanted, Path]], place: Path) -> list[dict[str, str | int]]:
    """What the files are: path, address, bytes and SHA-256, which is compared with what is known.

    Raises:
      InputError: a file is not what was published, or what was fetched.
    """
    return [
        {
            "path": entry.remote.name,
            "address": entry.file.address,
            "bytes": path.stat().st_size,
            "sha256": download.verify(entry.remote, place),
        }
        for entry, path in files
    ]


def amount(num_bytes: int | None) -> str:
    """Bytes for people."""
    return "unknown" if num_bytes is None else f"{tqdm.format_sizeof(num_bytes, 'B', 1000)}"
