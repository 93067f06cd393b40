"""Checks of rows on their devices and on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qinco_jax.errors import InputError
from qinco_jax.vectors import checks


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("count", [8, 5000])  # of many numbers XLA's minimum loses NaN
def test_one_bad_number_on_a_device_is_found(count: int, dtype: jnp.dtype) -> None:
    x = np.random.default_rng(0).normal(size=(count, 16))
    for bad in (np.nan, np.inf, -np.inf):
        x[count - 3, 5] = bad
        parts = [(jax.device_put(x.astype(dtype)), 100)]
        with (
            pytest.raises(InputError, match=f"row {100 + count - 3} of .* NaN or Inf"),
            checks.where_they_lie(checks.finite, parts),
        ):
            pass


def test_64_bit_numbers_must_be_themselves_in_float32() -> None:
    x = np.array([[0.0, 0.0], [1e-200, 1.0], [3e38, -1.0]])
    np.testing.assert_array_equal(checks.finite(x), np.float32(x))  # lost beside others: no matter
    for bad, message in (
        (1e300, "beyond float32"),
        (1e-200, "zero in float32"),
        (np.inf, "NaN or"),
    ):
        with pytest.raises(InputError, match=f"row 8 of x holds .*{message}"):
            checks.finite(np.array([[1.0, 2.0], [bad, 0.0]]), 7, "x")


def test_integers_have_a_limit_too() -> None:
    x = np.array([[3, -(2**31)]], np.int32)
    np.testing.assert_array_equal(checks.finite(x), x)
    with pytest.raises(InputError, match=r"row 0 of the vectors holds 2\.14748e\+09, .* 1\.7e\+07"):
        checks.finite(x, limit=2.0**24)
