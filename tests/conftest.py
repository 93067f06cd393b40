"""Settings of all tests: JAX promotes nothing silently; setup.cfg makes warnings errors."""

import hypothesis
import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Every example of another size compiles anew. Search longer with --hypothesis-profile=thorough.
options = {"deadline": None, "derandomize": True, "database": None}
hypothesis.settings.register_profile("modest", max_examples=8, **options)
hypothesis.settings.register_profile("thorough", max_examples=200, **options)
hypothesis.settings.load_profile("modest")
