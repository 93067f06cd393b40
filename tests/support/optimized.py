"""The compiler's optimizations, which conftest.py turns off, for tests that compute for long."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def optimized() -> Iterator[None]:
    """What is compiled inside runs as fast as users' programs."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
