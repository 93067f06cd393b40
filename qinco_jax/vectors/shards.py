"""Vectors by path: one file, a dataset in a file, or the files of a pattern or a folder."""

import functools
import glob
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qinco_jax.errors import InputError
from qinco_jax.files import text_of
from qinco_jax.remote.paths import AnyPath, RemotePath, place_of
from qinco_jax.vectors import containers, folders, formats
from qinco_jax.vectors.folders import ENDINGS, natural_key
from qinco_jax.vectors.stored import Rows, Stored

OPENED_AT_ONCE = 16  # remote files, each of which takes the time of a request or two


def read_rows(source: str | os.PathLike[str]) -> Rows:
    """Opens vectors, or a ground truth's ids, which are read when they are used.

    Args:
      source: a file with one of `ENDINGS`; or a pattern with `*`, `?` or `[...]`, whose files are
        joined in the order of the numbers in their names (`x-9` before `x-10`); or a folder whose
        files of vectors are the shards of one array, by the rule of `folders.family`. A `::NAME` at
        the end selects a dataset, column, tensor or array in files that hold several. `~` is the
        home folder. All of these may be URLs, such as `s3://bucket/parts/*.npy`.

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
        return (
            read_files(folders.shards_of(place), name)
            if place.is_dir()
            else _read_file(place, name)
        )
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


def _read_file(path: AnyPath, name: str | None) -> Rows:
    formats.check_file(path, ENDINGS)
    if path.suffix in containers.ENDINGS:
        return containers.read(path, name)
    if name is not None:
        raise InputError(f"{path} holds a single array without a name; remove ::{name}")
    return formats.read(path)
