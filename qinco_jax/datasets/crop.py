"""Makes rows that were taken out of a file of vectors a file of their own."""

from pathlib import Path

import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.vectors import formats

NPY_HEADER = 1024  # bytes that hold the header of any .npy file of vectors, and more


def row_bytes(ending: str, dim: int, dtype: str) -> int:
    """Bytes that a row [D] takes in a file."""
    if ending == ".npy":
        return dim * np.dtype(dtype).itemsize
    return (4 if ending.endswith("vecs") else 0) + formats.DTYPES[ending].itemsize * dim


def crop(path: Path, ending: str) -> None:
    """Lets a file say how many rows it holds, of which some were left out behind its header.

    Args:
      path: is changed.
      ending: of its format, whatever it is called for now.

    Raises:
      InputError: the header is damaged, or no whole rows follow it.
    """
    size = path.stat().st_size
    with path.open("r+b") as file:
        start = file.read(NPY_HEADER)
        offset, row = _header(path, ending, start)
        rows, rest = divmod(size - offset, row)
        if rows < 1 or rest:
            raise InputError(f"{path} holds no whole rows; remove it and look at its source")
        file.seek(0)
        file.write(_saying(start[:offset], ending, rows))


def _header(path: Path, ending: str, start: bytes) -> tuple[int, int]:
    """Bytes before the first row, and of a row."""
    if ending == ".npy":
        offset, rows, columns, dtype = formats.read_npy_header(path)
        formats.check_shape(path, rows, columns)
        return offset, columns * dtype.itemsize
    width = formats.DTYPES[ending].itemsize
    if ending.endswith("bin"):
        return 8, max(1, int.from_bytes(start[4:8], "little") * width)
    return 0, 4 + int.from_bytes(start[:4], "little") * width


def _saying(header: bytes, ending: str, rows: int) -> bytes:
    """A header, as long as it was, that says how many rows there are."""
    if ending == ".npy":
        before, _, after = header.partition(b"'shape': (")
        other = before + b"'shape': (" + str(rows).encode() + after[after.index(b",") :].rstrip()
        return other.ljust(len(header) - 1) + b"\n"
    return rows.to_bytes(4, "little") + header[4:] if ending.endswith("bin") else header
