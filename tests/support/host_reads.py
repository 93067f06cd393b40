"""Which arrays of JAX the host reads."""

from typing import Any

import jax
import numpy as np
import pytest


def noted(patch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Their shapes, which are added to the list while `patch` lasts."""
    shapes: list[tuple[int, ...]] = []
    get, convert = jax.device_get, np.asarray

    def read(x: Any, *options: Any, **further: Any) -> Any:
        if isinstance(x, jax.Array):
            shapes.append(x.shape)
            return get(x)
        return convert(x, *options, **further)

    patch.setattr(jax, "device_get", read)
    patch.setattr(np, "asarray", read)
    return shapes
