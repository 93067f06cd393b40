"""A table in a file that can hold several, and what the modules that read such files share."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.remote.paths import AnyPath, size_of
from qinco_jax.vectors import formats
from qinco_jax.vectors.stored import Rows

BLOCK_BYTES = 2**26  # what is read at once holds no more, where it can be cut
MAX_EXPANSION = 2**14  # bytes of numbers per byte of a file; a file that claims more is damaged


class Table(NamedTuple):
    """A dataset, column, tensor or member of a file.

    Attributes:
      what: its dtype and shape, for messages.
      open: returns its rows; `None` if they are not vectors.
    """

    what: str
    open: Callable[[], Rows] | None


@contextlib.contextmanager
def explained(path: AnyPath, *errors: Any) -> Iterator[None]:
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


def check_size(path: AnyPath, shape: tuple[int, int], dtype: np.dtype) -> None:
    """Refuses a shape far too large for the file, before memory is allocated for it."""
    formats.check_shape(path, *shape)
    if shape[0] * shape[1] * dtype.itemsize > MAX_EXPANSION * size_of(path):
        raise InputError(
            f"{path} claims {shape[0]} rows of {shape[1]} columns, which cannot fit in its bytes; "
            "it is damaged, so fetch or write it again"
        )
