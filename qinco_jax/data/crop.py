"""Makes the beginning of a file of vectors a file of its own."""

from pathlib import Path

import numpy as np

from qinco_jax.data import formats
from qinco_jax.errors import InputError

NPY_HEADER = 1024  # bytes that hold the header of any .npy file of vectors, and more


def bytes_for(ending: str, rows: int, dim: int, dtype: str) -> int:
    """Bytes at the head of a file that hold its first `rows` rows."""
    if ending == ".npy":
        return NPY_HEADER + rows * dim * np.dtype(dtype).itemsize
    header, dimension_word = (8, 0) if ending.endswith("bin") else (0, 4)
    return header + rows * (dimension_word + formats.DTYPES[ending].itemsize * dim)


def crop(path: Path, ending: str, rows: int) -> None:
    """Lets a file that was cut off anywhere behind its header say, and hold, its first whole rows.

    Args:
      path: is changed.
      ending: of its format, whatever it is called for now.
      rows: at most so many stay.

    Raises:
      InputError: the header is damaged, or there is no whole row.
    """
    size = path.stat().st_size
    with path.open("r+b") as file:
        start = file.read(NPY_HEADER)
        offset, row = _header(path, ending, start)
        kept = min(rows, (size - offset) // row)
        if kept < 1:
            raise InputError(f"{path} holds no whole row; remove it and look at its source")
        file.seek(0)
        file.write(_saying(start[:offset], ending, kept))
        file.truncate(offset + kept * row)


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
