"""What a folder holds: the files of vectors in it, and whether they are the shards of one array."""

import glob
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from qinco_jax.errors import InputError
from qinco_jax.kinds import kind_of
from qinco_jax.remote.paths import AnyPath
from qinco_jax.vectors import containers, foreign, formats

ENDINGS = (*formats.ENDINGS, *containers.ENDINGS)
SHOWN_NAMES = 4
DEPTH, MOST_FOLDERS = 2, 100  # where vectors are looked for that lie deeper


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


def shards_of(folder: AnyPath, or_else: str = "") -> list[AnyPath]:
    """The shards of the one array that a folder holds, as of `family`.

    Args:
      folder: where they lie.
      or_else: what else may be done about several arrays, for the message.

    Raises:
      InputError: it holds several arrays or none; says what to give instead.
    """
    found = family(folder)
    if len(found) > 1 or (found and kind_of(folder) is None):  # ours may hold one array, too
        return found
    if what := kind_of(folder):
        raise InputError(f"{folder} is {what}, not vectors; give the file or folder that has them")
    if paths := vector_files(folder):
        raise InputError(
            f"{folder} holds {listed(paths)}, which are not named as the shards of one array, such "
            "as x-0.npy, x-1.npy; give one of them, or in quotes a pattern for several, such as "
            f'"{_pattern(folder, paths)}"{or_else}'
        )
    if deeper := _deeper(folder):
        more = f" and {len(deeper) - SHOWN_NAMES} more" if len(deeper) > SHOWN_NAMES else ""
        raise InputError(
            f"{folder} has no files of vectors in it, but deeper folders have; give one of them: "
            f"{', '.join(map(str, deeper[:SHOWN_NAMES]))}{more}"
        )
    raise InputError(
        f"{folder} is a directory without files of vectors in it ({', '.join(ENDINGS)}); give the "
        f"file or folder that holds them{_or_convert(folder)}"
    )


def _or_convert(folder: AnyPath) -> str:
    """How the first file is converted that another program may have written, if there is one."""
    inside: Iterable[AnyPath] = folder.iterdir()
    for path in sorted(inside, key=natural_key):
        if line := foreign.conversion(path):
            return f", or convert {path.name} in Python: {line}"
    return ""


def _pattern(folder: AnyPath, paths: Sequence[AnyPath]) -> str:
    """A pattern for most of some files: those that differ in numbers alone, or of one ending."""
    begins = Counter((re.split(r"\d", path.stem)[0], path.suffix) for path in paths)
    (begin, ending), count = begins.most_common(1)[0]
    if count == 1:
        begin, ending = "", Counter(path.suffix for path in paths).most_common(1)[0][0]
    return f"{glob.escape(str(folder))}/{glob.escape(begin)}*{ending}"


def _deeper(folder: AnyPath) -> list[AnyPath]:
    """Folders below one that hold files of vectors, as many as are soon found."""
    level, found = [folder], []
    for _ in range(DEPTH):
        level = [path for each in level for path in _folders(each)][:MOST_FOLDERS]
        found += [path for path in level if vector_files(path)]
    return found


def _folders(folder: AnyPath) -> list[AnyPath]:
    """The folders in a folder that may hold vectors."""
    inside: Iterable[AnyPath] = folder.iterdir()
    found = (path for path in inside if not path.name.startswith(".") and _is_readable(path))
    return sorted((path for path in found if kind_of(path) is None), key=natural_key)


def _is_readable(path: AnyPath) -> bool:
    """Whether it is a folder that may be listed; `lost+found` is root's alone."""
    try:
        return path.is_dir() and any(True for _ in path.iterdir())
    except PermissionError:
        return False
