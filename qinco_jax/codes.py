"""Codes: their dtype, their packing into bytes, and files of them."""

import jax.numpy as jnp


def code_dtype(codebook_size: int) -> jnp.dtype:
    """uint8 for K <= 256, else uint16."""
    return jnp.dtype(jnp.uint8 if codebook_size <= 256 else jnp.uint16)
