"""Bytes that a model takes beside its codes, and a smaller network where they are many."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax

from qinco_jax.config import QincoConfig
from qinco_jax.models import disk

NARROWEST = 16  # E and H


def size(model: Any) -> int:
    """Bytes of a pytree's arrays, or of their shapes: the codebooks and networks of a model."""
    leaves = jax.tree.leaves(model)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def size_of(config: QincoConfig) -> int:
    """Bytes of the model of a config, whose `dim` is set."""
    return size(disk.abstract(config))


def smaller(config: QincoConfig, most: int) -> dict[str, Any]:
    """Settings of the largest narrower network whose model takes at most so many bytes.

    E and H are halved together, with one residual block. Where none is small enough, it is the
    narrowest; empty if the config has that or a narrower one.

    Args:
      config: its `dim` is set.
      most: bytes.
    """
    found: dict[str, Any] = {}
    for found in _narrower(config):
        if size_of(dataclasses.replace(config, **found)) <= most:
            return found
    return found


def _narrower(config: QincoConfig) -> Iterator[dict[str, Any]]:
    """Settings of ever smaller networks."""
    part = config.part
    assert part.dim is not None
    width = (part.embed_dim or part.dim) if config.has_projections else 0
    hidden = config.hidden_dim
    blocks = {"num_blocks": 1} if config.num_blocks > 1 else {}
    if blocks:
        yield blocks
    while max(width, hidden) > NARROWEST:
        width, hidden = (min(each, max(NARROWEST, each // 2)) for each in (width, hidden))
        embed = {"embed_dim": width} if width else {}
        yield {**embed, "hidden_dim": hidden, **blocks}
