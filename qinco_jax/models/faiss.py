"""QINCo models as Faiss runs them, `faiss.QINCo`, and back.

Faiss keeps linear weights as [out, in] and a step's W on [codeword; context], in that order.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax import optional
from qinco_jax.config import QincoConfig
from qinco_jax.errors import InputError
from qinco_jax.models.folding import folded
from qinco_jax.quantizers.network import Step
from qinco_jax.quantizers.product import Product
from qinco_jax.quantizers.qinco import Qinco


def to_faiss(model: Qinco) -> Any:
    """A `faiss.QINCo` with the codes and reconstructions of a model, of the vectors themselves.

    Its codes are those of `encode(model, x, num_candidates=K, beam_size=1)`, but where two
    codewords are as good up to rounding: Faiss has no pre-selection and no beam. It decodes the
    codes of any search. The model's mean, scale and rotation go into its weights
    (`interop.folding`), and the factors of form "qinco-lr" are multiplied.

    To search, with K = 2^nbits codewords, put it into an index:

        index = faiss.IndexQINCo(D, M, nbits, L, H)
        index.qinco, index.is_trained = codec, True  # it takes a copy
        index.add_sa_codes(qinco_jax.pack(qinco_jax.encode(model, x), K))

    `qinco_jax.pack` and `qinco_jax.unpack` have its layout, so `index.sa_decode` takes what `pack`
    made, and `unpack` what `index.sa_encode` made. Faiss decodes whole codes only: for their first
    m columns export `prefix(model, m)`. It searches by decoding every code, and writes no QINCo to
    a file: keep the model. Its `encode` holds all candidates of all vectors at once, 0.9 MB a
    vector at K = H = 256 and D = 128: encode here, or a few hundred at a time.

    Args:
      model: of form "qinco" or "qinco-lr", without a coarse codebook.

    Raises:
      InputError: Faiss is not installed, or has no such model; the message says what remains.
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


def from_faiss(codec: Any) -> Qinco:
    """The model of a `faiss.QINCo` or a `faiss.IndexQINCo`, with the same codes.

    Args:
      codec: of M steps of K codewords; its weights are copied.

    Returns:
      A model of form "qinco" with mean 0 and scale 1, which encodes as Faiss does: greedily, all K
      codewords sent through the network.

    Raises:
      InputError: Faiss is not installed, or `codec` is something else or has sizes or biases that
        no model has.
    """
    faiss = optional.faiss("models for Faiss")
    network = codec.qinco if isinstance(codec, faiss.IndexQINCo) else codec  # the index's own
    if not isinstance(network, faiss.QINCo):
        raise InputError(f"got {type(codec).__name__}; pass a faiss.QINCo or a faiss.IndexQINCo")
    dim, codebook_size, hidden_dim, num_blocks = network.d, network.K, network.h, network.L
    QincoConfig(  # refuses what is out of range
        dim=dim, num_steps=network.M, codebook_size=codebook_size, hidden_dim=hidden_dim,
        num_blocks=num_blocks, num_candidates=None, form="qinco",
    )  # fmt: skip
    steps = [network.get_step(m) for m in range(network.M - 1)]
    blocks = [[step.get_residual_block(i) for i in range(num_blocks)] for step in steps]

    def array(vector: Any, *shape: int) -> np.ndarray:
        found = faiss.vector_to_array(vector)
        if found.size != math.prod(shape):
            raise InputError(
                f"this faiss.QINCo has {found.size} weights where its sizes ask for an array of "
                f"shape {shape}; no model is like that"
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
    """Refuses what no faiss.QINCo computes.

    Raises:
      InputError: says what that is, and the way that remains.
    """
    if isinstance(model, Product):
        reason = "a product is several codecs: export each of model.parts, for its sub-vectors"
    elif not isinstance(model, Qinco):
        reason = f"got {type(model).__name__}; pass a Qinco of form 'qinco' or 'qinco-lr'"
    elif model.config.form == "qinco2":
        reason = "faiss.QINCo has the network of forms 'qinco' and 'qinco-lr', not of 'qinco2'"
    elif model.ivf:
        reason = "faiss.QINCo has no coarse codebook: keep that, and export a model without one"
    else:
        return
    raise InputError(
        f"{reason}; or put decoded vectors into any of Faiss's indexes, or fit additive tables to "
        "the codes"
    )
