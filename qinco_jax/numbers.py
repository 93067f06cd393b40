"""Checks of the numbers and words that users give, the same for Python and the command line."""

import math
import operator
from numbers import Real
from typing import Any

import numpy as np

from qinco_jax.errors import InputError

MAX_SEED = 2**31 - 1
LONG = 60  # characters of a value that a message does not show


def integer(value: Any, name: str, least: int = 0, most: int | None = None) -> int:
    """A Python integer of any kind of integer, NumPy's included; a truth value is none.

    Raises:
      InputError: another kind of value, or one that is not in `least`..`most`.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise InputError(f"{name} must be an integer, got {shown(value)}")
    if number < least or (most is not None and number > most):
        raise InputError(f"{name} must be {_range(least, most)}, got {shown(number)}")
    return number


def seed(value: Any) -> int:
    """A seed as a Python integer.

    Raises:
      InputError: another kind of value, or not from 0 to 2^31 - 1; JAX would take the last 32 bits
        of a greater one.
    """
    return integer(value, "seed", 0, MAX_SEED)


def real(
    value: Any, name: str, least: float = 0, most: float | None = None, *, above: bool = False
) -> float:
    """A Python float of any kind of finite number, NumPy's included; a truth value is none.

    Args:
      value: the number.
      name: of it, for the message.
      least: the least that it may be.
      most: the greatest; `None` is any.
      above: whether it has to be greater than `least`.

    Raises:
      InputError: another kind of value, NaN, Inf, or one out of range.
    """
    try:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        number = float(value) if is_number else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{name} must be a finite number, got {shown(value)}")
    if number < least or (above and number == least) or (most is not None and number > most):
        raise InputError(f"{name} must be {_range(least, most, above)}, got {shown(value)}")
    return number


def truth(value: Any, name: str) -> bool:
    """A Python truth value of that or of NumPy's.

    Raises:
      InputError: another kind of value, such as 1.
    """
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be true or false, got {shown(value)}")
    return bool(value)


def parsed(value: Any) -> Any:
    """What text means: 1e6 is an integer, text that is no number stays text."""
    for kind in (int, float) if isinstance(value, str) else ():
        try:
            value = kind(value)
            break
        except ValueError:
            pass
    return int(value) if isinstance(value, float) and value.is_integer() else value


def shown(value: Any) -> str:
    """A value as a message shows it: in full if it is short, else its type."""
    if isinstance(value, int) and abs(value) >= 10**LONG:
        return "a number of very many digits"
    text = str(value) if isinstance(value, int | float | np.generic) else repr(value)
    if len(text) > LONG or "\n" in text:
        return f"an object of type {type(value).__name__}"
    return text


def _range(least: float, most: float | None, above: bool = False) -> str:
    if most is None:
        return f"above {least:,}" if above else f"at least {least:,}"
    return f"above {least:,} and at most {most:,}" if above else f"{least:,} to {most:,}"
