"""Turns rows taken from a file of vectors into a valid file."""

from pathlib import Path

import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.vectors import formats, npy

NPY_HEADER = 1024  # bytes, enough for the header of any .npy file of vectors


def row_bytes(ending: str, dim: int, dtype: str) -> int:
    """Bytes of a row [D] in a file."""
    if ending == ".npy":
        return dim * np.dtype(dtype).itemsize
    return (4 if ending.endswith("vecs") else 0) + formats.DTYPES[ending].itemsize * dim


def crop(path: Path, ending: str) -> None:
    """Writes the number of rows that follow into the header of a file.

    Args:
      path: of the file, which is changed.
      ending: of its format; the path may end otherwise.

    Raises:
      InputError: the header is damaged, or the rows after it are incomplete.
    """
    size = path.stat().st_size
    with path.open("r+b") as file:
        start = file.read(NPY_HEADER)
        offset, row = _header(path, ending, start)
        rows, rest = divmod(size - offset, row)
        if rows < 1 or rest:
            raise InputError(f"{path} ends in an incomplete row; remove it and check its source")
        file.seek(0)
        file.write(_with_rows(start[:offset], ending, rows))


def _header(path: Path, ending: str, start: bytes) -> tuple[int, int]:
    """Bytes of the header and of a row."""
    if ending == ".npy":
        with path.open("rb") as file:
            header = npy.read_header(file, path)
        if len(header.shape) != 2 or header.fortran:
            raise InputError(
                f"{path} holds no rows one after another, but {header.shape} in "
                f"{'Fortran' if header.fortran else 'C'} order; check its source"
            )
        formats.check_shape(path, *header.shape)
        return header.offset, header.shape[1] * header.dtype.itemsize
    width = formats.DTYPES[ending].itemsize
    if ending.endswith("bin"):
        return 8, max(1, int.from_bytes(start[4:8], "little") * width)
    return 0, 4 + int.from_bytes(start[:4], "little") * width


def _with_rows(header: bytes, ending: str, rows: int) -> bytes:
    """The header with another number of rows; its length stays."""
    if ending == ".npy":
        before, _, after = header.partition(b"'shape': (")
        other = before + b"'shape': (" + str(rows).encode() + after[after.index(b",") :].rstrip()
        return other.ljust(len(header) - 1) + b"\n"
    return rows.to_bytes(4, "little") + header[4:] if ending.endswith("bin") else header
