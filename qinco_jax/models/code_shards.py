"""Codes in a folder of shards that any number of processes make: names, manifest, checksums.

A shard `codes-00007-of-00123.npy` holds the packed codes of consecutive rows, and `.json` beside it
its checksum until `manifest.json` lists them all. The manifest says from the start what makes the
codes, so that all processes agree, and at the end which files they are in. The shards of the same
rows are the same bytes whoever makes them, so a second process that makes one does no harm.
"""

import dataclasses
import hashlib
import io
import json
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.files import path_of
from qinco_jax.models.folders import Folder
from qinco_jax.remote.paths import is_remote
from qinco_jax.vectors.folders import listed
from qinco_jax.vectors.shards import read_rows
from qinco_jax.vectors.stored import Rows

MANIFEST = "manifest.json"
FEWEST_ROWS, MOST_ROWS, SHARDS = 2**16, 2**20, 1024
"""Rows of a shard, at least and at most, and about how many shards there should be."""
MEANINGS = {
    "model": "model", "vectors": "vectors", "search": "settings of the search",
    "version": "version of qinco_jax", "shard_rows": "size of the shards",
}  # fmt: skip
PARTIAL = re.compile(r"\.[0-9a-f]{8}(-codes-\d+-of-\d+\.(npy|json)|-manifest\.json|\.trial)")
"""Names that a killed process leaves."""
THREADS = 16  # of requests to object storage

Advance = Callable[[int, int], Any]
"""Shows progress: (rows done, of how many)."""


@dataclasses.dataclass(frozen=True)
class Shards:
    """Which rows are in which shard.

    Attributes:
      origin: what makes the codes, as `models.codes.made_by` says.
      shard_rows: rows of each shard but the last.
    """

    origin: Mapping[str, Any]
    shard_rows: int

    @property
    def num_rows(self) -> int:
        """N."""
        return int(self.origin["vectors"]["shape"][0])

    @property
    def count(self) -> int:
        """How many shards there are."""
        return -(-self.num_rows // self.shard_rows)

    def name(self, number: int) -> str:
        """The file of a shard."""
        return f"codes-{number:05d}-of-{self.count:05d}.npy"

    def rows(self, number: int) -> slice:
        """The vectors of a shard."""
        begin = number * self.shard_rows
        return slice(begin, min(begin + self.shard_rows, self.num_rows))

    def num_rows_of(self, number: int) -> int:
        """How many vectors a shard has."""
        return self.rows(number).stop - self.rows(number).start

    def size(self, number: int) -> int:
        """Bytes of the file of a shard."""
        shape, dtype = (self.num_rows_of(number), self.origin["bytes"]), self.origin["dtype"]
        return len(_header(shape, dtype)) + math.prod(shape) * np.dtype(dtype).itemsize

    @cached_property
    def content(self) -> dict[str, Any]:
        """The manifest before there are shards, as JSON gives it back."""
        return json.loads(json.dumps({**self.origin, "shard_rows": self.shard_rows}))


def rows_of_shard(num_rows: int) -> int:
    """Rows of a shard of N vectors: a multiple of 65,536, and another N seldom changes it."""
    wanted = -(-num_rows // (SHARDS * FEWEST_ROWS)) * FEWEST_ROWS
    return min(MOST_ROWS, max(FEWEST_ROWS, wanted))


def manifest(folder: Folder) -> dict[str, Any] | None:
    """The manifest of a folder of shards, `None` if it has none.

    Raises:
      InputError: it is damaged.
    """
    content = folder.read(MANIFEST)
    if content is None:
        return None
    try:
        found = json.loads(content)
        assert found["search"]["compute_dtype"] and found["model"]
        return dict(found)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise InputError(
            f"{folder.place_of(MANIFEST)} is damaged; remove the folder and encode again"
        ) from error


def begin(folder: Folder, shards: Shards) -> list[int]:
    """Begins a folder of shards, or goes on with one; returns the numbers of those to be made.

    Raises:
      InputError: the folder cannot be written, has too little space, holds other files, or shards
        of another model, other vectors or another search.
    """
    begun, missing = to_make(folder, shards)
    if missing:
        folder.prepare(sum(shards.size(number) for number in missing))
    if begun is None:
        _write_json(folder, MANIFEST, shards.content)
        check_same(folder, manifest(folder), shards)  # another process may have been quicker
    return missing


def to_make(folder: Folder, shards: Shards) -> tuple[dict[str, Any] | None, list[int]]:
    """The manifest of a folder if it has one, and the numbers of the shards that it lacks.

    Raises:
      InputError: it holds other files, or shards of another model, other vectors or another search.
    """
    begun = manifest(folder)
    there = folder.sizes()
    if begun is not None:
        check_same(folder, begun, shards)
        return begun, _missing(shards, there, begun)
    others = [name for name in there if not name.startswith(".")]
    if others:
        raise InputError(
            f"{folder.path} holds {_listed(sorted(others))}, and no shards of codes; "
            "choose a new folder"
        )
    return None, list(range(shards.count))


def check_same(folder: Folder, begun: Mapping[str, Any] | None, shards: Shards) -> None:
    """Refuses a folder whose manifest is not that of these shards."""
    if begun is None:
        raise InputError(
            f"{folder.path} holds no shards of codes; encode the vectors into it first"
        )
    other = [words for name, words in MEANINGS.items() if begun.get(name) != shards.content[name]]
    if other:
        raise InputError(
            f"{folder.path} holds codes of another {' and another '.join(other)}, as "
            f"its {MANIFEST} says; choose another folder, or give what it was begun with"
        )


def store(folder: Folder, shards: Shards, number: int, codes: np.ndarray) -> None:
    """Writes a shard [R, bytes] and its checksum."""
    codes = np.ascontiguousarray(codes, shards.origin["dtype"])
    content = _header(codes.shape, codes.dtype) + codes.tobytes()
    described = {
        "file": shards.name(number), "rows": len(codes),
        "sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    _write_json(folder, _beside(shards.name(number)), described)  # first: a shard always has it
    folder.write(shards.name(number), content)


def finish(
    folder: Folder,
    shards: Shards,
    verify: bool = False,
    advance: Advance = lambda done, total: None,
) -> None:
    """Lists the shards in the manifest; what was written beside them is removed.

    Args:
      folder: of the shards, which are all there.
      shards: which they are.
      verify: reads them all, and compares them with the checksums of when they were written.
      advance: called with the rows looked at, and N.

    Raises:
      InputError: shards are missing or damaged; names them.
    """
    begun, there = manifest(folder), folder.sizes()
    check_same(folder, begun, shards)
    assert begun is not None
    if lost := _missing(shards, there, begun):
        raise InputError(
            f"{folder.path} lacks {len(lost):,} of {shards.count:,} shards, "
            f"{_listed(shards.name(number) for number in lost)}; encode them first"
        )
    known = {entry["file"]: entry for entry in begun.get("shards", [])}
    entries, damaged = [], []
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(
            lambda name: _entry(folder, name, known.get(name), verify),
            map(shards.name, range(shards.count)),
        )
        for number, entry in enumerate(found):
            entries.append(entry)
            if entry is None:
                damaged.append(shards.name(number))
            advance(shards.rows(number).stop, shards.num_rows)
        if damaged:
            raise InputError(
                f"{_listed(damaged)} in {folder.path} are not what was written; remove them and "
                "encode them again"
            )
        _write_json(folder, MANIFEST, {**shards.content, "shards": entries})
        beside = {_beside(shards.name(number)) for number in range(shards.count)}
        leftover = [name for name in there if name in beside or PARTIAL.fullmatch(name)]
        deque(pool.map(folder.remove, leftover), maxlen=0)


def _entry(
    folder: Folder, name: str, known: dict[str, Any] | None, verify: bool
) -> dict[str, Any] | None:
    """What the manifest says of a shard; `None` if the shard is damaged."""
    try:
        entry = known or json.loads(folder.read(_beside(name)) or b"")
        right = entry["file"] == name and (not verify or entry["sha256"] == _sha256(folder, name))
    except (ValueError, KeyError, TypeError):
        return None
    return entry if right else None


def _sha256(folder: Folder, name: str) -> str:
    return hashlib.sha256(folder.read(name) or b"").hexdigest()


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether codes at a path are a folder of shards, not a file."""
    return not str(path).endswith(".npy") if is_remote(path) else path_of(path).is_dir()


def place_of_manifest(path: str | os.PathLike[str]) -> str:
    """The path of the manifest of a folder of shards."""
    return Folder.at(path).place_of(MANIFEST)


def read(path: str | os.PathLike[str]) -> tuple[Rows, bytes]:
    """Opens the packed codes [N, bytes] of a folder of shards, and its manifest.

    Raises:
      InputError: the folder is unfinished, or lacks shards, or some are damaged.
    """
    folder = Folder.at(path)
    found = manifest(folder)
    if found is None or "shards" not in found:
        raise InputError(
            f"{folder.path} holds no finished shards of codes; run the `qinco encode` command that "
            "makes them again, or with --collect if all are made"
        )
    there = folder.sizes()
    lost = [entry["file"] for entry in found["shards"] if entry["file"] not in there]
    if lost:
        raise InputError(
            f"{folder.path} lacks {_listed(lost)}; run the `qinco encode` command that makes "
            "them again"
        )
    return read_rows(folder.path), json.dumps(found).encode()


def _missing(shards: Shards, there: Mapping[str, int], begun: Mapping[str, Any]) -> list[int]:
    listed = {entry["file"] for entry in begun.get("shards", [])}

    def is_there(number: int) -> bool:
        name = shards.name(number)
        described = name in listed or _beside(name) in there
        return described and there.get(name) == shards.size(number)

    return [number for number in range(shards.count) if not is_there(number)]


def _header(shape: tuple[int, ...], dtype: Any) -> bytes:
    """The start of a `.npy`."""
    header = io.BytesIO()
    fields = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()


def _beside(name: str) -> str:
    return name.removesuffix(".npy") + ".json"


def _listed(names: Iterable[str]) -> str:
    return listed([Path(name) for name in names])


def _write_json(folder: Folder, name: str, content: Mapping[str, Any]) -> None:
    folder.write(name, (json.dumps(content, indent=2) + "\n").encode())
