"""Squared Euclidean distances and who is nearest: the only place where they are computed."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

GROUP = 8  # scores whose least is looked at first
GROUPED = 64  # times as many scores as are looked for: then two stages are faster on CPUs


def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """`x @ w`, [..., E] of x [..., D] and w [D, E].

    Computed in the dtype of `w`, accumulated and returned in float32; in bfloat16 so are the two
    products of its gradient. Accelerators round float32 products to fewer bits by default; codes
    must not depend on that.
    """
    if w.dtype == jnp.bfloat16:
        return _bfloat16(x.astype(w.dtype), w)
    return jnp.matmul(
        x.astype(w.dtype), w, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


@jax.custom_vjp
def _bfloat16(x: jax.Array, w: jax.Array) -> jax.Array:
    """JAX's own gradient of this would multiply in float32, which is the dtype of the result."""
    return _contract(x, w, (-1,), (0,))


def _forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _bfloat16(x, w), (x, w)


def _backward(
    kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = kept
    gradient, rows = gradient.astype(w.dtype), tuple(range(x.ndim - 1))
    of_x, of_w = _contract(gradient, w, (-1,), (1,)), _contract(x, gradient, rows, rows)
    return of_x.astype(x.dtype), of_w.astype(w.dtype)


_bfloat16.defvjp(_forward, _backward)


def _contract(
    a: jax.Array, b: jax.Array, axes_a: tuple[int, ...], axes_b: tuple[int, ...]
) -> jax.Array:
    """The sum over axes of products of `a` and `b`, accumulated in float32."""
    return jnp.tensordot(a, b, (axes_a, axes_b), preferred_element_type=jnp.float32)


def along_last(v: jax.Array, x: jax.Array) -> jax.Array:
    """`v` [D] as [1, ..., D], to go with `x` [..., D] where ranks must not be promoted silently."""
    return jnp.expand_dims(v, range(x.ndim - 1))


def squared_distances(x: jax.Array, codebook: jax.Array) -> jax.Array:
    """Distances of vectors `x` [..., D] to the codewords [K, D], as one matrix product.

    The product is computed in the dtype of the codewords, the rest in float32.

    Returns:
      ||x - c||^2 as |x|^2 - 2 x.c + |c|^2, [..., K] float32.
    """
    norms = along_last(jnp.sum(jnp.square(codebook.astype(jnp.float32)), axis=-1), x)
    products = matmul(x, codebook.T)
    return jnp.sum(jnp.square(x), axis=-1, keepdims=True) - 2.0 * products + norms


def nearest(x: jax.Array, codebook: jax.Array, block: int = 4096) -> tuple[jax.Array, jax.Array]:
    """The codeword of [K, D] nearest to each vector [N, D], for any K in bounded memory.

    Returns:
      Squared distances [N] float32 and indices [N] int32, ties to the first.
    """
    size = codebook.shape[0]
    block = min(block, size)
    numbers = jnp.arange(-(-size // block), dtype=jnp.int32)
    starts = jnp.minimum(numbers * block, size - block)  # the last overlaps
    within_block = jnp.arange(block, dtype=jnp.int32)[None]

    def within(start: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores = squared_distances(x, lax.dynamic_slice_in_dim(codebook, start, block))
        least = jnp.min(scores, axis=-1)
        places = jnp.where(scores == least[:, None], within_block, block - 1)
        return least, start + jnp.min(places, axis=-1)  # on CPUs faster than argmin

    def body(best: tuple[jax.Array, jax.Array], start: jax.Array) -> tuple[Any, None]:
        found = within(start)
        better = found[0] < best[0]
        return jax.tree.map(lambda new, old: jnp.where(better, new, old), found, best), None

    return lax.scan(body, within(starts[0]), starts[1:])[0]


def smallest(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` smallest of `scores` [..., K] in rising order, ties to the first.

    Where K is much larger than `count`, they are looked for in two stages, except on TPUs, which
    have an operation for this and gather slowly. The result is the same, ties included.

    Returns:
      Values [..., count] and indices [..., count] int32.
    """
    if count == 1:
        index = jnp.argmin(scores, axis=-1, keepdims=True).astype(jnp.int32)
        return jnp.take_along_axis(scores, index, axis=-1), index
    at_once = functools.partial(_sorted_smallest, count=count)
    if scores.shape[-1] < GROUPED * count or scores.shape[-1] % GROUP:
        return at_once(scores)
    staged = functools.partial(_staged_smallest, count=count)
    return lax.platform_dependent(scores, tpu=at_once, default=staged)


def _sorted_smallest(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    values, index = lax.top_k(-scores, count)
    return -values, index


def _staged_smallest(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The same, by the least of each group of neighbors first.

    The `count` smallest lie in the `count` groups whose least are smallest: each of these groups
    holds a score that precedes all of another group. Groups are then taken in their own order, so
    that ties go to the first.
    """
    groups = scores.reshape(*scores.shape[:-1], -1, GROUP)
    chosen = jnp.sort(_sorted_smallest(jnp.min(groups, axis=-1), count)[1], axis=-1)
    kept = jnp.take_along_axis(groups, chosen[..., None], axis=-2)
    values, place = _sorted_smallest(kept.reshape(*scores.shape[:-1], -1), count)
    group, within = jnp.divmod(place, GROUP)
    return values, jnp.take_along_axis(chosen, group, axis=-1) * GROUP + within
