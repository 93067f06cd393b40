"""Conversion of vectors between formats, block by block, so that files need not fit in memory."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qinco_jax.errors import InputError
from qinco_jax.files import replacing
from qinco_jax.remote.copies import written
from qinco_jax.vectors import formats, hdf5, npy, parquet, safetensors
from qinco_jax.vectors.shards import read_rows
from qinco_jax.vectors.stored import Rows

BLOCK_BYTES = 2**26  # of vectors in memory at once, and of a row group
ENDINGS = (*formats.NEW_ENDINGS, *hdf5.ENDINGS, *parquet.ENDINGS, *safetensors.ENDINGS)
TENSOR, COLUMN = "vectors", "embedding"  # the names in .hdf5 and .safetensors, and in .parquet

Write = Callable[[int, np.ndarray], Any]


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    dtype: npt.DTypeLike | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> None:
    """Writes vectors into a new file, which appears complete or not at all.

    A conversion that would change a number is refused, with one exception: floats are rounded to
    the nearest where `dtype` asks for narrower floats.

    Args:
      source: [N, D], as for `read_rows`.
      target: a new file with one of `ENDINGS`, or the URL of one, as for `formats.create`.
      dtype: of the new file; `None` takes the one that its format requires, or else the source's.
      progress: called with the number of rows done and their total.

    Raises:
      InputError: the source or target is invalid, or a number would change.
    """
    rows = read_rows(source)
    with written(target) as local:
        _convert(rows, os.fspath(source), local, dtype, progress or (lambda done, total: None))


def _convert(
    rows: Rows,
    source: str,
    target: Path,
    dtype: npt.DTypeLike | None,
    progress: Callable[[int, int], Any],
) -> None:
    formats.check_new(target, ENDINGS)
    kind = np.dtype(dtype or formats.DTYPES.get(target.suffix, rows.dtype))
    formats.check_dtype(target, kind)
    rounds = dtype is not None and not {rows.dtype.kind, kind.kind} & set("iu")
    step = max(1, BLOCK_BYTES // (rows.shape[1] * max(rows.dtype.itemsize, kind.itemsize)))
    with _new_file(target, rows.shape, kind) as write:
        for begin in range(0, len(rows), step):
            block = np.asarray(rows[begin : begin + step])
            write(begin, _converted(block, kind, rounds, begin, source))
            progress(begin + len(block), len(rows))


def _converted(
    block: np.ndarray, dtype: np.dtype, rounds: bool, begin: int, source: str
) -> np.ndarray:
    """Converts a block [R, D] to another dtype; refuses numbers that would change."""
    with np.errstate(all="ignore"):  # overflow is found below
        found = block.astype(dtype)
        good = _is_same(block, found)
        if rounds:
            good |= np.isfinite(found)
    if not good.all():
        row, column = np.argwhere(~good)[0]
        raise InputError(
            f"row {begin + row} of {source} holds {block[row, column]}, which {dtype} cannot "
            "represent; choose a wider --dtype, or an ending that allows one"
        )
    return found


def _is_same(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which numbers of `x` [R, D] equal those of `y`, their conversion; NaN equals NaN."""
    if x.dtype.kind not in "iu" and y.dtype.kind not in "iu":
        wide, found = x.astype(np.float64), y.astype(np.float64)
        return (wide == found) | (np.isnan(wide) & np.isnan(found))
    if x.dtype.kind in "iu" and y.dtype.kind in "iu":
        return x == y  # NumPy compares them exactly, whatever their dtypes
    floats, integers = (x, y) if y.dtype.kind in "iu" else (y, x)
    wide, limits = floats.astype(np.float64), np.iinfo(integers.dtype)
    inside = (wide >= limits.min) & (wide < float(limits.max + 1)) & (np.trunc(wide) == wide)
    return inside & (np.where(inside, wide, 0).astype(integers.dtype) == integers)


@contextlib.contextmanager
def _new_file(path: Path, shape: tuple[int, int], dtype: np.dtype) -> Iterator[Write]:
    """Creates a file in a `with` block, which calls the result with blocks of rows in order."""
    if path.suffix in formats.NEW_ENDINGS:
        with formats.create(path, shape, dtype) as rows:
            yield _into(rows)
    elif path.suffix == ".safetensors":
        names = {kind: name for name, kind in safetensors.DTYPES.items()}
        end = shape[0] * shape[1] * dtype.itemsize
        entry = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [0, end]}
        text = json.dumps({TENSOR: entry}).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        header = len(text).to_bytes(8, "little") + text
        record = np.dtype([("row", dtype, (shape[1],))])
        with formats.new_map(path, header, record, shape[0]) as records:
            yield _into(records["row"])
    else:
        if dtype == npy.BFLOAT16:
            raise InputError(f"{path} cannot hold bfloat16; choose .npy, .safetensors or --dtype")
        opened = _hdf5 if path.suffix in hdf5.ENDINGS else _parquet
        with replacing(path) as partial, opened(partial, shape, dtype) as write:
            yield write


def _into(rows: np.ndarray) -> Write:
    def write(begin: int, block: np.ndarray) -> None:
        rows[begin : begin + len(block)] = block

    return write


@contextlib.contextmanager
def _hdf5(path: Path, shape: tuple[int, int], dtype: np.dtype) -> Iterator[Write]:
    import h5py

    with h5py.File(path, "w") as file:
        yield _into(file.create_dataset(TENSOR, shape, dtype))


@contextlib.contextmanager
def _parquet(path: Path, shape: tuple[int, int], dtype: np.dtype) -> Iterator[Write]:
    """Each block becomes a row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema({COLUMN: pa.list_(pa.from_numpy_dtype(dtype), shape[1])})
    with pq.ParquetWriter(path, schema) as file:

        def write(begin: int, block: np.ndarray) -> None:
            numbers = pa.array(np.ascontiguousarray(block).reshape(-1))
            lists = pa.FixedSizeListArray.from_arrays(numbers, shape[1])
            file.write_table(pa.table([lists], schema), row_group_size=len(block))

        yield write
