"""What every way to compress vectors is: a pair of pure functions, and what they cost."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray


class Codec(NamedTuple):
    """A pair of functions that compresses vectors, and what it costs.

    Attributes:
      name: for people.
      bits: of a code.
      encode: vectors [N, D] -> codes [N, ...], integers.
      decode: codes [N, ...] -> reconstructions [N, D] float32.
      size: bytes of the codebooks and networks that both need.
      normalize: whether the reconstructions approximate x / |x|, not x.
      column_sizes: how many values each column of a code takes; `None` where they share the bits
        equally.
    """

    name: str
    bits: float
    encode: Callable[[Array], Array]
    decode: Callable[[Array], Array]
    size: int = 0
    normalize: bool = False
    column_sizes: tuple[int, ...] | None = None
