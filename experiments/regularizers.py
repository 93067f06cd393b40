"""Dropout and noise in the network while training, which `few_rows.py` tries."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import qinco_jax as qj
from qinco_jax.quantizers import network, qinco
from qinco_jax.training import step

REGULARIZERS = {
    "none": {},
    **{f"dropout {share:g}": {"dropout": share} for share in (0.05, 0.1, 0.2)},
    **{f"noise {size:g}": {"noise": size} for size in (0.1, 0.3, 1.0)},
}


def regularized(name, start, x):
    """A context in which training uses a regularizer.

    Args:
      name: in `REGULARIZERS`.
      start: the model that training starts from, of form "qinco2" without a coarse codebook.
      x: [N, D] vectors, on which the residuals that `start` leaves are measured.
    """
    how = REGULARIZERS[name]
    if "noise" in how:
        how = {"noise": np.float32(how["noise"]) * residual_sizes(start, x)}
    jax.clear_caches()  # a compiled `train_step` keeps the loss that it was compiled with
    changed = functools.partial(reconstructions, **how) if how else qinco.reconstructions
    return mock.patch.object(step.qinco, "reconstructions", changed)


def residual_sizes(model, x):
    """Root mean square, over rows and dimensions, of what steps 1 to M - 1 leave over: [M - 1]."""
    codes = np.asarray(qj.encode(model, x))
    prefixes = (qj.prefix(model, count) for count in range(1, codes.shape[1]))
    left = (x - np.asarray(qj.decode(part, codes[:, : part.num_steps])) for part in prefixes)
    return np.float32([np.sqrt(np.square(part).mean()) for part in left]) / np.float32(model.scale)


def reconstructions(model, codes, noise=None, dropout=0.0):
    """`qinco.reconstructions` where contexts are noisy and hidden units are left out at random.

    Args:
      model: of form "qinco2", of M steps.
      codes: [N, M].
      noise: [M - 1], standard deviation of what is added to each step's context, in model space.
      dropout: share of the hidden units that a row does without.
    """
    columns = codes.astype(jnp.int32).T
    first = model.codebook[columns[0]]
    key = jax.random.key(lax.bitcast_convert_type(jnp.sum(first), jnp.uint32))  # batches differ
    keys = jax.random.split(key, model.num_steps - 1)
    sizes = jnp.zeros(model.num_steps - 1) if noise is None else jnp.asarray(noise)

    def body(x_hat, inputs):
        own, index, key, size = inputs
        codeword = own.codebook[index]
        noise_key, *unit_keys = jax.random.split(key, 1 + len(own.up))
        context = x_hat + size * jax.random.normal(noise_key, x_hat.shape)
        z = network.of_codeword(own, codeword) + network.of_context(own, context)
        for up, down, unit_key in zip(own.up, own.down, unit_keys, strict=True):
            hidden = jax.nn.relu(z @ up)
            kept = jax.random.bernoulli(unit_key, 1 - dropout, hidden.shape)
            z = z + jnp.where(kept, hidden / (1 - dropout), 0) @ down
        output = z if own.proj_out is None else z @ own.proj_out
        x_hat = x_hat + network.implicit("qinco2", codeword, output)
        return x_hat, x_hat

    _, rest = lax.scan(body, first, (model.steps, columns[1:], keys, sizes))
    return jnp.concatenate([first[None], rest])
