"""Vectors in files that can hold several tables: HDF5, Parquet and safetensors.

Contiguous plain numbers are memory-mapped: tensors of `.safetensors`, contiguous datasets of
`.hdf5` and `.h5`. Other datasets, and columns of lists of numbers in `.parquet`, are a `Stored`
that is read block by block.
"""

import contextlib
import functools
import json
import math
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.vectors import formats
from qinco_jax.vectors.stored import Rows, Stored

HDF5 = (".hdf5", ".h5")
ENDINGS = (*HDF5, ".parquet", ".safetensors")
BLOCK_BYTES = 2**26  # a larger row group is read in pieces
CHUNK_CACHE = 2**26  # bytes; larger chunks are decompressed again for each slice
KEPT_BLOCKS, KEPT_COLUMNS = 2, 2  # threads read on both sides of a boundary
MAX_CHUNK_BYTES = 2**29
MAX_EXPANSION = 2**14  # bytes of numbers per byte of a file; a file that claims more is damaged
SHOWN_NAMES = 20

SAFETENSORS_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": formats.BFLOAT16,
    **{f"I{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
}


class Table(NamedTuple):
    """A dataset, column or tensor in a file.

    Attributes:
      what: its dtype and shape, for messages.
      open: returns its rows; `None` if they are not vectors.
    """

    what: str
    open: Callable[[], Rows] | None


def read(path: Path, name: str | None = None) -> Rows:
    """Opens vectors, or a ground truth's ids, in a file that can hold several tables.

    Args:
      path: a file with one of `ENDINGS`.
      name: of the dataset, column or tensor; `None` takes the only one that can hold vectors.

    Returns:
      [N, D] with N >= 1 and 1 <= D <= 10^6, integers or floats; a read-only map of the file or a
      `Stored`, which several threads may read.

    Raises:
      InputError: the file is missing or damaged, it has no vectors of that name, or no name was
        given and there are several.
    """
    found = tables(path)
    usable = [key for key, table in found.items() if table.open is not None]
    if name is None and len(usable) == 1:
        (name,) = usable
    table = found.get(name or "")
    if table is None or table.open is None:
        shown = [f"{key} ({table.what})" for key, table in found.items()]
        listed = ", ".join(shown[:SHOWN_NAMES]) or "nothing"
        more = f" and {len(shown) - SHOWN_NAMES} more" if len(shown) > SHOWN_NAMES else ""
        problem = f"no vectors named {name!r}" if name else "no single table of vectors"
        example = f"{path}::{(usable or ['NAME'])[0]}"
        raise InputError(
            f"found {problem} in {path}, which holds {listed}{more}; name [N, D] numbers in it, "
            f"for example {example}"
        )
    return table.open()


def tables(path: Path) -> Mapping[str, Table]:
    """The tables in a file by name.

    Raises:
      InputError: the file is missing, empty or damaged.
    """
    formats.check_file(path, ENDINGS)
    if path.suffix in HDF5:
        return _hdf5_tables(path)
    return _parquet_tables(path) if path.suffix == ".parquet" else _safetensors_tables(path)


@contextlib.contextmanager
def _explained(path: Path, *errors: Any) -> Iterator[None]:
    """Raises the errors of a library that reads a file as `InputError`."""
    try:
        yield
    except InputError:
        raise
    except (OSError, *errors) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"{path} cannot be read ({reason}); fix that, or fetch or write it again"
        ) from error


def _check_size(path: Path, shape: tuple[int, int], dtype: np.dtype) -> None:
    """Refuses a shape far too large for the file, before memory is allocated for it."""
    formats.check_shape(path, *shape)
    if shape[0] * shape[1] * dtype.itemsize > MAX_EXPANSION * path.stat().st_size:
        raise InputError(
            f"{path} claims {shape[0]} rows of {shape[1]} columns, which cannot fit in its bytes; "
            "it is damaged, so fetch or write it again"
        )


# safetensors


def _safetensors_tables(path: Path) -> dict[str, Table]:
    from safetensors import SafetensorError, safe_open

    with _explained(path, SafetensorError, ValueError):
        with safe_open(path, framework="numpy"):
            pass  # checks that the header is valid and the tensors fill the rest of the file
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: _tensor(path, 8 + length, entry) for name, entry in header.items()}


def _tensor(path: Path, begin: int, entry: Mapping[str, Any]) -> Table:
    shape, dtype = tuple(entry["shape"]), SAFETENSORS_DTYPES.get(entry["dtype"])
    what = f"{entry['dtype']} {shape}"
    if dtype is None or len(shape) != 2:
        return Table(what, None)

    def rows() -> np.ndarray:
        formats.check_shape(path, *shape)
        with _explained(path, ValueError):
            return np.memmap(path, dtype, "r", begin + entry["data_offsets"][0], shape)

    return Table(what, rows)


# HDF5

HDF5_ERRORS = RuntimeError, ValueError, KeyError, TypeError  # raised by h5py for damaged files


def _hdf5_tables(path: Path) -> dict[str, Table]:
    import h5py

    found: dict[str, Table] = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            real = item.ndim == 2 and item.dtype.kind in "iuf"
            opening = functools.partial(_dataset, path, item) if real else None
            found[name] = Table(f"{item.dtype} {item.shape}", opening)

    with _explained(path, *HDF5_ERRORS):
        h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE).visititems(visit)
    return found  # the file stays open as long as one of its datasets exists


def _dataset(path: Path, dataset: Any) -> Rows:
    import h5py

    with _explained(path, *HDF5_ERRORS):
        formats.check_dtype(path, dataset.dtype)
        _check_size(path, dataset.shape, dataset.dtype)
        if dataset.is_virtual or dataset.external:
            raise InputError(f"{path} stores its numbers in other files; write it as one file")
        if dataset.chunks is None:
            plain = h5py.h5t.py_create(dataset.dtype).equal(dataset.id.get_type())
            if dataset.id.get_storage_size() != dataset.nbytes:
                raise InputError(f"{path} was never filled with data; write it again")
            if plain and dataset.id.get_offset() is not None:
                offset = dataset.id.get_offset()
                return np.memmap(path, dataset.dtype, "r", offset, dataset.shape)
            return Stored([_Slices(path, dataset)])
        _check_chunks(path, dataset)
        most = max(1, BLOCK_BYTES // (dataset.shape[1] * dataset.dtype.itemsize))
        return Stored([_Slices(path, dataset)], min(dataset.chunks[0], most))


def _check_chunks(path: Path, dataset: Any) -> None:
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if size > MAX_CHUNK_BYTES:
        raise InputError(
            f"{path} has chunks of {size} bytes; write it again with chunks of at most "
            f"{MAX_CHUNK_BYTES}"
        )
    count = math.prod(-(-n // m) for n, m in zip(dataset.shape, dataset.chunks, strict=True))
    if dataset.id.get_num_chunks() != count:
        raise InputError(
            f"{path} has {dataset.id.get_num_chunks()} of {count} chunks; it is incomplete, so "
            "fetch or write it again"
        )


class _Slices:
    """The rows of an HDF5 dataset; h5py serializes threads, and the file stays open."""

    def __init__(self, path: Path, dataset: Any) -> None:
        self._path, self._dataset = path, dataset
        self.shape: tuple[int, int] = dataset.shape
        self.dtype: np.dtype = dataset.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        with _explained(self._path, *HDF5_ERRORS):
            return self._dataset[rows]


def hdf5_attribute(path: Path, name: str) -> str | None:
    """An attribute of an HDF5 file as text; `None` if it has none of that name."""
    import h5py

    with _explained(path, *HDF5_ERRORS), h5py.File(path, "r") as file:
        value = file.attrs.get(name)
    return value.decode() if isinstance(value, bytes) else None if value is None else str(value)


# Parquet


def _parquet_tables(path: Path) -> dict[str, Table]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _explained(path, pa.ArrowException, ValueError), pq.ParquetFile(path) as file:
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
    return found


def _column(path: Path, field: Any, metadata: Any) -> Stored:
    import pyarrow as pa

    dtype = np.dtype(field.type.value_type.to_pandas_dtype())
    groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if not groups or min(groups) < 0 or sum(groups) < 1:
        raise InputError(f"{path} holds no rows; fetch or write it again")
    if pa.types.is_fixed_size_list(field.type):
        dim = field.type.list_size
    else:
        first = next(group for group, rows in enumerate(groups) if rows)
        dim = _first_length(path, field.name, metadata, first)
    _check_size(path, (sum(groups), dim), dtype)
    segment = _RowGroups(path, field.name, metadata, groups, dim, dtype)
    return Stored([segment], segment.block_rows)


def _batches(
    path: Path, column: str, metadata: Any, group: int, rows: int
) -> Generator[Any, None, None]:
    """Yields the lists of a column in a row group, at most `rows` at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with (
        _explained(path, pa.ArrowException, ValueError, LookupError),
        pq.ParquetFile(path, metadata=metadata, pre_buffer=False, buffer_size=2**20) as file,
    ):
        found = file.iter_batches(rows, row_groups=[group], columns=[column], use_threads=False)
        for batch in found:
            yield batch.column(column)


def _first_length(path: Path, column: str, metadata: Any, group: int) -> int:
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
        self, path: Path, column: str, metadata: Any, groups: list[int], dim: int, dtype: np.dtype
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
    path: Path, batches: Iterator[Any], dim: int, first: int
) -> Iterator[tuple[int, np.ndarray]]:
    for lists in batches:
        yield first, _as_rows(path, lists, dim, first)
        first += len(lists)


def _as_rows(path: Path, lists: Any, dim: int, first: int) -> np.ndarray:
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
