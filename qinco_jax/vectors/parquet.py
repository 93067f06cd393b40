"""Columns of lists of numbers in Parquet files, decoded block by block."""

import contextlib
import functools
import threading
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from typing import Any, ClassVar

import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.remote.paths import AnyPath, source
from qinco_jax.vectors import formats
from qinco_jax.vectors.stored import Stored
from qinco_jax.vectors.tables import BLOCK_BYTES, Table, check_size, explained

ENDINGS = (".parquet",)
KEPT_BLOCKS, KEPT_COLUMNS = 2, 2  # threads read on both sides of a boundary


def tables(path: AnyPath) -> dict[str, Table]:
    """The columns in a file by name; raises as `containers.tables` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with explained(path, pa.ArrowException, ValueError), pq.ParquetFile(source(path)) as file:
        schema, metadata = file.schema_arrow, file.metadata
    found = {}
    for field in schema:
        lists = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
        lists = lists or pa.types.is_fixed_size_list(field.type)
        plain = lists and (
            pa.types.is_floating(field.type.value_type)
            or pa.types.is_integer(field.type.value_type)
        )
        real = plain and schema.names.count(field.name) == 1
        opening = functools.partial(_column, path, field, metadata) if real else None
        found[field.name] = Table(f"{metadata.num_rows} rows of {field.type}", opening)
    if all(table.open is None for table in found.values()):
        _refuse_single_numbers(path, schema)
    return found


def _refuse_single_numbers(path: AnyPath, schema: Any) -> None:
    """Says what to do with a file of one column per dimension."""
    import pyarrow as pa

    numbers = [kind for kind in schema.types if pa.types.is_floating(kind)]
    numbers = numbers or [kind for kind in schema.types if pa.types.is_integer(kind)]
    if len(numbers) < 2:
        return
    kind = max(numbers, key=numbers.count)
    raise InputError(
        f"{path} has no column of lists, but {numbers.count(kind)} columns of one {kind} each; "
        "combine them, with pyarrow as pa, pyarrow.parquet as pq and numpy as np: "
        f"t = pq.read_table({str(path)!r}); "
        f"x = np.stack([c for c in t.columns if c.type == {str(kind)!r}], axis=1); "
        "pq.write_table(pa.table({'x': list(x)}), 'vectors.parquet')"
    )


def _column(path: AnyPath, field: Any, metadata: Any) -> Stored:
    import pyarrow as pa

    dtype = np.dtype(field.type.value_type.to_pandas_dtype())
    groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    formats.check_shape(path, -1 if min(groups, default=0) < 0 else sum(groups), 1)
    if pa.types.is_fixed_size_list(field.type):
        dim = field.type.list_size
    else:
        first = next(group for group, rows in enumerate(groups) if rows)
        dim = _first_length(path, field.name, metadata, first)
    check_size(path, (sum(groups), dim), dtype)
    segment = _RowGroups(path, field.name, metadata, groups, dim, dtype)
    return Stored([segment], segment.block_rows)


def _batches(
    path: AnyPath, column: str, metadata: Any, group: int, rows: int
) -> Generator[Any, None, None]:
    """Yields the lists of a column in a row group, at most `rows` at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with (
        explained(path, pa.ArrowException, ValueError, LookupError),
        pq.ParquetFile(
            source(path), metadata=metadata, pre_buffer=False, buffer_size=2**20
        ) as file,
    ):
        found = file.iter_batches(rows, row_groups=[group], columns=[column], use_threads=False)
        for batch in found:
            yield batch.column(column)


def _first_length(path: AnyPath, column: str, metadata: Any, group: int) -> int:
    with contextlib.closing(_batches(path, column, metadata, group, 1)) as batches:
        for lists in batches:
            if lists.null_count == 0:
                return len(lists.flatten())
    raise InputError(f"row 0 of {path} has no vector; remove or fix such rows")


class _RowGroups:
    """The rows of a Parquet column, decoded block by block.

    A row group of more than `BLOCK_BYTES` is decoded in blocks from its start, which makes reading
    in order cheap. The most recently read columns keep their most recent blocks. The file is open
    only between the first and the last block of a row group.
    """

    _recent: ClassVar[deque["weakref.ref[_RowGroups]"]] = deque(maxlen=KEPT_COLUMNS)
    _recent_lock = threading.Lock()

    def __init__(
        self,
        path: AnyPath,
        column: str,
        metadata: Any,
        groups: list[int],
        dim: int,
        dtype: np.dtype,
    ) -> None:
        self.shape, self.dtype = (sum(groups), dim), dtype
        most = max(1, BLOCK_BYTES // (dim * dtype.itemsize))
        self.block_rows = min(max(groups), most)
        self._path, self._ends = path, np.cumsum(groups)
        self._open = functools.partial(_batches, path.absolute(), column, metadata)
        self._lock = threading.Lock()
        self._kept: deque[tuple[int, np.ndarray]] = deque(maxlen=KEPT_BLOCKS)
        self._stream: Iterator[tuple[int, np.ndarray]] = iter(())
        self._span = 0, 0  # the rows that are left in the stream

    def __getitem__(self, rows: slice) -> np.ndarray:
        out = np.empty((rows.stop - rows.start, self.shape[1]), self.dtype)
        with self._lock:
            self._mark_recent()
            at = rows.start
            while at < rows.stop:
                first, block = self._block(at)
                piece = block[at - first : rows.stop - first]
                out[at - rows.start :][: len(piece)] = piece
                at += len(piece)
        return out

    def _mark_recent(self) -> None:
        """Drops the blocks of the least recently added column if there are too many."""
        with self._recent_lock:
            known = [column() for column in self._recent]
            if self in known:
                return
            if len(known) == KEPT_COLUMNS and known[0] is not None:
                known[0]._kept = deque(maxlen=KEPT_BLOCKS)
            self._recent.append(weakref.ref(self))

    def _block(self, row: int) -> tuple[int, np.ndarray]:
        """The first row of the block that holds a row, and the block."""
        for first, block in self._kept:
            if first <= row < first + len(block):
                return first, block
        if not self._span[0] <= row < self._span[1]:
            group = int(np.searchsorted(self._ends, row, side="right"))
            begin = int(self._ends[group - 1]) if group else 0
            lists = self._open(group, self.block_rows)
            self._stream = _blocks(self._path, lists, self.shape[1], begin)
            self._span = begin, int(self._ends[group])
        end, self._span = self._span[1], (0, 0)  # an error below ends the stream
        for first, block in self._stream:
            if row < first + len(block):
                self._kept.append((first, block))
                self._span = first + len(block), end
                if self._span[0] >= end:
                    self._stream = iter(())  # closes the file
                return first, block
        raise InputError(f"{self._path} ends before row {row}; it is damaged, so fetch it again")


def _blocks(
    path: AnyPath, batches: Iterator[Any], dim: int, first: int
) -> Iterator[tuple[int, np.ndarray]]:
    for lists in batches:
        yield first, _as_rows(path, lists, dim, first)
        first += len(lists)


def _as_rows(path: AnyPath, lists: Any, dim: int, first: int) -> np.ndarray:
    """Lists of numbers as [R, D], without a copy; `first` is the index of the first row."""
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    present = lists.is_valid().to_numpy(zero_copy_only=False)
    if not (present & (lengths == dim)).all():
        bad = int(np.argmin(present & (lengths == dim)))
        found = f"{lengths[bad]} numbers" if present[bad] else "no vector"
        raise InputError(
            f"row {first + bad} of {path} has {found}, but other rows have {dim} numbers; remove "
            "or fix such rows"
        )
    numbers = lists.flatten()
    if numbers.null_count:
        bad = int(np.argmin(numbers.is_valid().to_numpy(zero_copy_only=False))) // dim
        raise InputError(f"row {first + bad} of {path} lacks a number; remove or fix such rows")
    return numbers.to_numpy().reshape(-1, dim)
