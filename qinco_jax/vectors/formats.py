"""Files of vectors: reading by maps or ranges, and writing that leaves a complete file or none.

The ending gives the format. `.npy`: NumPy's; bfloat16 as NumPy writes it, with dtype `V2`.
`.fvecs`, `.ivecs`, `.bvecs`: each row is its dimension as an int32, then its numbers. `.fbin`,
`.ibin`, `.i8bin`, `.u8bin`: rows and columns as two uint32, then the numbers. `.bin`, read only:
big-ann's ground truth, queries and k as two uint32, then the ids [q, k] int32 and their distances
[q, k] float32.
"""

import contextlib
import functools
import io
import mmap
import operator
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qinco_jax.errors import InputError
from qinco_jax.files import reserve
from qinco_jax.remote.copies import written
from qinco_jax.remote.paths import AnyPath, RemotePath, place_of, size_of
from qinco_jax.vectors import foreign
from qinco_jax.vectors.located import array_at, fetched
from qinco_jax.vectors.npy import BFLOAT16, read_header
from qinco_jax.vectors.stored import Rows, mapped

DTYPES: dict[str, np.dtype] = {
    ".fvecs": np.dtype("<f4"),
    ".ivecs": np.dtype("<i4"),
    ".bvecs": np.dtype("u1"),
    ".fbin": np.dtype("<f4"),
    ".ibin": np.dtype("<i4"),
    ".i8bin": np.dtype("i1"),
    ".u8bin": np.dtype("u1"),
    ".bin": np.dtype("<i4"),
}
ENDINGS = (".npy", *DTYPES)
NEW_ENDINGS = tuple(ending for ending in ENDINGS if ending != ".bin")
MAX_DIM = 10**6  # a file that claims more counts as damaged


def read(path: str | os.PathLike[str]) -> Rows:
    """Maps a file of vectors, or of a ground truth's ids, into memory; a remote one stays there.

    Checks the size of the file, and in the *vecs formats the dimension of every row, of a remote
    file when the row is read; the numbers are not read.

    Args:
      path: a file with one of `ENDINGS`, or the URL of one.

    Returns:
      [N, D] with N >= 1 and 1 <= D <= 10^6, a read-only view of the file with the file's dtype,
      an integer or a float. A `.npy` file of dtype `V2` is read as bfloat16. One in Fortran order
      or of the other byte order is a `Stored`, which converts rows when they are read; a remote
      one is a `Stored` that reads them by ranges.

    Raises:
      InputError: the file is missing, empty, truncated or damaged, or its ending is unknown.
    """
    path = place_of(path)
    try:
        size = check_file(path, ENDINGS)
        if path.suffix == ".npy":
            return _read_npy(path, size)
        offset, rows, columns, dtype = _read_header(path, size)
        check_shape(path, rows, columns)
        record = _record(path, columns, dtype)
        distances = 4 * rows * columns if path.suffix == ".bin" else 0
        _check_length(path, size, rows, columns, offset + rows * record.itemsize + distances)
        check = functools.partial(_check_dims, path, columns) if _is_vecs(path) else None
        if isinstance(path, RemotePath):
            return fetched(path, record, offset, rows, check)
        records = np.memmap(path, record, "r", offset, (rows,))
        if check is not None:
            check(records, 0)
        return records["row"]
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); fix that first") from error


@contextlib.contextmanager
def create(
    path: str | os.PathLike[str],
    shape: tuple[int, int],
    dtype: npt.DTypeLike,
    partial: Path | None = None,
) -> Iterator[np.ndarray]:
    """Creates a file of vectors in a `with` block, which fills the rows.

    The file is written under a temporary name, with its disk space reserved on entry, and renamed
    at the end of the block; an exception in the block removes it.

    Args:
      path: a new file with one of `NEW_ENDINGS`, in an existing directory; or a URL, to which the
        complete file is uploaded from a temporary directory.
      shape: (N, D) with N >= 1 and 1 <= D <= 10^6.
      dtype: of the numbers; `.npy` takes any integer or float, the others one dtype each.
      partial: the temporary name; the file keeps it after an exception, and the next call goes on
        with the rows that are there.

    Yields:
      [N, D], a writable map of the file, initially zero.

    Raises:
      InputError: on entry, if `path` exists or cannot be written, the disk has too little space, or
        the format cannot hold such rows.
    """
    dtype = np.dtype(dtype)
    with written(path) as local:
        rows, columns = _check_new(local, shape, dtype)
        header, record = _new_header(local, rows, columns, dtype), _record(local, columns, dtype)
        with new_map(local, header, record, rows, partial) as records:
            if _is_vecs(local):
                records["dim"] = columns
            yield records["row"]


@contextlib.contextmanager
def new_map(
    path: Path, header: bytes, record: np.dtype, rows: int, partial: Path | None = None
) -> Iterator[np.ndarray]:
    """Creates a file of a header and records in a `with` block, which fills the records [N].

    Raises:
      InputError: on entry, if `path` cannot be written or the disk has too little space.
    """
    size = len(header) + rows * record.itemsize
    place = partial or path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with _explained(path, size):
            if not _begun(place, header, size):
                _reserved(place, header, size)
            records = np.memmap(place, record, "r+", len(header), (rows,))
        yield records
        with _explained(path, size):
            records.flush()
            with place.open("r+b") as file:
                os.fsync(file.fileno())
            place.rename(path)
    finally:
        if partial is None:
            with contextlib.suppress(OSError):  # usually because it was renamed
                place.unlink()


def _begun(place: Path, header: bytes, size: int) -> bool:
    """Whether a file of that size and header is there; any other is removed."""
    if place.exists() and place.stat().st_size == size:
        with place.open("rb") as file:
            if file.read(len(header)) == header:
                return True
    place.unlink(missing_ok=True)
    return False


def _reserved(place: Path, header: bytes, size: int) -> None:
    """A new file of `size` bytes that begins with a header; none if the disk has too few."""
    try:
        with place.open("xb") as file:
            reserve(file, place.parent, size)
            file.write(header)
    except BaseException:
        place.unlink(missing_ok=True)
        raise


def check_file(path: AnyPath, endings: tuple[str, ...]) -> int:
    """Returns the size of a file in bytes; refuses a missing or empty file or another ending."""
    if path.is_dir():
        raise InputError(f"{path} is a directory; name a file of vectors in it")
    if isinstance(path, Path) and path.is_symlink() and not path.exists():
        raise InputError(f"{path} is a link to {path.readlink()}, which is not there; correct it")
    if not path.is_file():
        where = "directory" if isinstance(path, Path) else "bucket"
        raise InputError(f"there is no file {path}; check its name and {where}")
    if path.suffix not in endings:
        raise InputError(foreign.unread(path, endings))
    size = size_of(path)
    if size == 0:
        raise InputError(f"{path} is empty; fetch or write it again")
    return size


def check_shape(path: str | AnyPath, rows: int, columns: int) -> None:
    """Refuses a shape [N, D] that no file of vectors has."""
    if rows == 0 and 1 <= columns <= MAX_DIM:
        raise InputError(f"{path} has no rows; give a file with at least one vector")
    if rows < 1 or not 1 <= columns <= MAX_DIM:
        raise InputError(
            f"{path} claims {rows} rows of {columns} columns; it is damaged or has another format "
            "than its ending says, so fetch or write it again"
        )


def check_dtype(path: str | AnyPath, dtype: np.dtype) -> None:
    """Refuses numbers other than integers and floats of at most 64 bits in native byte order."""
    if not is_vector_dtype(dtype) or not dtype.isnative:
        raise InputError(
            f"the numbers of {path} are {dtype!r}; convert them to integers or floats of at most "
            "64 bits in native byte order"
        )


def is_vector_dtype(dtype: np.dtype) -> bool:
    """Whether it is of integers or floats of at most 64 bits, of any byte order."""
    return dtype == BFLOAT16 or (dtype.kind in "iuf" and dtype.itemsize <= 8)


def check_new(path: Path, endings: tuple[str, ...]) -> None:
    """Refuses a path that is no name for a new file with one of `endings`."""
    if path.suffix not in endings:
        raise InputError(f"{path} has an unknown ending; it must be one of {', '.join(endings)}")
    if not path.parent.is_dir():
        raise InputError(f"there is no directory {path.parent} for {path.name}; create it first")
    if os.path.lexists(path):
        raise InputError(f"{path} exists; choose another path or remove it first")


def release_pages(x: np.ndarray) -> None:
    """Releases the pages of a memory map that were read, which count as this process's memory.

    The system may keep them in its cache; they are read again when they are needed.

    Args:
      x: [N, D], a view of a map that `read` made; nothing happens for other arrays.
    """
    mapping, *_ = mapped(x, 0, len(x))
    if mapping is not None and hasattr(mapping, "madvise"):  # not on Windows
        mapping.madvise(mmap.MADV_DONTNEED)


def _is_vecs(path: AnyPath) -> bool:
    return path.suffix.endswith("vecs")


def _record(path: AnyPath, columns: int, dtype: np.dtype) -> np.dtype:
    """The dtype of a stored row; its field `row` skips the dimension."""
    dim = [("dim", "<i4")] if _is_vecs(path) else []
    return np.dtype([*dim, ("row", dtype, (columns,))])


def _read_npy(path: AnyPath, size: int) -> Rows:
    with path.open("rb") as file:
        header = read_header(file, path)
    if header.dtype.hasobject:
        raise InputError(
            f"{path} holds Python objects, as NumPy makes of rows that differ in length; save "
            "numbers in rows of one length, [N, D]"
        )
    if len(header.shape) != 2:
        raise InputError(f"{path} holds an array of shape {header.shape}; save vectors as [N, D]")
    check_dtype(path, header.dtype.newbyteorder("="))
    check_shape(path, *header.shape)
    _check_length(path, size, *header.shape, header.size)
    return array_at(path, header, header.offset)


def _check_length(path: AnyPath, size: int, rows: int, columns: int, expected: int) -> None:
    if size != expected:
        raise InputError(
            f"{path} has {size} bytes, but {rows} rows of {columns} columns take {expected}; "
            "it is truncated or damaged, so fetch or write it again"
        )


def _read_header(path: AnyPath, size: int) -> tuple[int, int, int, np.dtype]:
    """The offset of the rows in bytes, and the rows, columns and dtype that a file claims."""
    dtype = DTYPES[path.suffix]
    with path.open("rb") as file:
        start = file.read(8).ljust(8, b"\0")  # a file that is too short fails the size check
    if _is_vecs(path):
        dim = int.from_bytes(start[:4], "little", signed=True)
        row_bytes = 4 + max(dim, 0) * dtype.itemsize
        return 0, -(-size // row_bytes), dim, dtype
    rows, columns = np.frombuffer(start, "<u4").tolist()
    return 8, rows, columns, dtype


def _check_dims(path: AnyPath, dim: int, records: np.ndarray, first: int) -> None:
    """Refuses records, from number `first` on, whose dimension is not that of row 0."""
    dims = records["dim"]
    for begin in range(0, len(dims), 2**20):  # in blocks, to bound memory
        bad = dims[begin : begin + 2**20] != dim
        if bad.any():
            row = begin + int(bad.argmax())
            raise InputError(
                f"row {first + row} of {path} has dimension {dims[row]}, but row 0 has {dim}; the "
                "file is damaged, so fetch or write it again"
            )
        release_pages(dims)


def _check_new(path: Path, shape: tuple[int, int], dtype: np.dtype) -> tuple[int, int]:
    """Refuses what the format cannot hold; returns the shape as Python integers."""
    check_new(path, NEW_ENDINGS)
    check_dtype(path, dtype)
    if dtype != DTYPES.get(path.suffix, dtype):
        raise InputError(
            f"{path} can hold {DTYPES[path.suffix]}, not {dtype}; convert the numbers or choose "
            "the ending .npy"
        )
    if len(shape) != 2 or min(shape) < 1 or shape[1] > MAX_DIM:
        raise InputError(
            f"{path} cannot have shape {shape}; give [N, D] with N >= 1 and 1 <= D <= {MAX_DIM}"
        )
    if path.suffix.endswith("bin") and shape[0] >= 2**32:
        raise InputError(f"{path} cannot have {shape[0]} rows; choose the ending .npy")
    return operator.index(shape[0]), operator.index(shape[1])


def _new_header(path: Path, rows: int, columns: int, dtype: np.dtype) -> bytes:
    if path.suffix == ".npy":
        header = io.BytesIO()
        descr = np.lib.format.dtype_to_descr(dtype)
        fields = {"descr": descr, "fortran_order": False, "shape": (rows, columns)}
        np.lib.format.write_array_header_1_0(header, fields)
        return header.getvalue()
    return b"" if _is_vecs(path) else np.array([rows, columns], "<u4").tobytes()


@contextlib.contextmanager
def _explained(path: Path, size: int) -> Iterator[None]:
    """Raises system errors of writing as `InputError`."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: it takes {size} bytes in the directory {path.parent} "
            f"({error.strerror}); fix that or choose another directory"
        ) from error
