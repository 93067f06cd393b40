"""Checks of input, each with a one-sentence message that says how to fix it."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.vectors.stored import Rows, Stored, Vectors, spans

Array = jax.Array | np.ndarray
FLOAT32_MAX = float(np.finfo(np.float32).max)
SEARCHED_ROWS = 2**16  # at once, for one that is refused

Check = Callable[[np.ndarray, int], np.ndarray]
"""Takes rows [N, ...] and the number of the first; refuses some, returns what to compute with."""


def array(x: Any, what: str) -> Any:
    """An array or a `Stored` as it is, and what else there is as a NumPy array.

    Raises:
      InputError: lists of different lengths, a masked array, or a whole data set.
    """
    if isinstance(x, np.ma.MaskedArray):
        raise InputError(
            f"the mask of {what} would be ignored; give a plain array without what is masked"
        )
    if isinstance(x, jax.Array | np.ndarray | Stored):
        return x
    if hasattr(x, "train") and hasattr(x, "database"):
        raise InputError(f"{what} must be vectors, not a data set; give a part of it, its .train")
    try:
        return np.asarray(x)
    except ValueError as error:
        raise InputError(
            f"{what} must be an array, but its parts have different lengths; make them equal"
        ) from error


@overload
def vectors(x: Array, dim: int | None = None, what: str = "x") -> Array: ...
@overload
def vectors(x: Vectors, dim: int | None = None, what: str = "x") -> Vectors: ...
def vectors(x: Vectors, dim: int | None = None, what: str = "x") -> Vectors:
    """Returns `x` as an array after checking that it holds real vectors [N, D] or [D].

    A `Stored` is not read.

    Raises:
      InputError: `x` is not a plain array of numbers, or its rank is wrong, or its D is not `dim`.
    """
    x = array(x, what)
    has = "have" if what.startswith("the ") and what.endswith("s") else "has"
    real = jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)
    if not real:
        raise InputError(f"{what} {has} dtype {x.dtype}; vectors must be integers or floats")
    if x.ndim not in (1, 2):
        raise InputError(f"{what} {has} shape {x.shape}; expected [N, D] or one vector [D]")
    if dim is not None and x.shape[-1] != dim:
        raise InputError(
            f"{what} {has} {x.shape[-1]} dimensions a vector, but the model has {dim}; use other "
            "vectors or another model"
        )
    return x


def finite(
    part: Rows, offset: int = 0, what: str = "the vectors", limit: float = FLOAT32_MAX
) -> np.ndarray:
    """Reads rows and checks them for NaN and Inf; 64-bit numbers become float32.

    Args:
      part: [N, D] rows of `what`.
      offset: the index of the first of them in `what`.
      what: the name of the whole, for the message.
      limit: the greatest magnitude that can be computed with.

    Raises:
      InputError: a row holds NaN, Inf or a number beyond float32 or `limit`; the message names the
        first.
    """
    part = np.asarray(part)
    if part.dtype.itemsize > 4:
        with np.errstate(over="ignore"):
            part = part.astype(np.float32)
    part = part.astype(part.dtype.newbyteorder("="), copy=False)
    if part.dtype.kind in "iu":
        return part
    values = part.astype(np.float32, copy=False)  # NumPy is slow to compare 16-bit floats
    # NaN is the least and the greatest of numbers that hold one.
    if part.size == 0 or -limit <= values.min() <= values.max() <= limit:
        return part
    largest = np.abs(values).max(axis=tuple(range(1, part.ndim)))
    row = int(np.argmin(largest <= limit))
    if np.isfinite(largest).all():
        raise InputError(
            f"row {offset + row} of {what} holds {largest[row]:g}, and the model computes with "
            f"{limit:g} at most; scale the vectors like those it was trained on"
        )
    row = int(np.argmin(np.isfinite(largest)))
    raise InputError(f"row {offset + row} of {what} holds NaN or Inf; remove or fix such rows")


@contextlib.contextmanager
def where_they_lie(check: Check | None, parts: Sequence[tuple[jax.Array, int]]) -> Iterator[None]:
    """Checks rows on their devices, meanwhile; only extremes come to the host, and bad rows.

    Args:
      check: refuses rows with a number outside of an interval, which may depend on its column.
      parts: rows [N, ...], each on one device, and the number of the first of them.

    Raises:
      InputError: `check` refuses rows.
    """
    if check is None:
        yield
        return
    parts = [(x, offset) for x, offset in parts if x.size]
    extremes = [_extremes(x) for x, _ in parts]
    yield
    for (x, offset), found in zip(parts, extremes, strict=True):
        if _refuses(check, found):
            for span in spans(len(x), SEARCHED_ROWS):
                begin, size = span.start, span.stop - span.start
                part = _rows(x, jax.device_put(np.int32(begin), x.sharding), size)
                if _refuses(check, _extremes(part)):
                    check(jax.device_get(part), offset + begin)


def _refuses(check: Check, extremes: jax.Array) -> bool:
    try:
        check(jax.device_get(extremes), 0)
    except InputError:
        return True
    return False


@functools.partial(jax.jit, static_argnames="size")
def _rows(x: jax.Array, begin: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, begin, size)


@jax.jit
def _extremes(x: jax.Array) -> jax.Array:
    """The least and the greatest numbers of each column, [2, ...]; NaN where there is one."""
    return jnp.stack([jnp.min(x, axis=0), jnp.max(x, axis=0)])
