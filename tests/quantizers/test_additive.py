"""The additive decoder is the least-squares fit, in one block or many."""

import numpy as np
import pytest

import qinco_jax as qj
from qinco_jax.quantizers import additive

RNG = np.random.default_rng(0)
CODES = RNG.integers(0, 10, size=(500, 3))  # codewords 10 and 11 do not occur
TARGETS = np.float32(RNG.normal(size=(500, 4)) + CODES[:, :1] + 50)


def by_lstsq(codes: np.ndarray, targets: np.ndarray, size: int) -> np.ndarray:
    """Tables [C, K, D] of the same rows, each table row drawn to the mean by one more vector."""
    count, columns = codes.shape
    chosen = np.zeros((count, columns, size))
    np.put_along_axis(chosen, codes[:, :, None], 1, axis=2)
    rows = np.concatenate([chosen.reshape(count, -1), np.eye(columns * size)])
    mean = targets.mean(axis=0, dtype=np.float64)
    goals = np.concatenate([targets - mean, np.zeros((columns * size, targets.shape[1]))])
    found = np.linalg.lstsq(rows, goals)[0].reshape(columns, size, -1)
    found[0] += mean
    return found


@pytest.mark.parametrize("block", [500, 64])
def test_tables_are_those_of_least_squares(block: int) -> None:
    blocks = [(CODES[b : b + block], TARGETS[b : b + block]) for b in range(0, 500, block)]
    tables = additive.fit(iter(blocks), 3, 12, 4)
    assert (tables.dtype, tables.shape) == (np.float32, (3, 12, 4))
    np.testing.assert_allclose(tables, by_lstsq(CODES, TARGETS, 12), rtol=1e-4, atol=1e-3)
    sums = sum(np.float64(table)[column] for table, column in zip(tables, CODES.T, strict=True))
    np.testing.assert_allclose(additive.decode(tables, CODES), sums, rtol=1e-6)


def test_codes_that_never_change_give_the_mean() -> None:
    tables = additive.fit([(np.zeros_like(CODES), TARGETS)], 3, 2, 4)
    found = additive.decode(tables, np.zeros_like(CODES[:1]))
    np.testing.assert_allclose(found[0], TARGETS.mean(axis=0), rtol=1e-6)


def test_tables_that_are_too_large_are_refused() -> None:
    with pytest.raises(qj.InputError, match="5 columns of 4096 codewords have 20480 table rows"):
        additive.fit([], 5, 4096, 4)
