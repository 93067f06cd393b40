"""Rows that begin at a byte of a file: a memory map, or of a remote file read by ranges."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.remote.paths import AnyPath, RemotePath
from qinco_jax.vectors.npy import Header, native
from qinco_jax.vectors.stored import Rows, Stored

BLOCK_BYTES = 2**20  # a request for less takes about as long


class Fetched:
    """A segment of a remote file; threads may read it, and it can be pickled."""

    def __init__(
        self,
        path: RemotePath,
        record: np.dtype,
        offset: int,
        num_rows: int,
        check: Callable[[np.ndarray, int], None] | None = None,
    ) -> None:
        """Reads nothing yet.

        Args:
          path: of the file.
          record: of a row, which is its field `row`.
          offset: of the first record in the file.
          num_rows: of records.
          check: called with the records of a read and the number of the first.
        """
        self._ranges, self._record, self._offset = path.ranges(), record, offset
        self._check = check
        kind = record["row"]
        self.shape, self.dtype = (num_rows, *kind.shape), kind.base.newbyteorder("=")

    def __getitem__(self, rows: slice) -> np.ndarray:
        found = np.frombuffer(self._ranges.read(*self._place(rows.start, rows.stop)), self._record)
        if self._check is not None:
            self._check(found, rows.start)
        return np.ascontiguousarray(found["row"], self.dtype)

    def prefetch(self, begin: int, end: int) -> None:
        """Asks for rows that are to be read soon."""
        self._ranges.prefetch(*self._place(begin, end))

    def _place(self, begin: int, end: int) -> tuple[int, int]:
        size = self._record.itemsize
        return self._offset + begin * size, self._offset + end * size


def fetched(
    path: RemotePath,
    record: np.dtype,
    offset: int,
    num_rows: int,
    check: Callable[[np.ndarray, int], None] | None = None,
) -> Stored:
    """The rows of a remote file, which are read when they are used; as of `Fetched`."""
    segment = Fetched(path, record, offset, num_rows, check)
    return Stored([segment], max(1, BLOCK_BYTES // record.itemsize))


def rows_at(path: AnyPath, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> Rows:
    """Rows [N, D] of numbers one after another from byte `offset` on."""
    if isinstance(path, Path):
        return native(np.memmap(path, dtype, "r", offset, shape))
    return fetched(path, np.dtype([("row", dtype, shape[1:])]), offset, shape[0])


def array_at(path: AnyPath, header: Header, offset: int) -> Rows:
    """The rows [N, D] of an array that NumPy stored, whose numbers begin at byte `offset`.

    Raises:
      InputError: they are stored by columns in a remote file.
    """
    if isinstance(path, Path):
        size = header.size - header.offset
        return header.rows(np.memmap(path, np.uint8, "r", offset, (size,)))
    if header.fortran:
        raise InputError(
            f"{path} is in Fortran order, whose rows lie all over the file; copy it to this "
            "machine, or write it again in C order"
        )
    return rows_at(path, offset, header.shape, header.dtype)
