"""The interface of all codecs: a pair of pure functions, made by training."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from qinco_jax.training.loop import Advance
from qinco_jax.vectors.stored import Vectors

Array = jax.Array | np.ndarray


class Codec(NamedTuple):
    """A pair of functions that compresses vectors, and what it costs.

    Attributes:
      name: for display.
      bits: of a code.
      encode: vectors [N, D] -> codes [N, ...], integers.
      decode: codes [N, ...] -> reconstructions [N, D] float32.
      size: bytes of the codebooks and networks in float32, those of the encoder too.
      unit_norm: whether the reconstructions approximate x / |x|, not x.
      column_sizes: how many values each column of a code takes; `None` if all columns have the
        same number of bits.
    """

    name: str
    bits: float
    encode: Callable[[Array], Array]
    decode: Callable[[Array], Array]
    size: int = 0
    unit_norm: bool = False
    column_sizes: tuple[int, ...] | None = None


AtRate = Callable[[float], Codec]


class Contender(NamedTuple):
    """A codec to train once and to measure at one rate or several.

    Attributes:
      codec: its specification, such as "small@16:A=4:B=8".
      model: the specification without search options, "small@16".
      bytes: the rate that it is trained for.
      rates: bytes at which it is measured, at most `bytes`.
      facts: further fields of its rows; json.
      train: (vectors, seed, folder for checkpoints, progress) -> a function from bytes to codec.
    """

    codec: str
    model: str
    bytes: float
    rates: tuple[float, ...]
    facts: Mapping[str, Any]
    train: Callable[[Vectors, int, Path, Advance], AtRate]
