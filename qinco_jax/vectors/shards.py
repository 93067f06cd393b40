"""Vectors by path: one file, a dataset in a file, or the files of a pattern or a folder."""

import functools
import glob
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qinco_jax.errors import InputError
from qinco_jax.files import text_of
from qinco_jax.remote.paths import AnyPath, RemotePath, place_of
from qinco_jax.vectors import containers, formats
from qinco_jax.vectors.stored import Rows, Stored

ENDINGS = (*formats.ENDINGS, *containers.ENDINGS)
SHOWN_NAMES = 4
OPENED_AT_ONCE = 16  # remote files, each of which takes the time of a request or two


def read_rows(source: str | os.PathLike[str]) -> Rows:
    """Opens vectors, or a ground truth's ids, which are read when they are used.

    Args:
      source: a file with one of `ENDINGS`; or a pattern with `*`, `?` or `[...]`, whose files are
        joined in the order of the numbers in their names (`x-9` before `x-10`); or a folder whose
        files of vectors are the shards of one array, by the rule of `family`. A `::NAME` at the end
        selects a dataset, column, tensor or array in files that hold several. `~` is the home
        folder. All of these may be URLs, such as `s3://bucket/parts/*.npy`.

    Returns:
      [N, D] integers or floats, read-only: a memory map of one file, a `Stored`, or from a
      compressed `.npz` an array in memory. Rows of remote files are read by ranges; threads may
      share them.

    Raises:
      InputError: no file matches, or a file is invalid or damaged, or its D or dtype is not that
        of the first, or a folder holds something else than one array, or a server fails.
    """
    path, name = split_name(source)
    place = place_of(path)
    if (isinstance(place, Path) and place.exists()) or not is_pattern(path):
        return read_files(_only_family(place), name) if place.is_dir() else _read_file(place, name)
    found = map(Path, glob.glob(path)) if isinstance(place, Path) else place.glob()
    paths = sorted(found, key=natural_key)
    if not paths:
        raise InputError(f"no file matches the pattern {path}; check its directory and spelling")
    return read_files(paths, name)


def read_files(paths: Sequence[AnyPath], name: str | None = None) -> Rows:
    """The rows of several files, one after another; raises as `read_rows` does."""
    reading = functools.partial(_read_file, name=name)
    if isinstance(paths[0], RemotePath):
        with ThreadPoolExecutor(OPENED_AT_ONCE) as threads:
            segments = list(threads.map(reading, paths))
    else:
        segments = list(map(reading, paths))
    first = segments[0]
    for path, segment in zip(paths, segments, strict=True):
        if (segment.shape[1], segment.dtype) != (first.shape[1], first.dtype):
            raise InputError(
                f"{path} holds {segment.dtype} of {segment.shape[1]} dimensions, but {paths[0]} "
                f"holds {first.dtype} of {first.shape[1]}; convert or remove one of them"
            )
    if len(segments) == 1:
        return first
    return Stored(segments, max(getattr(segment, "block_rows", 1) for segment in segments))


def split_name(source: str | os.PathLike[str]) -> tuple[str, str | None]:
    """Splits `PATH::NAME` into path and name; the name is `None` where there is none."""
    path, mark, name = os.path.expanduser(text_of(source)).partition("::")
    return path, name if mark else None


def is_pattern(path: str) -> bool:
    """Whether a path is a pattern with `*`, `?` or `[...]`; in a web address, `?` is none."""
    signs = "*[" if re.match("https?://", path) else "*?["
    return any(sign in path for sign in signs)


def natural_key(path: AnyPath) -> list[str | int]:
    """A sort key that compares the numbers in names as numbers."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]


def vector_files(folder: AnyPath) -> list[AnyPath]:
    """The files of vectors in a folder, in the order of the numbers in their names."""
    inside: Iterable[AnyPath] = folder.iterdir()
    found = (path for path in inside if path.suffix in ENDINGS and path.is_file())
    return sorted((path for path in found if not path.name.startswith(".")), key=natural_key)


def family(folder: AnyPath) -> list[AnyPath]:
    """The shards of the one array that a folder holds, in order; none if it holds several or none.

    Their names have one ending and differ in numbers alone, such as `emb_0.npy` and `emb_1.npy`;
    only after a count, as in `emb-00000-of-00003`, any text may follow.

    Raises:
      InputError: the names say that there are more or fewer of them.
    """
    paths = vector_files(folder)
    names = [re.sub(r"(\d+-of-\d+).*", r"\1", path.stem) + path.suffix for path in paths]
    words = {tuple(re.split(r"\d+", name)) for name in names}
    numbers = {tuple(map(int, re.findall(r"\d+", name))) for name in names}
    if len(words) != 1 or len(numbers) != len(paths):
        return []
    check_complete(folder, paths)
    return paths


def check_complete(folder: AnyPath, paths: Sequence[AnyPath]) -> None:
    """Refuses shards whose names say that there are more or fewer of them."""
    counts = [re.search(r"\d+-of-(\d+)", path.name) for path in paths]
    for path, count in zip(paths, counts, strict=True):
        if count and int(count[1]) != len(paths):
            raise InputError(
                f"{folder} holds {len(paths)} files like {path.name}, not {int(count[1])}; "
                "complete them or remove the extra ones"
            )


def listed(paths: Sequence[AnyPath]) -> str:
    """The names of files for a message, which may be many."""
    more = f" and {len(paths) - SHOWN_NAMES} more" if len(paths) > SHOWN_NAMES else ""
    return ", ".join(path.name for path in paths[:SHOWN_NAMES]) + more


def _only_family(folder: AnyPath) -> list[AnyPath]:
    if found := family(folder):
        return found
    paths = vector_files(folder)
    if not paths:
        raise InputError(
            f"{folder} is a directory without files of vectors in it ({', '.join(ENDINGS)}); give "
            "the file or folder that holds them"
        )
    stem = re.split(r"\d", paths[0].stem)[0]
    raise InputError(
        f"{folder} holds {listed(paths)}, which are not named as the shards of one array, such as "
        "x-0.npy, x-1.npy; give one of them, or in quotes a pattern such as "
        f'"{folder}/{stem}*{paths[0].suffix}"'
    )


def _read_file(path: AnyPath, name: str | None) -> Rows:
    if path.suffix in containers.ENDINGS:
        return containers.read(path, name)
    if name is not None:
        raise InputError(f"{path} holds a single array without a name; remove ::{name}")
    if path.suffix not in ENDINGS and path.is_file():
        raise InputError(f"{path} has an unknown ending; it must be one of {', '.join(ENDINGS)}")
    return formats.read(path)
