"""Vectors by path: one file, a dataset in a file, or the files that match a pattern."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from qinco_jax.errors import InputError
from qinco_jax.vectors import containers, formats
from qinco_jax.vectors.stored import Rows, Stored

ENDINGS = (*formats.ENDINGS, *containers.ENDINGS)


def read_rows(source: str | os.PathLike[str]) -> Rows:
    """Opens vectors, or a ground truth's ids, without reading them.

    Args:
      source: a file with one of `ENDINGS`; or a pattern with `*`, `?` or `[...]`, whose files are
        joined in the order of the numbers in their names (`x-9` before `x-10`). A `::NAME` at the
        end selects a dataset, column or tensor in files that hold several.

    Returns:
      [N, D] integers or floats, read-only: a memory map of one file, or a `Stored`.

    Raises:
      InputError: no file matches, or a file is invalid or damaged, or its D or dtype is not that
        of the first.
    """
    path, name = split_name(source)
    if Path(path).exists() or not is_pattern(path):
        return _read_file(Path(path), name)
    paths = sorted(map(Path, glob.glob(path)), key=natural_key)
    if not paths:
        raise InputError(f"no file matches the pattern {path}; check its directory and spelling")
    return read_files(paths, name)


def read_files(paths: Sequence[Path], name: str | None = None) -> Rows:
    """The rows of several files, one after another; raises as `read_rows` does."""
    segments = [_read_file(path, name) for path in paths]
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
    path, mark, name = os.fspath(source).partition("::")
    return path, name if mark else None


def is_pattern(path: str) -> bool:
    """Whether a path is a pattern with `*`, `?` or `[...]`."""
    return any(sign in path for sign in "*?[")


def natural_key(path: Path) -> list[str | int]:
    """A sort key that compares the numbers in names as numbers."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]


def _read_file(path: Path, name: str | None) -> Rows:
    if path.suffix in containers.ENDINGS:
        return containers.read(path, name)
    if name is not None:
        raise InputError(f"{path} holds a single array without a name; remove ::{name}")
    if path.suffix not in ENDINGS and path.is_file():
        raise InputError(f"{path} has an unknown ending; it must be one of {', '.join(ENDINGS)}")
    return formats.read(path)
