"""Shards that answer as one index: each scans its own lists, and the best of all are ranked."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.models.codes import model_fingerprint
from qinco_jax.search import disk, manifest
from qinco_jax.search.index import Index
from qinco_jax.search.searcher import Asked, Searcher, Shortlist

Path = str | os.PathLike[str]


class Sharded(Searcher):
    """Indexes of one model, lists and decoders over different vectors; `sharded` makes one.

    A search scans every shard, merges what they name into one shortlist as long as that of one
    index, and ranks it once. So the answer is that of one index over all vectors, and the network
    decodes no more codes. Where copies of a vector tie at the end of the shortlist, those with the
    least ids stay.
    """

    def __init__(self, shards: Sequence[Index]) -> None:
        """Takes shards that `sharded` has checked."""
        first = shards[0]
        self.shards, self.points, self.next_id = list(shards), [], max(s.next_id for s in shards)
        self.model, self.reading, self.pairs = first.model, first.reading, first.pairs
        self.list_vectors = first.list_vectors

    def __len__(self) -> int:
        """The number of vectors in all shards."""
        return sum(len(shard) for shard in self.shards)

    def shortlist(self, queries: np.ndarray, asked: Asked) -> Shortlist:
        """The codes that score best of all shards, as `Searcher.shortlist`."""
        return merged([shard.shortlist(queries, asked) for shard in self.shards], asked.scanned)

    def ranked(
        self, queries: np.ndarray, shortlist: Shortlist, asked: Asked
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest of a shortlist, as `Searcher.ranked`."""
        return self.shards[0].ranked(queries, shortlist, asked)


def merged(parts: Sequence[Shortlist], count: int) -> Shortlist:
    """The `count` best of several shortlists; ties by id."""
    scores, ids, lists, packed = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    order = np.lexsort((ids, -scores, ids < 0), axis=1)[:, :count]
    rows = np.arange(len(ids))[:, None]
    return Shortlist(scores[rows, order], ids[rows, order], lists[rows, order], packed[rows, order])


def sharded(
    shards: Path | Sequence[Path | Index], *, mmap: bool = False, compute_dtype: str | None = None
) -> Sharded:
    """Opens shards, to search them like one index.

    Args:
      shards: the folder that `qinco index build --shards` wrote; or indexes of different vectors,
        open ones or their folders, filled from copies of one fitted index.
      mmap: whether the lists of folders stay in their files, as of `load`.
      compute_dtype: of the network that re-ranks, as of `load`.

    Raises:
      InputError: a shard is missing or damaged, they differ in dimension, model, lists or decoder,
        or share an id.
    """
    if isinstance(shards, str | os.PathLike):
        known = manifest.read(shards)
        for shard in known.shards:
            manifest.check(known, shard)  # all, before minutes of loading
        loaded = [
            manifest.load(known, shard, mmap=mmap, compute_dtype=compute_dtype)
            for shard in known.shards
        ]
        return Sharded(_sharing(loaded))
    if not len(shards):
        raise InputError("got no shards; give their folders or open indexes")
    found = [
        shard
        if isinstance(shard, Index)
        else disk.load(shard, mmap=mmap, compute_dtype=compute_dtype)
        for shard in shards
    ]
    for number, index in enumerate(found[1:], 1):
        _check_same(found[0], index, number)
    _check_apart(found)
    return Sharded(_sharing(found))


def opened(path: Path, *, mmap: bool = False, compute_dtype: str | None = None) -> Searcher:
    """The index in a folder, in shards or not; arguments and errors as of `load`."""
    if manifest.is_there(path):
        return sharded(path, mmap=mmap, compute_dtype=compute_dtype)
    return disk.load(path, mmap=mmap, compute_dtype=compute_dtype)


def _sharing(shards: Sequence[Index]) -> list[Index]:
    """The same indexes with one copy in memory of what they have in common."""
    first = shards[0]
    return [
        dataclasses.replace(
            shard, model=first.model, list_vectors=first.list_vectors, tables=first.tables,
            pairs=first.pairs,
        )
        for shard in shards
    ]  # fmt: skip


def _check_same(first: Index, other: Index, number: int) -> None:
    if other.model.dim != first.model.dim:
        what = f"has {other.model.dim} dimensions, and shard 0 has {first.model.dim}"
    elif model_fingerprint(other.model) != model_fingerprint(first.model):
        what = "is of another model than shard 0"
    elif other.fingerprint != first.fingerprint:
        what = "has other lists, decoders or another reading than shard 0"
    else:
        return
    raise InputError(
        f"shard {number} {what}; build one index and add the parts to copies of it, as `qinco "
        "index build --shards` does"
    )


def _check_apart(shards: Sequence[Index]) -> None:
    """Refuses shards that share an id."""
    ids = np.sort(np.concatenate([shard.ids() for shard in shards]))
    twice = ids[1:][ids[1:] == ids[:-1]]
    if len(twice):
        raise InputError(
            f"the id {twice[0]} is in two shards; remove it from one, or build shards of "
            "different rows"
        )
