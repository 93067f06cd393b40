"""The manifest of an index in shards: which folders, which ids each holds, and of which model."""

import dataclasses
import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

from qinco_jax import kinds
from qinco_jax.errors import InputError
from qinco_jax.files import path_of, replacing
from qinco_jax.models import digest
from qinco_jax.models.codes import model_fingerprint
from qinco_jax.search import disk
from qinco_jax.search.index import Index
from qinco_jax.version import __version__

FILE = kinds.SHARDS
REMEDY = "run the `qinco index build --shards` that made it again, or take it from a backup"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard's folder beside the manifest, and the ids that it holds: `begin` to `end` - 1."""

    name: str
    begin: int
    end: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """An index in shards.

    Attributes:
      folder: where the manifest and the shards lie.
      shards: in the order of their ids, which they divide without a gap.
      model_sha256: fingerprint of the model that all share.
      fitted_sha256: digest of all that they share: model, lists, decoders, reading.
      dim: D.
      metric: of the distances.
    """

    folder: Path
    shards: tuple[Shard, ...]
    model_sha256: str
    fitted_sha256: str
    dim: int
    metric: str

    def __len__(self) -> int:
        """The number of vectors."""
        return self.shards[-1].end


def shards_of(num_rows: int, count: int) -> tuple[Shard, ...]:
    """How rows are divided among a number of shards, whose sizes differ by one at most."""
    ends = [num_rows * number // count for number in range(count + 1)]
    return tuple(
        Shard(f"shard-{number:05}-of-{count:05}", begin, end)
        for number, (begin, end) in enumerate(itertools.pairwise(ends))
    )


def fitted_sha256(index: Index) -> str:
    """The digest of what two indexes must have in common to answer as one."""
    found = hashlib.sha256()
    for part in index.fingerprint:
        found.update(part if isinstance(part, bytes) else str(part).encode())
    return found.hexdigest()


def write(folder: Path, shards: tuple[Shard, ...], fitted: Index) -> None:
    """Writes the manifest of finished shards.

    Args:
      folder: where the shards lie.
      shards: of `shards_of`.
      fitted: an index with all that the shards share.
    """
    content: dict[str, Any] = {
        "version": __version__,
        "vectors": shards[-1].end,
        "dim": fitted.model.dim,
        "metric": fitted.metric,
        "model_sha256": model_fingerprint(fitted.model),
        "fitted_sha256": fitted_sha256(fitted),
        "shards": [dataclasses.asdict(shard) for shard in shards],
    }
    content["sha256"] = digest.sha256(content, {})
    with replacing(folder / FILE) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is an index in shards."""
    return (path_of(path) / FILE).is_file()


def read(path: str | os.PathLike[str]) -> Manifest:
    """The manifest in a folder.

    Raises:
      InputError: there is none, or it is damaged.
    """
    folder = path_of(path)
    file = folder / FILE
    if not file.is_file():
        raise InputError(
            f"{folder} is not an index in shards: {kinds.instead(folder, FILE)}; give one that "
            "`qinco index build --shards` has written"
        )
    try:
        content = json.loads(file.read_bytes())
        if content.pop("sha256") != digest.sha256(content, {}):
            raise ValueError("its text does not match its sha256")
        shards = tuple(Shard(**shard) for shard in content["shards"])
        names = "model_sha256", "fitted_sha256", "dim", "metric"
        return Manifest(folder, shards, *(content[name] for name in names))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is damaged ({error}); {REMEDY}") from error


def check(manifest: Manifest, shard: Shard) -> None:
    """Refuses a shard that is not there or not the manifest's, without reading its lists.

    Raises:
      InputError: it is missing, of another model, or has other vectors.
    """
    folder = manifest.folder / shard.name
    if not folder.is_dir():
        raise InputError(f"the shard {folder} is missing; {REMEDY}")
    content = disk.description(folder)
    if content["model_sha256"] != manifest.model_sha256:
        raise InputError(f"{manifest.folder / FILE} is of another model than {folder}; {REMEDY}")
    own, expected = content["vectors"], shard.end - shard.begin
    if own != expected:
        raise InputError(
            f"{folder} holds {own:,} vectors instead of {expected:,}, so it was changed after it "
            f"was built; {REMEDY}"
        )


def load(
    manifest: Manifest, shard: Shard, *, mmap: bool = False, compute_dtype: str | None = None
) -> Index:
    """A shard of a manifest; arguments as of `disk.load`.

    Raises:
      InputError: as `check`; or its lists or decoders are others than those of the manifest.
    """
    check(manifest, shard)
    folder = manifest.folder / shard.name
    found = disk.load(folder, mmap=mmap, compute_dtype=compute_dtype)
    if fitted_sha256(found) != manifest.fitted_sha256:
        raise InputError(
            f"{folder} has other lists or decoders than {manifest.folder / FILE} says; {REMEDY}"
        )
    return found
