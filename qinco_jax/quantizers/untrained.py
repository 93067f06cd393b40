"""The untrained model, which encodes and decodes exactly as a residual quantizer."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from qinco_jax.config import QincoConfig
from qinco_jax.errors import InputError
from qinco_jax.quantizers import precision
from qinco_jax.quantizers.network import Step
from qinco_jax.quantizers.qinco import Qinco
from qinco_jax.quantizers.rq import RQ

DRAWN_AT_ONCE = 2**16


@precision.in_32_bits
def init(key: jax.Array, config: QincoConfig, rq: RQ, coarse: jax.Array | None = None) -> Qinco:
    """The untrained model, which encodes and decodes exactly as the residual quantizer `rq`.

    W, b and, without projections, V start at zero, P_out as well: then f = c. Of two factors of W
    the second is zero. The remaining matrices are He-uniform, V at a tenth of it.

    Args:
      key: PRNG key of the matrices.
      config: sizes and transform; M, K, D and the transform must be those of `rq`.
      rq: codebooks [M, K, D] and transform to start from.
      coarse: [K_ivf, D] centroids in model space, where `config` has them: `rq` is then
        of what they leave over.

    Raises:
      InputError: `config` and `rq` or `coarse` differ in M, K, D, K_ivf or transform.
    """
    num_steps, codebook_size, dim = rq.codebooks.shape
    config = config.for_dim(dim)
    if (num_steps, codebook_size) != (config.num_steps, config.codebook_size):
        raise InputError(
            f"the residual quantizer has {num_steps} steps of {codebook_size} codewords, the "
            f"config {config.num_steps} of {config.codebook_size}"
        )
    centroids = None if coarse is None else coarse.shape[0]
    if centroids != config.num_centroids:
        raise InputError(f"got {centroids} centroids, the config has {config.num_centroids}")
    transform = {
        "unit_norm": rq.unit_norm, "center": rq.center, "rotate": rq.rotation is not None
    }  # fmt: skip
    if transform != config.transform:
        raise InputError(
            f"the residual quantizer transforms vectors with {transform}, the config with "
            f"{config.transform}"
        )
    total = sum(map(math.prod, _drawn_shapes(config).values()))
    # A generator takes seconds to compile for each number of numbers, so that is rounded.
    size = -(-total // DRAWN_AT_ONCE) * DRAWN_AT_ONCE
    numbers = jax.random.uniform(key, (size,), jnp.float32, -1.0, 1.0)
    return _begin(numbers, config, rq, coarse)


def _drawn_shapes(config: QincoConfig) -> dict[str, tuple[int, ...]]:
    """The matrices [..., I, O] of all steps with a network that start as random numbers."""
    dim, embed_dim = config.dim, config.embed_dim
    assert dim is not None and embed_dim is not None
    num_steps = config.num_steps - (config.num_centroids is None)
    shapes: dict[str, tuple[int, ...]] = {
        "up": (num_steps, config.num_blocks, embed_dim, config.hidden_dim),
        "down": (num_steps, config.num_blocks, config.hidden_dim, embed_dim),
    }
    if config.has_projections:
        shapes["proj_in"] = num_steps, dim, embed_dim
    if config.form == "qinco-lr":
        shapes["concat"] = num_steps, embed_dim + dim, config.hidden_dim
    return shapes


@functools.partial(jax.jit, static_argnames="config")
def _begin(numbers: jax.Array, config: QincoConfig, rq: RQ, coarse: jax.Array | None) -> Qinco:
    """The untrained model, in one program; numbers [R] in +-1 become its random matrices."""
    first, books = rq.codebooks[0], rq.codebooks[1:]
    if coarse is not None:
        first, books = coarse, rq.codebooks
    (rest, _, dim), embed_dim, hidden_dim = books.shape, config.embed_dim, config.hidden_dim
    assert embed_dim is not None
    drawn = _he_uniform(numbers, _drawn_shapes(config))
    projected, low_rank = config.has_projections, config.form == "qinco-lr"
    steps = Step(
        codebook=books,
        preselect=None if config.num_candidates is None else books,
        proj_in=drawn.get("proj_in"),
        concat=drawn["concat"] if low_rank else jnp.zeros((rest, embed_dim + dim, embed_dim)),
        bias=None if low_rank else jnp.zeros((rest, embed_dim)),
        up=drawn["up"],
        down=(0.1 if projected else 0.0) * drawn["down"],
        proj_out=jnp.zeros((rest, embed_dim, dim)) if projected else None,
        concat_out=jnp.zeros((rest, hidden_dim, embed_dim)) if low_rank else None,
    )
    return Qinco(rq.mean, rq.scale, first, steps, rq.rotation, config)


def _he_uniform(numbers: jax.Array, shapes: dict[str, tuple[int, ...]]) -> dict[str, jax.Array]:
    """Matrices [..., I, O] of numbers in +-sqrt(6 / I), cut from numbers [R] in +-1."""
    ends = itertools.accumulate(map(math.prod, shapes.values()))
    return {
        name: lax.slice_in_dim(numbers, end - math.prod(shape), end).reshape(shape)
        * np.float32(np.sqrt(6.0 / shape[-2]))
        for (name, shape), end in zip(shapes.items(), ends, strict=True)
    }
