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
MODEL = "the model has"
FLOAT32_MAX = float(np.finfo(np.float32).max)
SQUARED_MAX = 1e15  # sums of squares of numbers up to here are far from float32's end
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
def vectors(x: Array, dim: int | None = None, what: str = "x", whose: str = MODEL) -> Array: ...
@overload
def vectors(x: Vectors, dim: int | None = None, what: str = "x", whose: str = MODEL) -> Vectors: ...
def vectors(x: Vectors, dim: int | None = None, what: str = "x", whose: str = MODEL) -> Vectors:
    """Returns `x` as an array after checking that it holds real vectors [N, D] or [D].

    A `Stored` is not read. The message says `whose` dimensions `dim` is.

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
        remedy = "other vectors or another model" if whose == MODEL else "vectors of one kind"
        raise InputError(
            f"{what} {has} {x.shape[-1]} dimensions a vector, but {whose} {dim}; use {remedy}"
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
      InputError: a row holds NaN, Inf, a number beyond float32 or `limit`, or nothing but numbers
        that are zero in float32; the message names the first.
    """
    part = np.asarray(part)
    if part.dtype.itemsize > 4:
        part = _narrowed(part, offset, what)
    part = part.astype(part.dtype.newbyteorder("="), copy=False)
    if part.dtype.kind in "iu":
        if np.iinfo(part.dtype).max <= limit:
            return part
        values = part
    else:
        values = part.astype(np.float32, copy=False)  # NumPy is slow to compare 16-bit floats
    # In NumPy NaN is the least and the greatest of numbers that hold one.
    if part.size == 0 or -limit <= values.min() <= values.max() <= limit:
        return part
    largest = _largest(values)
    _check_nan(largest, offset, what)
    row = int(np.argmin(largest <= limit))
    raise InputError(
        f"row {offset + row} of {what} holds {largest[row]:g}, and float32 compares distances only "
        f"up to {limit:.2g} here; scale the vectors, as a model's training vectors were"
    )


def _narrowed(part: np.ndarray, offset: int, what: str) -> np.ndarray:
    """64-bit rows as float32; refuses those that would not be themselves any more."""
    with np.errstate(over="ignore", under="ignore"):
        found = part.astype(np.float32)
    if part.dtype.kind != "f" or part.size == 0:
        return found
    beyond = np.isinf(found) & np.isfinite(part)
    vanished = ~found.any(axis=-1) & part.any(axis=-1)
    if not (beyond.any() or vanished.any()):
        return found
    largest = _largest(part)
    _check_nan(largest, offset, what)
    beyond = largest > FLOAT32_MAX
    row = int(np.argmax(beyond)) if beyond.any() else int(np.argmax(vanished))
    why = "which is beyond float32" if beyond.any() else "which is zero in float32"
    raise InputError(
        f"row {offset + row} of {what} holds {largest[row]:g}, {why}; scale the vectors to about 1"
    )


def _largest(rows: np.ndarray) -> np.ndarray:
    """The greatest magnitude in each row, [N] float64."""
    return np.abs(rows.astype(np.float64)).max(axis=tuple(range(1, rows.ndim)))


def _check_nan(largest: np.ndarray, offset: int, what: str) -> None:
    if not np.isfinite(largest).all():
        row = offset + int(np.argmin(np.isfinite(largest)))
        raise InputError(f"row {row} of {what} holds NaN or Inf; remove or fix such rows")


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
    found = jnp.stack([jnp.min(x, axis=0), jnp.max(x, axis=0)])
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return found
    # XLA's minimum of many numbers on CPUs passes over NaN.
    holds_nan = jnp.any(jnp.isnan(x), axis=0)
    return jnp.where(holds_nan[None], jnp.asarray(jnp.nan, x.dtype), found)
