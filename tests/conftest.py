"""Settings of all tests. Warnings are errors by setup.cfg."""

from collections.abc import Iterator

import hypothesis
import jax
import pytest

# Compiling takes most of the tests' time; slower code from a quicker compiler is still the same.
jax.config.update("jax_disable_most_optimizations", True)

# Every example of another size compiles anew. Search longer with --hypothesis-profile=thorough.
options = {"deadline": None, "derandomize": True, "database": None}
hypothesis.settings.register_profile("modest", max_examples=8, **options)
hypothesis.settings.register_profile("thorough", max_examples=200, **options)
hypothesis.settings.load_profile("modest")


@pytest.fixture
def strict_dtypes() -> Iterator[None]:
    """No silent mixing of dtypes. Not for training: Optax itself mixes integers and floats."""
    with jax.numpy_dtype_promotion("strict"):
        yield
