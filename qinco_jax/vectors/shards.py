"""Vectors by the place where they lie: one file, something in it, or many files by a pattern."""

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
      source: a file with one of `ENDINGS`; or a pattern with `*`, `?` or `[...]` for the files of
        one set, which are joined in the order of the numbers in their names (`x-9` before `x-10`).
        `::NAME` behind it says which dataset, column or tensor of files that hold several.

    Returns:
      [N, D] integers or floats, read-only: a map of the file, or a `Stored` of all of them.

    Raises:
      InputError: no file there, one that is unfit or damaged, or one of another D or dtype than
        the first.
    """
    place, name = split_name(source)
    if Path(place).exists() or not is_pattern(place):
        return _read_file(Path(place), name)
    paths = sorted(map(Path, glob.glob(place)), key=in_order)
    if not paths:
        raise InputError(f"no file fits the pattern {place}; check its folder and spelling")
    return read_files(paths, name)


def read_files(paths: Sequence[Path], name: str | None = None) -> Rows:
    """The rows of several files, one after another; raises as `read_rows` does."""
    parts = [_read_file(path, name) for path in paths]
    first = parts[0]
    for path, part in zip(paths, parts, strict=True):
        if (part.shape[1], part.dtype) != (first.shape[1], first.dtype):
            raise InputError(
                f"{path} holds {part.dtype} of {part.shape[1]} dimensions, {paths[0]} "
                f"{first.dtype} of {first.shape[1]}; convert or remove one of them"
            )
    if len(parts) == 1:
        return first
    return Stored(parts, max(getattr(part, "block_rows", 1) for part in parts))


def split_name(source: str | os.PathLike[str]) -> tuple[str, str | None]:
    """The place and the name in `PLACE::NAME`, or no name."""
    place, mark, name = os.fspath(source).partition("::")
    return (place, name) if mark else (place, None)


def is_pattern(place: str) -> bool:
    """Whether a place stands for files that fit it."""
    return any(sign in place for sign in "*?[")


def in_order(path: Path) -> list[str | int]:
    """Sorts names with numbers by the numbers."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]


def _read_file(path: Path, name: str | None) -> Rows:
    if path.suffix in containers.ENDINGS:
        return containers.read(path, name)
    if name is not None:
        raise InputError(f"{path} holds one array, so {name!r} names nothing; leave ::{name} out")
    if path.suffix not in ENDINGS and path.is_file():
        raise InputError(f"{path} has an unfit ending; it must be one of {', '.join(ENDINGS)}")
    return formats.read(path)
