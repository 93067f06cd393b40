"""Arrays as NumPy stores them: their headers, and rows in any order and byte order."""

import mmap
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.remote.paths import AnyPath
from qinco_jax.vectors.foreign import told_by
from qinco_jax.vectors.stored import Derived, Rows, Stored

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Header(NamedTuple):
    """What stands before the numbers of an array.

    Attributes:
      offset: of the numbers, in bytes from the start of the header.
      shape: of the array, as claimed.
      fortran: whether columns are stored one after another, not rows.
      dtype: of the numbers; `V2`, as which NumPy writes bfloat16, is bfloat16.
    """

    offset: int
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Bytes of the header and of the numbers of a matrix [N, D]."""
        return self.offset + self.shape[0] * self.shape[1] * self.dtype.itemsize

    def rows(self, numbers: np.ndarray) -> Rows:
        """The rows [N, D] of the numbers in stored order, in native order when they are read."""
        x = numbers.view(self.dtype)
        return native(x.reshape(self.shape[::-1]).T if self.fortran else x.reshape(self.shape))


def read_header(file: BinaryIO, what: str | AnyPath) -> Header:
    """Reads the header of an array from the start of a file; `what` names it in messages.

    Raises:
      InputError: it is damaged or of another format.
    """
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        shape, fortran, dtype = readers[np.lib.format.read_magic(file)](file)
    except Exception as error:  # NumPy raises many kinds
        file.seek(0)
        known = told_by(file.read(8))
        remedy = "fetch or write it again"
        if known not in (None, ".npy"):
            remedy = f"it begins like a {known} file, so name it so if it is one"
        raise InputError(f"{what} is not a .npy file or its header is damaged; {remedy}") from error
    return Header(file.tell(), shape, fortran, BFLOAT16 if dtype == np.dtype("V2") else dtype)


def native(x: np.ndarray) -> Rows:
    """The rows [N, D] of a map in the order and byte order of this machine, or a `Stored` of them.

    A column of a matrix in Fortran order lies in pages of its own, so rows are read by the page.
    """
    if x.flags.c_contiguous and x.dtype.isnative:
        return x

    def converted(block: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(block, block.dtype.newbyteorder("="))

    together = 1 if x.flags.c_contiguous else max(1, mmap.PAGESIZE // x.dtype.itemsize)
    return Stored([Derived(x, converted)], together)
