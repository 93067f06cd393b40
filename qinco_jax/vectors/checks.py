"""Checks of what users pass in, each with one sentence that says what to do."""

from typing import overload

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.vectors.stored import Rows, Stored, Vectors

Array = jax.Array | np.ndarray


@overload
def vectors(x: Array, dim: int | None = None, what: str = "x") -> Array: ...
@overload
def vectors(x: Vectors, dim: int | None = None, what: str = "x") -> Vectors: ...
def vectors(x: Vectors, dim: int | None = None, what: str = "x") -> Vectors:
    """Returns `x` as an array, checked to be vectors [N, D] or [D] of real numbers.

    What is read when asked for is not read.

    Raises:
      InputError: not an array of numbers, another rank, or another D than `dim`.
    """
    if not isinstance(x, jax.Array | np.ndarray | Stored):
        x = np.asarray(x)
    real = jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)
    if not real:
        raise InputError(f"{what} has dtype {x.dtype}; vectors must be integers or floats")
    if x.ndim not in (1, 2):
        raise InputError(f"{what} has shape {x.shape}; expected [N, D] or one vector [D]")
    if dim is not None and x.shape[-1] != dim:
        raise InputError(
            f"{what} has {x.shape[-1]} dimensions a vector; the model has {dim}, so it needs "
            "other vectors or another model"
        )
    return x


def finite(part: Rows, offset: int = 0, what: str = "the vectors") -> np.ndarray:
    """Returns rows in a dtype that JAX holds exactly or as float32, checked for NaN and Inf.

    Args:
      part: [N, D] rows of `what`; they are read here if they are yet to be read.
      offset: the number of their first row there.
      what: for the message.

    Raises:
      InputError: names the first row that holds NaN, Inf or a number beyond float32.
    """
    part = np.asarray(part)
    if part.dtype.itemsize > 4:
        with np.errstate(over="ignore"):
            part = part.astype(np.float32)
    part = part.astype(part.dtype.newbyteorder("="), copy=False)
    if part.dtype.kind in "iu":
        return part
    good = np.isfinite(part).all(axis=tuple(range(1, part.ndim)))
    if not good.all():
        row = offset + int(np.argmin(good))
        raise InputError(f"row {row} of {what} holds NaN or Inf; remove such rows or mend them")
    return part


def codes(values: Array, num_columns: int) -> Array:
    """Returns `values` as an array, checked to be codes [N, m] or [m], 1 <= m <= `num_columns`.

    Raises:
      InputError: not integers, another rank, no columns or more than the model's codes have.
    """
    if not isinstance(values, jax.Array | np.ndarray):
        values = np.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise InputError(f"codes have dtype {values.dtype}; they must be integers")
    if values.ndim not in (1, 2):
        raise InputError(f"codes have shape {values.shape}; expected [N, m] or one code [m]")
    if not 1 <= values.shape[-1] <= num_columns:
        raise InputError(
            f"codes have {values.shape[-1]} columns; the model's have {num_columns}, so 1 to "
            f"{num_columns} can be decoded"
        )
    return values


def codes_below(
    codebook_size: int | tuple[int, ...], part: np.ndarray, offset: int = 0
) -> np.ndarray:
    """Returns codes [N, m] as int32, checked to be in 0..K-1; row `offset` is the first.

    Args:
      codebook_size: K, or that of each column.
      part: the codes.
      offset: their first row's number, for the message.

    Raises:
      InputError: names the first bad row and its code.
    """
    sizes = np.broadcast_to(np.atleast_1d(codebook_size)[: part.shape[1]], part.shape)
    bad = (part < 0) | (part >= sizes)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise InputError(
            f"code {part[row, column]} in row {offset + row}, column {column} is outside "
            f"0..{sizes[row, column] - 1}; these codes belong to another model"
        )
    return part.astype(np.int32)
