"""QINCo models to and from `faiss.QINCo`.

Faiss stores linear weights as [out, in]; a step's W acts on [codeword; context], in that order.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax import optional
from qinco_jax.config import QincoConfig
from qinco_jax.errors import InputError
from qinco_jax.quantizers import precision
from qinco_jax.quantizers.network import Step
from qinco_jax.quantizers.product import Product
from qinco_jax.quantizers.qinco import Qinco


def to_faiss(model: Qinco) -> Any:
    """A `faiss.QINCo` with the same codes and reconstructions as a model.

    Its codes are those of `encode(model, x, num_candidates=K, beam_size=1)`, except where two
    codewords tie up to rounding: Faiss has no pre-selection and no beam. It decodes the codes of
    any search. The model's mean, scale and rotation are folded into its weights (`folded`), and the
    factors of form "qinco-lr" are multiplied.

    To search, with K = 2^nbits codewords, put it into an index:

        index = faiss.IndexQINCo(D, M, nbits, L, H)
        index.qinco, index.is_trained = codec, True  # it takes a copy
        index.add_sa_codes(qinco_jax.pack(qinco_jax.encode(model, x), K))

    `qinco_jax.pack` and `qinco_jax.unpack` have its layout, so `index.sa_decode` takes the output
    of `pack`, and `unpack` that of `index.sa_encode`. Faiss decodes whole codes only: for their
    first m columns export `prefix(model, m)`. It searches by decoding every code, and cannot write
    a QINCo to a file: keep the model. Its `encode` holds all candidates of all vectors in memory,
    0.9 MB a vector at K = H = 256 and D = 128: encode here, or a few hundred vectors at a time.

    Args:
      model: of form "qinco" or "qinco-lr", without a coarse codebook.

    Raises:
      InputError: Faiss is not installed or cannot run the model; the message names alternatives.
    """
    _require_exportable(model)
    plain = jax.tree.map(np.asarray, folded(model))
    faiss = optional.faiss("models for Faiss")
    sizes, steps = plain.config, plain.steps
    codec = faiss.QINCo(
        sizes.dim, sizes.codebook_size, sizes.num_blocks, sizes.num_steps, sizes.hidden_dim
    )
    codec.codebook0.from_array(plain.codebook)
    for m in range(sizes.num_steps - 1):
        step = codec.get_step(m)
        step.codebook.from_array(steps.codebook[m])
        step.MLPconcat.from_array(np.ascontiguousarray(steps.concat[m].T), steps.bias[m])
        for i in range(sizes.num_blocks):
            block = step.get_residual_block(i)
            block.linear1.from_array(np.ascontiguousarray(steps.up[m, i].T))
            block.linear2.from_array(np.ascontiguousarray(steps.down[m, i].T))
    return codec


@precision.in_32_bits
def from_faiss(codec: Any) -> Qinco:
    """The model of a `faiss.QINCo` or a `faiss.IndexQINCo`, with the same codes.

    Args:
      codec: of M steps of K codewords; its weights are copied.

    Returns:
      A model of form "qinco" with mean 0 and scale 1, which encodes as Faiss does: greedily, with
      all K codewords sent through the network.

    Raises:
      InputError: Faiss is not installed, or `codec` is something else or has invalid sizes or
        biases.
    """
    faiss = optional.faiss("models for Faiss")
    network = codec.qinco if isinstance(codec, faiss.IndexQINCo) else codec
    if not isinstance(network, faiss.QINCo):
        raise InputError(f"got {type(codec).__name__}; pass a faiss.QINCo or a faiss.IndexQINCo")
    dim, codebook_size, hidden_dim, num_blocks = network.d, network.K, network.h, network.L
    QincoConfig(  # raises if a size is out of range
        dim=dim, num_steps=network.M, codebook_size=codebook_size, hidden_dim=hidden_dim,
        num_blocks=num_blocks, num_candidates=None, form="qinco",
    )  # fmt: skip
    steps = [network.get_step(m) for m in range(network.M - 1)]
    blocks = [[step.get_residual_block(i) for i in range(num_blocks)] for step in steps]

    def array(vector: Any, *shape: int) -> np.ndarray:
        found = faiss.vector_to_array(vector)
        if found.size != math.prod(shape):
            raise InputError(
                f"this faiss.QINCo has {found.size} weights where its sizes need an array of shape "
                f"{shape}; build it with the sizes of its weights"
            )
        return found.reshape(shape)

    def matrix(linear: Any, num_in: int, num_out: int, num_biases: int) -> np.ndarray:
        array(linear.bias, num_biases)
        return array(linear.weight, num_out, num_in).T

    def stacked(of_steps: list[Any], *shape: int) -> jax.Array:
        return jnp.asarray(np.reshape(of_steps, (len(steps), *shape)), jnp.float32)

    codebooks = [array(step.codebook.weight, codebook_size, dim) for step in steps]
    concat = [matrix(step.MLPconcat, 2 * dim, dim, dim) for step in steps]
    bias = [array(step.MLPconcat.bias, dim) for step in steps]
    up = [[matrix(block.linear1, dim, hidden_dim, 0) for block in row] for row in blocks]
    down = [[matrix(block.linear2, hidden_dim, dim, 0) for block in row] for row in blocks]
    return Qinco.of_arrays(
        jnp.zeros(dim),
        jnp.ones(()),
        jnp.asarray(array(network.codebook0.weight, codebook_size, dim)),
        Step(
            codebook=stacked(codebooks, codebook_size, dim),
            preselect=None,
            proj_in=None,
            concat=stacked(concat, 2 * dim, dim),
            bias=stacked(bias, dim),
            up=stacked(up, num_blocks, dim, hidden_dim),
            down=stacked(down, num_blocks, hidden_dim, dim),
            proj_out=None,
        ),
        form="qinco",
        center=False,
    )


def _require_exportable(model: Qinco) -> None:
    """Refuses a model that a faiss.QINCo cannot run.

    Raises:
      InputError: names the reason and the alternatives.
    """
    if isinstance(model, Product):
        reason = "a product is several codecs: export each of model.parts for its sub-vectors"
    elif not isinstance(model, Qinco):
        reason = f"got {type(model).__name__}; pass a Qinco of form 'qinco' or 'qinco-lr'"
    elif model.config.form == "qinco2":
        reason = "faiss.QINCo has the network of forms 'qinco' and 'qinco-lr', not of 'qinco2'"
    elif model.ivf:
        reason = "faiss.QINCo has no coarse codebook: export a model without one"
    else:
        return
    raise InputError(
        f"{reason}; or put decoded vectors into any Faiss index, or fit additive tables to the "
        "codes"
    )


def folded(model: Qinco) -> Qinco:
    """The same codec with mean 0, scale 1 and no rotation: its network sees the vectors themselves.

    Up to rounding it has the same codes, by any search, and the same reconstructions. This holds
    because the network without b is positively homogeneous, f(s c, s x_hat) = s f(c, x_hat) for
    s > 0, and because its linear maps absorb a rotation R [D, D] of the space:

        c' = s c R^T, for step 1 plus the mean;  W_x' = R W_x;  b' = s b - mean W_x'

    With projections, P_in' = R P_in and P_out' = P_out R^T. Without, z lives in that space as well:
    U' = R U, V' = V R^T, W_z' = R W_z R^T, and W_x' and b' have R^T on their right. Computed in
    float64.

    Args:
      model: of any form and search, with or without a coarse codebook.

    Returns:
      The model in float32, not centered or rotated, otherwise with the same settings; but form
      "qinco-lr" becomes "qinco", its W multiplied out, since b is no longer 0.

    Raises:
      InputError: the model has `unit_norm`; a network cannot divide by a length.
    """
    if model.config.unit_norm:
        raise InputError(
            "a model with unit_norm divides vectors by their length, which a network cannot do; "
            "set unit_norm=False in its config, and pass unit vectors x / |x| to the result"
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
