"""Vectors inside of files that hold several things: HDF5, Parquet and safetensors.

What lies in a file as plain numbers in one piece is mapped into memory: tensors of `.safetensors`,
contiguous datasets of `.hdf5` and `.h5`. What is compressed or in chunks is a `Stored`, read block
by block: other datasets, and the columns of `.parquet` that hold a list of numbers in every row.
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
CHUNK_CACHE = 2**26  # bytes; chunks that are larger are unpacked anew for each slice
KEPT_BLOCKS, KEPT_PARTS = 2, 2  # threads read on both sides of a border
MAX_CHUNK_BYTES = 2**29
MAX_EXPANSION = 2**14  # bytes of numbers for each byte of a file; more is damage, or malice
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
    """One of the things in a file.

    Attributes:
      what: its kind and shape, for people.
      open: gives its rows; `None` where these are no vectors.
    """

    what: str
    open: Callable[[], Rows] | None


def read(path: Path, name: str | None = None) -> Rows:
    """Opens vectors, or a ground truth's ids, in a file of several things.

    Args:
      path: a file with one of `ENDINGS`.
      name: of the dataset, column or tensor; `None` takes the one that can hold vectors.

    Returns:
      [N, D] with N >= 1 and 1 <= D <= 10^6, integers or floats; a read-only map of the file or a
      `Stored`, which may be read by several threads.

    Raises:
      InputError: no such file, damage, nothing of that name, or no name where there are several.
    """
    there = tables(path)
    fitting = [key for key, table in there.items() if table.open is not None]
    if name is None and len(fitting) == 1:
        (name,) = fitting
    table = there.get(name or "")
    if table is None or table.open is None:
        shown = [f"{key} ({table.what})" for key, table in there.items()]
        listed = ", ".join(shown[:SHOWN_NAMES]) or "nothing"
        more = f" and {len(shown) - SHOWN_NAMES} more" if len(shown) > SHOWN_NAMES else ""
        wish = f"{name!r} is no table of vectors in" if name else "it is not clear what to read of"
        example = f"{path}::{(fitting or ['NAME'])[0]}"
        raise InputError(
            f"{wish} {path}, which holds {listed}{more}; name [N, D] numbers in it, such as "
            f"{example}"
        )
    return table.open()


def tables(path: Path) -> Mapping[str, Table]:
    """What a file holds, by name.

    Raises:
      InputError: there is no such file, or it is empty or damaged.
    """
    formats.check_file(path, ENDINGS)
    if path.suffix in HDF5:
        return _hdf5_tables(path)
    return _parquet_tables(path) if path.suffix == ".parquet" else _safetensors_tables(path)


@contextlib.contextmanager
def _explained(path: Path, *errors: Any) -> Iterator[None]:
    """Turns what a library says about a file into a sentence for the user."""
    try:
        yield
    except InputError:
        raise
    except (OSError, *errors) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"{path} cannot be read ({reason}); mend that, or fetch or write it again"
        ) from error


def _check_size(path: Path, shape: tuple[int, int], dtype: np.dtype) -> None:
    """Refuses a shape that is absurd for the file's size, before anything is allocated for it."""
    formats.check_shape(path, *shape)
    if shape[0] * shape[1] * dtype.itemsize > MAX_EXPANSION * path.stat().st_size:
        raise InputError(
            f"{path} says that it holds {shape[0]} rows of {shape[1]} columns, far more than its "
            "bytes can; it is damaged, so fetch or write it again"
        )


# safetensors


def _safetensors_tables(path: Path) -> dict[str, Table]:
    from safetensors import SafetensorError, safe_open

    with _explained(path, SafetensorError, ValueError):
        with safe_open(path, framework="numpy"):
            pass  # its header is sound, and its tensors fill the rest of the file
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: _tensor(path, 8 + length, about) for name, about in header.items()}


def _tensor(path: Path, begin: int, about: Mapping[str, Any]) -> Table:
    shape, dtype = tuple(about["shape"]), SAFETENSORS_DTYPES.get(about["dtype"])
    what = f"{about['dtype']} {shape}"
    if dtype is None or len(shape) != 2:
        return Table(what, None)

    def rows() -> np.ndarray:
        formats.check_shape(path, *shape)
        with _explained(path, ValueError):
            return np.memmap(path, dtype, "r", begin + about["data_offsets"][0], shape)

    return Table(what, rows)


# HDF5

HDF5_ERRORS = RuntimeError, ValueError, KeyError, TypeError  # what h5py raises for damaged files


def _hdf5_tables(path: Path) -> dict[str, Table]:
    import h5py

    found: dict[str, Table] = {}

    def see(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            real = item.ndim == 2 and item.dtype.kind in "iuf"
            opening = functools.partial(_dataset, path, item) if real else None
            found[name] = Table(f"{item.dtype} {item.shape}", opening)

    with _explained(path, *HDF5_ERRORS):
        h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE).visititems(see)
    return found  # the file is open as long as one of its datasets is at hand


def _dataset(path: Path, dataset: Any) -> Rows:
    import h5py

    with _explained(path, *HDF5_ERRORS):
        formats.check_dtype(path, dataset.dtype)
        _check_size(path, dataset.shape, dataset.dtype)
        if dataset.is_virtual or dataset.external:
            raise InputError(f"{path} keeps its numbers in other files; write it as one file")
        if dataset.chunks is None:
            plain = h5py.h5t.py_create(dataset.dtype).equal(dataset.id.get_type())
            if dataset.id.get_storage_size() != dataset.nbytes:
                raise InputError(f"{path} was never filled with numbers; write it again")
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
            f"{path} has chunks of {size} bytes, each of which is unpacked whole; write it again "
            f"with chunks of at most {MAX_CHUNK_BYTES}"
        )
    count = math.prod(-(-n // m) for n, m in zip(dataset.shape, dataset.chunks, strict=True))
    if dataset.id.get_num_chunks() != count:
        raise InputError(
            f"{path} has {dataset.id.get_num_chunks()} of {count} chunks; its writing was cut off, "
            "so fetch or write it again"
        )


class _Slices:
    """The rows of a dataset of HDF5. h5py lets one thread in at a time; the file stays open."""

    def __init__(self, path: Path, dataset: Any) -> None:
        self._path, self._dataset = path, dataset
        self.shape: tuple[int, int] = dataset.shape
        self.dtype: np.dtype = dataset.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        with _explained(self._path, *HDF5_ERRORS):
            return self._dataset[rows]


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
    part = _RowGroups(path, field.name, metadata, groups, dim, dtype)
    return Stored([part], part.block_rows)


def _batches(
    path: Path, column: str, metadata: Any, group: int, rows: int
) -> Generator[Any, None, None]:
    """The lists of a column in a row group, at most `rows` of them at a time."""
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
    raise InputError(f"row 0 of {path} has no vector; remove such rows or mend them")


class _RowGroups:
    """The rows of a column of Parquet, decoded block by block.

    A row group of more than `BLOCK_BYTES` is decoded in blocks from its begin, which makes reading
    in order cheap. The blocks read last are kept, by the parts that were read last. The file is
    open only while the middle of a row group is being read.
    """

    _recent: ClassVar[deque["weakref.ref[_RowGroups]"]] = deque(maxlen=KEPT_PARTS)
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
        self._span = 0, 0  # rows that the stream has not given yet

    def __getitem__(self, rows: slice) -> np.ndarray:
        out = np.empty((rows.stop - rows.start, self.shape[1]), self.dtype)
        with self._lock:
            self._become_recent()
            at = rows.start
            while at < rows.stop:
                first, block = self._block(at)
                piece = block[at - first : rows.stop - first]
                out[at - rows.start :][: len(piece)] = piece
                at += len(piece)
        return out

    def _become_recent(self) -> None:
        """Lets the part that was read longest ago forget its blocks."""
        with self._recent_lock:
            known = [part() for part in self._recent]
            if self in known:
                return
            if len(known) == KEPT_PARTS and known[0] is not None:
                known[0]._kept = deque(maxlen=KEPT_BLOCKS)
            self._recent.append(weakref.ref(self))

    def _block(self, row: int) -> tuple[int, np.ndarray]:
        """The block that holds a row, and its first row."""
        for first, block in self._kept:
            if first <= row < first + len(block):
                return first, block
        if not self._span[0] <= row < self._span[1]:
            group = int(np.searchsorted(self._ends, row, side="right"))
            begin = int(self._ends[group - 1]) if group else 0
            lists = self._open(group, self.block_rows)
            self._stream = _blocks(self._path, lists, self.shape[1], begin)
            self._span = begin, int(self._ends[group])
        end, self._span = self._span[1], (0, 0)  # what fails below has ended the stream
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
    """Lists of numbers as [R, D], without a copy; `first` is the number of the first."""
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    present = lists.is_valid().to_numpy(zero_copy_only=False)
    if not (present & (lengths == dim)).all():
        bad = int(np.argmin(present & (lengths == dim)))
        found = f"{lengths[bad]} numbers" if present[bad] else "no vector"
        raise InputError(
            f"row {first + bad} of {path} has {found}, others {dim}; remove such rows or mend them"
        )
    numbers = lists.flatten()
    if numbers.null_count:
        bad = int(np.argmin(numbers.is_valid().to_numpy(zero_copy_only=False))) // dim
        raise InputError(
            f"row {first + bad} of {path} lacks a number; remove such rows or mend them"
        )
    return numbers.to_numpy().reshape(-1, dim)
