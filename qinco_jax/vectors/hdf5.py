"""Datasets of HDF5 files: contiguous ones are memory-mapped, others are read slice by slice."""

import functools
import math
from typing import Any

import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.remote.paths import AnyPath, source
from qinco_jax.vectors import formats
from qinco_jax.vectors.located import rows_at
from qinco_jax.vectors.stored import Rows, Stored
from qinco_jax.vectors.tables import BLOCK_BYTES, Table, check_size, explained

ENDINGS = (".hdf5", ".h5")
CHUNK_CACHE = 2**26  # bytes; larger chunks are decompressed again for each slice
MAX_CHUNK_BYTES = 2**29
ERRORS = RuntimeError, ValueError, KeyError, TypeError  # raised by h5py for damaged files


def tables(path: AnyPath) -> dict[str, Table]:
    """The datasets in a file by name; raises as `containers.tables` does."""
    import h5py

    found: dict[str, Table] = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            real = item.ndim == 2 and item.dtype.kind in "iuf"
            opening = functools.partial(_dataset, path, item) if real else None
            found[name] = Table(f"{item.dtype} {item.shape}", opening)

    with explained(path, *ERRORS):
        h5py.File(source(path), "r", rdcc_nbytes=CHUNK_CACHE).visititems(visit)
    return found  # the file stays open as long as one of its datasets exists


def _dataset(path: AnyPath, dataset: Any) -> Rows:
    import h5py

    with explained(path, *ERRORS):
        formats.check_dtype(path, dataset.dtype.newbyteorder("="))
        check_size(path, dataset.shape, dataset.dtype)
        if dataset.is_virtual or dataset.external:
            raise InputError(f"{path} stores its numbers in other files; write it as one file")
        if dataset.chunks is None:
            plain = h5py.h5t.py_create(dataset.dtype).equal(dataset.id.get_type())
            if dataset.id.get_storage_size() != dataset.nbytes:
                raise InputError(f"{path} was never filled with data; write it again")
            if plain and dataset.id.get_offset() is not None:
                offset = dataset.id.get_offset()
                return rows_at(path, offset, dataset.shape, dataset.dtype)
            return Stored([_Slices(path, dataset)])
        _check_chunks(path, dataset)
        most = max(1, BLOCK_BYTES // (dataset.shape[1] * dataset.dtype.itemsize))
        return Stored([_Slices(path, dataset)], min(dataset.chunks[0], most))


def _check_chunks(path: AnyPath, dataset: Any) -> None:
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

    def __init__(self, path: AnyPath, dataset: Any) -> None:
        self._path, self._dataset = path, dataset
        self.shape: tuple[int, int] = dataset.shape
        self.dtype: np.dtype = dataset.dtype.newbyteorder("=")

    def __getitem__(self, rows: slice) -> np.ndarray:
        with explained(self._path, *ERRORS):
            return np.asarray(self._dataset[rows], self.dtype)


def attribute(path: AnyPath, name: str) -> str | None:
    """An attribute of an HDF5 file as text, alone or as an array of one; `None` without it."""
    import h5py

    with explained(path, *ERRORS), h5py.File(source(path), "r") as file:
        value = file.attrs.get(name)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return value.decode() if isinstance(value, bytes) else None if value is None else str(value)
