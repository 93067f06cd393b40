"""`encode_files`: codes of any number of vectors, by workers on Ray or one share a call."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from qinco_jax.cluster import connect
from qinco_jax.cluster.encoder import Encoder, Task, is_named, open_vectors
from qinco_jax.cluster.team import AGAIN, Team
from qinco_jax.errors import InputError
from qinco_jax.files import path_of
from qinco_jax.interrupts import Interrupted, noticed
from qinco_jax.models import code_shards, disk
from qinco_jax.models import codes as code_files
from qinco_jax.models.code_shards import Shards
from qinco_jax.models.folders import Folder
from qinco_jax.quantizers import coding, precision
from qinco_jax.quantizers.coding import Model
from qinco_jax.remote.paths import is_remote
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows

Advance = Callable[[int, int], Any]
"""Shows progress: (rows done, of how many)."""


def encode_files(
    model: Model | str | os.PathLike[str],
    vectors: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    workers: int | str = "auto",
    shard: tuple[int, int] | None = None,
    num_candidates: int | None = None,
    beam_size: int | None = None,
    joint: bool | None = None,
    compute_dtype: str | None = None,
    advance: Advance = lambda done, total: None,
) -> None:
    """Encodes files of vectors [N, D] into a folder of shards of codes, on many machines.

    The codes are those of one process, byte for byte where all machines have the same kind of
    processor: `codes-00007-of-00123.npy` holds packed rows [R, bytes], uint8 unless K is no power
    of two, and `manifest.json` lists rows, model, search and checksums. A shard is written whole or
    not at all. Whatever is lost, a worker, a machine or this process: the same call again makes
    what is missing.

    Args:
      model: of M steps and K codewords, or its path.
      vectors: as `vectors.shards.read_rows` takes them, or the name of a set, whose database is
        encoded. Every worker must see them at the same path.
      out: a new folder, or one that another call of these arguments has begun; every worker must
        see it at the same path. Both paths may be remote, such as `s3://bucket/codes`.
      workers: of Ray: a number on this machine; "auto" for the cluster that RAY_ADDRESS names or
        that runs here, or else this machine; or the address of one. A worker has an accelerator,
        or some cores of its own. A program that is connected to Ray stays so.
      shard: (i, n) encodes the i-th of n shares, 0 <= i < n, in this process and without Ray;
        after all of them, `collect` writes the manifest.
      num_candidates: A, as of `encode`.
      beam_size: B, as of `encode`.
      joint: as of `encode`.
      compute_dtype: as of `encode`; `None` is the workers' default, or that of the call before.
      advance: called with the rows done, those of earlier calls too, and all.

    Raises:
      InputError: wrong options, vectors or model; Ray is not installed or there is no cluster;
        `out` cannot be written, or holds something else.
      Unfinished: some shards failed three times, or the cluster was lost.
      Interrupted: Ctrl-C; finished shards are kept.
    """
    if shard is not None:
        _check_share(*shard)
    plan = _Plan.of(model, vectors, out, num_candidates, beam_size, joint, compute_dtype)
    if shard is not None:
        _encode_share(plan, *shard, advance)
    else:
        _encode_on_ray(plan, connect.parsed(workers), advance)


def checked(
    model: str | os.PathLike[str],
    vectors: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    shard: tuple[int, int] | None = None,
    num_candidates: int | None = None,
    beam_size: int | None = None,
    joint: bool | None = None,
    compute_dtype: str | None = None,
) -> tuple[Model, Rows]:
    """The model and the vectors; raises `InputError` where `encode_files` would at once."""
    if shard is not None:
        _check_share(*shard)
    plan = _Plan.of(model, vectors, out, num_candidates, beam_size, joint, compute_dtype)
    code_shards.to_make(plan.folder, plan.task(precision.resolve(plan.compute_dtype)).shards)
    return plan.model, plan.x


def collect(
    model: Model | str | os.PathLike[str],
    vectors: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    num_candidates: int | None = None,
    beam_size: int | None = None,
    joint: bool | None = None,
    compute_dtype: str | None = None,
    advance: Advance = lambda done, total: None,
) -> None:
    """Writes the manifest of shards that calls of `encode_files` have made, once all are there.

    Args:
      model: as of `encode_files`, like all others.
      vectors: that were encoded.
      out: the folder of shards, all of which are read to compare their checksums.
      num_candidates: A.
      beam_size: B.
      joint: how candidates were chosen.
      compute_dtype: of the encoding; `None` is the one that it was begun with.
      advance: called with the rows verified, and all.

    Raises:
      InputError: shards are missing or damaged, or of another model, search or vectors.
    """
    plan = _Plan.of(model, vectors, out, num_candidates, beam_size, joint, compute_dtype)
    if plan.compute_dtype is None:
        raise InputError(f"{plan.folder.path} holds no shards of codes; encode the vectors first")
    shards = plan.task(plan.compute_dtype).shards
    code_shards.finish(plan.folder, shards, verify=True, advance=advance)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is to be encoded, before it is known in which dtype.

    Attributes:
      model: to encode with.
      x: [N, D], as this process sees them.
      vectors: where they are, in words that do not depend on the working directory.
      folder: of the shards.
      search: A, B and joint.
      compute_dtype: that is asked for or begun with, if any.
    """

    model: Model
    x: Rows
    vectors: str
    folder: Folder
    search: dict[str, Any]
    compute_dtype: str | None

    @classmethod
    def of(
        cls,
        model: Model | str | os.PathLike[str],
        vectors: str | os.PathLike[str],
        out: str | os.PathLike[str],
        num_candidates: int | None,
        beam_size: int | None,
        joint: bool | None,
        compute_dtype: str | None,
    ) -> "_Plan":
        source, folder = os.fspath(vectors), Folder.at(out)
        if not is_remote(source) and not is_named(source):
            source = os.path.abspath(path_of(source))
        if folder.path.endswith(".npy"):
            raise InputError(
                f"{folder.path} would be a folder of shards, not a file; name it without .npy, or "
                "encode without workers and shards"
            )
        precision.check(compute_dtype)
        loaded = model if isinstance(model, Model) else disk.load(model)
        x = open_vectors(source)
        checks.vectors(x, loaded.dim, source)
        search = coding.search_of(loaded, num_candidates, beam_size, joint)
        if compute_dtype is None and (begun := code_shards.manifest(folder)) is not None:
            compute_dtype = begun["search"]["compute_dtype"]
        return cls(loaded, x, source, folder, dataclasses.asdict(search), compute_dtype)

    def task(self, compute_dtype: str) -> Task:
        """What every process does."""
        search = {**self.search, "compute_dtype": compute_dtype}
        shards = Shards(
            code_files.made_by(self.model, self.x, search), code_shards.rows_of_shard(len(self.x))
        )
        return Task(self.vectors, self.folder, shards, search)


def _encode_on_ray(plan: _Plan, workers: int | str, advance: Advance) -> None:
    task, missing = None, None
    if plan.compute_dtype is not None:  # refuse another encoding's folder before Ray is started
        task = plan.task(plan.compute_dtype)
        missing = code_shards.begin(plan.folder, task.shards)
    if missing != []:
        with noticed() as interrupted, connect.connected(workers) as ray:
            asked = workers if isinstance(workers, int) else None
            most = -(-len(plan.x) // code_shards.FEWEST_ROWS) if missing is None else len(missing)
            team = Team(ray, plan.model, asked, most, interrupted)
            try:
                compute_dtype = team.compute_dtype(plan.compute_dtype)
                if task is None or missing is None:
                    task = plan.task(compute_dtype)
                    missing = code_shards.begin(plan.folder, task.shards)
                team.encode(task, missing, _counted(task.shards, missing, advance))
            finally:
                team.stop()
    assert task is not None
    advance(len(plan.x), len(plan.x))
    code_shards.finish(plan.folder, task.shards)


def _counted(shards: Shards, missing: Sequence[int], advance: Advance) -> Callable[[int], Any]:
    """Shows rows of shards that were missing as rows of all."""
    before = shards.num_rows - sum(shards.num_rows_of(number) for number in missing)
    return lambda rows: advance(before + rows, shards.num_rows)


def _check_share(index: int, count: int) -> None:
    if not 0 <= index < count:
        raise InputError(
            f"there is no shard {index}/{count}: shares count from 0, so I/{max(1, count)} has I "
            f"from 0 to {max(1, count) - 1}"
        )


def _encode_share(plan: _Plan, index: int, count: int, advance: Advance) -> None:
    task = plan.task(precision.resolve(plan.compute_dtype))
    own = range(index, task.shards.count, count)
    missing = [number for number in code_shards.begin(plan.folder, task.shards) if number in own]
    total = sum(task.shards.num_rows_of(number) for number in own)
    done = total - sum(task.shards.num_rows_of(number) for number in missing)
    advance(done, total)
    if not missing:
        return
    encoder = Encoder(task, plan.model)
    with noticed() as interrupted:
        for number, following in zip(missing, [*missing[1:], None], strict=True):
            for rows in encoder.encode(number, following):
                advance(done + rows, total)
                if interrupted.is_set():
                    raise Interrupted(f"stopped; {AGAIN}")
            done += task.shards.num_rows_of(number)
