"""One process's part of a large encoding: shards that are read ahead and stored whole."""

import dataclasses
import os
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from qinco_jax import datasets
from qinco_jax.datasets import catalog
from qinco_jax.errors import InputError
from qinco_jax.models import code_shards
from qinco_jax.models import codes as code_files
from qinco_jax.models.code_shards import Shards
from qinco_jax.models.folders import Folder
from qinco_jax.quantizers import coding
from qinco_jax.quantizers.coding import Model
from qinco_jax.quantizers.qinco import Search
from qinco_jax.vectors import checks
from qinco_jax.vectors.shards import read_rows
from qinco_jax.vectors.stored import Rows, spans

BLOCK_BYTES = 2**26  # of vectors that are read at once; two blocks are in memory
BLOCK_ROWS = 2**12, 2**16  # at least and at most


@dataclasses.dataclass(frozen=True)
class Task:
    """Which vectors are encoded how, and where the codes go; every process has the same.

    Attributes:
      vectors: the path of the vectors or the name of a set, as `open_vectors` takes it.
      folder: of the shards.
      shards: which rows they are of.
      search: A, B, joint and compute_dtype.
    """

    vectors: str
    folder: Folder
    shards: Shards
    search: Mapping[str, Any]


def open_vectors(source: str) -> Rows:
    """The vectors [N, D] of a path, as `read_rows` takes it, or of a named set.

    Of a set they are the database, or else the training vectors.

    Raises:
      InputError: as `read_rows` or `datasets.load`.
    """
    if not is_named(source):
        return read_rows(source)
    data = datasets.load(source)
    return data.train if data.database is None else data.database


def is_named(source: str) -> bool:
    """Whether vectors are those of a named set, not of a path."""
    known = source == catalog.EMBEDDED or source.partition("/")[0] in catalog.SETS
    return known and not os.path.exists(source)


class Encoder:
    """Encodes shards of a task; reads the next block of vectors while it encodes one."""

    def __init__(self, task: Task, model: Model) -> None:
        """Opens the vectors.

        Raises:
          InputError: they are not those of the task, as seen from this machine, or the folder of
            shards is not there.
        """
        if code_shards.manifest(task.folder) is None:
            raise InputError(
                f"the shards that are begun in {task.folder.path} are not there on "
                f"{socket.gethostname()}; give a folder that all machines share, or a remote one"
            )
        self._task, self._model, self._x = task, model, open_vectors(task.vectors)
        wanted = task.shards.origin["vectors"]
        if [list(self._x.shape), str(self._x.dtype)] != [wanted["shape"], wanted["dtype"]]:
            raise InputError(
                f"{task.vectors} holds {self._x.dtype} of shape {self._x.shape} here, but "
                f"{wanted['dtype']} of {tuple(wanted['shape'])} where the command began; give a "
                "path that is the same on all machines"
            )
        search = {name: value for name, value in task.search.items() if name != "compute_dtype"}
        together = coding.rows_together(model, Search(**search), task.search["compute_dtype"])
        fit = BLOCK_BYTES // (self._x.shape[1] * self._x.dtype.itemsize)
        power = 2 ** (max(1, fit).bit_length() - 1)
        # A power of two that is no less than what is computed at once, so that blocks of one file
        # and blocks of its shards are cut into the same programs' rows.
        self._block_rows = max(min(max(power, BLOCK_ROWS[0]), BLOCK_ROWS[1]), together)
        self._reader = ThreadPoolExecutor(1, "reader")
        self._read: dict[int, Future[np.ndarray]] = {}

    def encode(self, number: int, following: int | None = None) -> Iterator[int]:
        """Encodes a shard and stores it.

        Args:
          number: of the shard.
          following: the shard that is likely to be next, whose first block is read ahead.

        Yields:
          After each block, the rows done.

        Raises:
          InputError: a row is invalid, or the shard cannot be written.
        """
        shards = self._task.shards
        blocks = self._blocks(number)
        ahead = [*blocks[1:], None if following is None else self._blocks(following)[0]]
        width, dtype = shards.origin["bytes"], shards.origin["dtype"]
        codes, begin = np.empty((shards.num_rows_of(number), width), dtype), blocks[0].start
        for block, then in zip(blocks, ahead, strict=True):
            rows = self._rows(block, then)
            found = code_files.encoded(self._model, rows, self._task.search)
            codes[block.start - begin : block.stop - begin] = found
            yield block.stop - begin
        code_shards.store(self._task.folder, shards, number, codes)

    def _blocks(self, number: int) -> list[slice]:
        rows = self._task.shards.rows(number)
        return [
            slice(rows.start + span.start, rows.start + span.stop)
            for span in spans(rows.stop - rows.start, self._block_rows)
        ]

    def _rows(self, block: slice, then: slice | None) -> np.ndarray:
        """The rows of a block; those of the one after are read from now on."""
        reading = self._read.pop(block.start, None)
        for other in self._read.values():  # another shard than was expected
            other.cancel()
        self._read.clear()
        if reading is None:
            reading = self._reader.submit(self._load, block)
        if then is not None:
            self._read[then.start] = self._reader.submit(self._load, then)
        return reading.result()

    def _load(self, block: slice) -> np.ndarray:
        return checks.finite(np.array(self._x[block]), block.start, self._task.vectors)
