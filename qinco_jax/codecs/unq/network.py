"""A residual network with batch normalization."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from qinco_jax.quantizers.distances import along_last, matmul

MOMENTUM, EPSILON = 0.99, 1e-5


@flax.struct.dataclass
class Network:
    """A network from [N, I] to [N, O]; `norm` is batch normalization, then relu.

        z = norm_1(x W_1);   z = z + norm_2(z W_2);   y = x S + b + z W_3

    Attributes:
      skip: S [I, O].
      bias: b [O].
      first: W_1 [I, H].
      second: W_2 [H, H].
      last: W_3 [H, O].
      gain: [2, H], of the normalizations.
      shift: [2, H].
      mean: [2, H], running statistics, used outside training.
      variance: [2, H].
    """

    skip: jax.Array
    bias: jax.Array
    first: jax.Array
    second: jax.Array
    last: jax.Array
    gain: jax.Array
    shift: jax.Array
    mean: jax.Array
    variance: jax.Array


def init(key: jax.Array, skip: jax.Array, bias: jax.Array, hidden_dim: int) -> Network:
    """The untrained network x S + b for S [I, O] and b [O]: W_3 = 0, the rest is He-uniform."""
    keys, (inputs, outputs) = jax.random.split(key), skip.shape
    he_uniform = jax.nn.initializers.he_uniform()
    zeros, ones = jnp.zeros((2, hidden_dim)), jnp.ones((2, hidden_dim))
    return Network(
        skip, bias,
        first=he_uniform(keys[0], (inputs, hidden_dim)),
        second=he_uniform(keys[1], (hidden_dim, hidden_dim)),
        last=jnp.zeros((hidden_dim, outputs)),
        gain=ones, shift=zeros, mean=zeros, variance=ones,
    )  # fmt: skip


def apply(net: Network, x: jax.Array, training: bool) -> tuple[jax.Array, Network]:
    """Applies the network to `x` [N, I].

    Args:
      net: from I to O dimensions.
      x: [N, I] float32.
      training: normalize by the batch's statistics, not by the running ones.

    Returns:
      [N, O] float32, and the network, with updated running statistics if `training`.
    """
    z, statistics = jnp.zeros((), jnp.float32), []
    for layer, weights in enumerate((net.first, net.second)):
        linear = matmul(z if layer else x, weights)
        mean, variance = net.mean[layer], net.variance[layer]
        if training:
            mean, variance = jnp.mean(linear, axis=0), jnp.var(linear, axis=0)
        statistics.append((mean, variance))
        slope = net.gain[layer] * lax.rsqrt(variance + EPSILON)
        z = z + jax.nn.relu((linear - mean[None]) * slope[None] + net.shift[layer][None])
    y = matmul(x, net.skip) + along_last(net.bias, x) + matmul(z, net.last)
    if not training:
        return y, net
    new = lax.stop_gradient([jnp.stack(values) for values in zip(*statistics, strict=True)])
    moved = [
        MOMENTUM * old + (1 - MOMENTUM) * value
        for old, value in zip((net.mean, net.variance), new, strict=True)
    ]
    return y, dataclasses.replace(net, mean=moved[0], variance=moved[1])
