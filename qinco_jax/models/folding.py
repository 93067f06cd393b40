"""A model's transform folded into its network, for programs that have networks only."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.quantizers.qinco import Qinco


def folded(model: Qinco) -> Qinco:
    """The same codec with mean 0, scale 1 and no rotation: its network sees the vectors themselves.

    Up to rounding it has the same codes, by any search, and the same reconstructions. That is exact
    because the network without b is positively homogeneous, f(s c, s x_hat) = s f(c, x_hat) for
    s > 0, and because its linear maps take up a rotation R [D, D] of the space:

        c' = s c R^T, for step 1 plus the mean;  W_x' = R W_x;  b' = s b - mean W_x'

    With projections, P_in' = R P_in and P_out' = P_out R^T. Without, z lives in that space as well:
    U' = R U, V' = V R^T, W_z' = R W_z R^T, and W_x' and b' have R^T on their right. Computed in
    float64.

    Args:
      model: of any form and search, behind a coarse codebook or not.

    Returns:
      The model in float32, not centered, else with the same settings; but form "qinco-lr" becomes
      "qinco", its W multiplied out, since b is no longer 0.

    Raises:
      InputError: the model scales vectors to unit length; no network divides by a length.
    """
    if model.config.unit_norm:
        raise InputError(
            "a model that normalizes divides vectors by their length, which no network can take "
            "over; set unit_norm=False in its config, and pass unit vectors x / |x| to the result"
        )
    form = "qinco" if model.config.form == "qinco-lr" else model.config.form
    steps = jax.tree.map(_float64, model.steps)
    mean, scale = _float64(model.mean), _float64(model.scale)
    out = np.eye(len(mean)) if model.rotation is None else _float64(model.rotation).T
    inside = out if steps.proj_in is None else np.eye(steps.up.shape[-2])  # of z
    concat = steps.concat if steps.concat_out is None else steps.concat @ steps.concat_out
    bias = np.zeros(concat.shape[-1]) if steps.bias is None else steps.bias
    of_codeword, of_context = np.split(concat, [len(inside)], axis=1)
    of_context = out.T @ of_context @ inside
    plain = dataclasses.replace(
        steps,
        codebook=scale * steps.codebook @ out,
        preselect=None if steps.preselect is None else scale * steps.preselect @ out,
        proj_in=None if steps.proj_in is None else out.T @ steps.proj_in,
        concat=np.concatenate([inside.T @ of_codeword @ inside, of_context], axis=1),
        bias=scale * bias @ inside - mean @ of_context,
        up=inside.T @ steps.up,
        down=steps.down @ inside,
        proj_out=None if steps.proj_out is None else steps.proj_out @ out,
        concat_out=None,
    )
    return dataclasses.replace(
        model,
        mean=jnp.zeros_like(model.mean),
        scale=jnp.ones_like(model.scale),
        rotation=None,
        config=dataclasses.replace(model.config, form=form, center=False, rotate=False),
        codebook=_float32(scale * _float64(model.codebook) @ out + mean),
        steps=jax.tree.map(_float32, plain),
    )


def _float64(x: jax.Array) -> np.ndarray:
    return np.asarray(x, np.float64)


def _float32(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x, jnp.float32)
