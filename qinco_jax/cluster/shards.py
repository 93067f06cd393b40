"""An index in shards, each filled by one of several workers; finished ones stay after a kill."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qinco_jax import datasets, optional
from qinco_jax.cluster import actors, connect
from qinco_jax.errors import InputError
from qinco_jax.models import codes as code_files
from qinco_jax.quantizers.coding import Model
from qinco_jax.search import disk, manifest
from qinco_jax.search.build import build as fit
from qinco_jax.search.manifest import Shard
from qinco_jax.search.work import FITTED, folder_of, known_codes, unpacked, working
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows, fingerprint
from qinco_jax.version import __version__

RESTARTS = 3  # of a worker that is lost, and as many of what it worked at


@dataclasses.dataclass(frozen=True)
class Task:
    """A shard to fill, as a worker gets it.

    Attributes:
      shard: its name and rows.
      target: the folder that it goes into, which all workers see, like those below.
      work: the folder of unfinished work.
      source: what `datasets.load` opens.
      vectors: the `fingerprint` of all rows.
      codes: file of the codes of all rows; `None` encodes them.
      version: of this package, which the worker must have too.
    """

    shard: Shard
    target: Path
    work: Path
    source: str
    vectors: dict[str, Any]
    codes: str | None
    version: str = __version__


def rows_of(data: datasets.Dataset) -> Rows:
    """The rows [N, D] of a data set that an index is of: its database, or else what trains."""
    return data.train if data.database is None else data.database


def build(
    target: Path,
    model: Model,
    source: str,
    count: int,
    *,
    workers: int | str = 1,
    codes: str | None = None,
    made: dict[str, Any],
    advance: Callable[[int, int], Any] = lambda done, total: None,
    **settings: Any,
) -> None:
    """Builds an index in shards: fits it once, then each worker fills one shard after another.

    The shards' lists, decoders and reading are the same, so that `search.sharded` answers as one
    index over all rows would, with row numbers as ids.

    Args:
      target: a new folder; every worker must see it, and the data, at the same path.
      model: whose codes are kept.
      source: what `datasets.load` opens.
      count: of shards.
      workers: a number on this machine, 1 for this process itself, or more by Ray; "auto" or an
        address for a Ray cluster, as `connect.connected` takes them.
      codes: file of the codes of all rows; `None` encodes them.
      made: what else descriptions say of how the index was built.
      advance: called with the vectors in finished shards and their number.
      **settings: of `search.build`.

    Raises:
      InputError: as `search.build`; `target` exists; more shards than rows; codes of another model
        or number; another command's unfinished work is there; or a worker failed, which leaves what
        is finished.
    """
    if target.exists() and not folder_of(target).exists():
        raise InputError(f"{target} exists; choose another place or remove it first")
    if workers != 1:
        optional.ray("workers")  # before minutes of fitting
    data = datasets.load(source)
    x = rows_of(data)
    checks.vectors(x, model.dim, "the database")
    if not 1 <= count <= len(x):
        raise InputError(f"got {count} shards for {len(x):,} vectors; give 1 to as many as these")
    known_codes(codes, model, x)
    task = {
        "command": f"build --shards {count}", "model": code_files.model_fingerprint(model),
        "trained_on": fingerprint(data.train), "vectors": fingerprint(x), "codes": codes,
        **settings,
    }  # fmt: skip
    shards = manifest.shards_of(len(x), count)
    with working(target, task) as work:
        if manifest.is_there(target):  # the kill came before the end of the clearing up
            return
        if not (work / FITTED).exists():
            empty = fit(model, data.train, **settings)
            empty.made |= made
            disk.save(empty, work / FITTED)
        target.mkdir(exist_ok=True)
        left = [shard for shard in shards if not (target / shard.name).exists()]
        places = target.absolute(), work.absolute(), source
        tasks = [Task(shard, *places, fingerprint(x), codes) for shard in left]
        done = len(x) - sum(shard.end - shard.begin for shard in left)
        advance(done, len(x))
        for num_rows in _filled(tasks, workers):
            advance(done := done + num_rows, len(x))
        manifest.write(target, shards, disk.load(work / FITTED))


def fill(task: Task) -> int:
    """Fills one shard, from the fitted index without vectors; goes on with codes that are there.

    Returns:
      The number of its vectors.

    Raises:
      InputError: the worker sees other data or has another version.
    """
    if task.version != __version__:
        raise InputError(
            f"a worker has qinco_jax {__version__} and the command {task.version}; install the "
            "same on all machines"
        )
    folder, rows = task.target / task.shard.name, slice(task.shard.begin, task.shard.end)
    if folder.exists():  # a worker was lost after its last step
        return rows.stop - rows.start
    if not (task.work / FITTED).exists():
        raise InputError(
            f"a worker does not see {task.work}; put the index into a folder that all machines "
            "share"
        )
    index, x = disk.load(task.work / FITTED), rows_of(datasets.load(task.source))
    if fingerprint(x) != task.vectors:
        raise InputError(
            f"a worker sees other vectors as {task.source} than the command; put them into a "
            "folder that all machines share"
        )
    x = x[rows]
    own = task.work / f"{task.shard.name}.npy"
    if task.codes is None:
        if not own.exists():
            code_files.write(own, index.model, x)
        codes = code_files.read(own, index.model)
    else:
        codes = code_files.read(task.codes, index.model)[rows]
    index.add(x, np.arange(rows.start, rows.stop), codes=unpacked(codes, index.model))
    disk.save(index, folder)
    for file in task.work.glob(f"{own.name}*"):
        file.unlink()
    return len(x)


def _filled(tasks: Iterable[Task], workers: int | str) -> Iterator[int]:
    """Fills shards in this process or on Ray, and yields the size of each that is done."""
    waiting = list(tasks)
    if not waiting:
        return
    if workers == 1:
        yield from map(fill, waiting)
        return
    with connect.connected(workers) as ray:
        pool = ray.util.ActorPool(actors.actors(ray, workers, RESTARTS))
        try:
            yield from pool.map_unordered(lambda actor, task: actor.run.remote(fill, task), waiting)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            raise InputError(
                f"a worker was lost {RESTARTS + 1} times ({str(error).splitlines()[0]}); see "
                "whether it has enough memory, and run the command again to go on"
            ) from error
