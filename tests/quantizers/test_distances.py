"""The smallest of many scores: the same in two stages as by sorting all, wherever they lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qinco_jax.quantizers.distances import GROUP, GROUPED, smallest

COUNT, SIZE = 6, 6 * GROUPED
RNG = np.random.default_rng(0)
SCORES = {
    "anywhere": RNG.normal(size=(40, SIZE)),
    "all in one place": np.abs(np.arange(SIZE) - RNG.integers(SIZE, size=(40, 1))),
    "each in a group of its own": RNG.permuted(np.tile(np.arange(SIZE) % GROUP, (40, 1)), axis=1),
    "rising": np.tile(np.arange(SIZE), (2, 1)),
    "falling": -np.tile(np.arange(SIZE), (2, 1)),
    "ties": RNG.integers(3, size=(40, SIZE)),
    "fewer than asked for": np.where(RNG.random((40, SIZE)) < 4 / SIZE, 1.0, np.inf),
    "none": np.full((2, SIZE), np.inf),
}


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("size", [SIZE, SIZE - 1], ids=["in two stages", "at once"])
def test_the_smallest_are_those_of_a_stable_sort(scores: np.ndarray, size: int) -> None:
    scores = np.float32(scores[:, :size])
    expected = np.argsort(np.float64(scores), axis=1, kind="stable")[:, :COUNT]
    for find in (lambda s: smallest(s, COUNT), jax.vmap(lambda s: smallest(s, COUNT))):
        values, index = jax.jit(find)(jnp.asarray(scores))
        np.testing.assert_array_equal(index, expected)
        np.testing.assert_array_equal(values, np.take_along_axis(scores, expected, axis=1))
        assert index.dtype == jnp.int32
