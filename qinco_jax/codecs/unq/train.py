"""Trains UNQ by reconstruction, triplets of neighbours and balanced codes (UNQ, Sec. 3).

The paper trains for hundreds of epochs, this module for minutes: networks have a linear path beside
hidden layers of half the paper's width, and start as a product quantizer of the rotated vectors;
Gumbel noise fades towards the end; batches are half the paper's, an eighth of a batch has triplets,
and the optimizer is Adam instead of QHAdam.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from qinco_jax import numbers
from qinco_jax.codecs.unq import network, pq, triplets
from qinco_jax.codecs.unq.unq import UNQ, products
from qinco_jax.errors import InputError
from qinco_jax.quantizers import packing
from qinco_jax.quantizers.distances import matmul
from qinco_jax.quantizers.rq import sample_rows
from qinco_jax.quantizers.transform import of_rows, to_model_space
from qinco_jax.seeds import BATCHES, CODE_NOISE, MINED_ROWS, seed_for
from qinco_jax.training.shuffle import batch_rows
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows, Vectors, lazily

Log = Callable[[Mapping[str, float]], None]

SEEN_ROWS, SAMPLE_ROWS = 2_400_000, 2**15
BATCH_ROWS, TRIPLETS = 128, 16
FREE_DIMS = 48  # of a learned space, beside those that it starts with
MARGIN, TRIPLET_WEIGHT = 1.0, 0.01
BALANCE_WEIGHTS = 1.0, 0.05  # from the first step to the last
FULL_NOISE = 1 / 3  # of all steps; then the Gumbel noise fades, since encoding has none
LOG_STEPS = 32


@flax.struct.dataclass
class _State:
    step: jax.Array
    model: UNQ
    moments: optax.OptState


def train(
    x: Vectors,
    num_steps: int = 8,
    codebook_size: int = 256,
    *,
    seed: int = 0,
    hidden_dim: int = 512,
    num_epochs: int | None = None,
    learning_rate: float = 1e-3,
    log: Log | None = None,
) -> UNQ:
    """Trains a model.

    The same arguments on the same machine give the same model. Vectors are read batch by batch, so
    `x` may be a memory map or a `Stored` of any size; triplets are mined among at most 32,768 of
    them.

    Args:
      x: [N, D], any real dtype, N >= K.
      num_steps: M.
      codebook_size: K.
      seed: of the initial model, the order of the vectors and the samples of codes.
      hidden_dim: H, width of the networks.
      num_epochs: passes over `x`; `None` takes enough for 2.4 million vectors, 0 gives the
        initial model, a product quantizer.
      learning_rate: peak rate of the one-cycle schedule.
      log: called with records of numbers: `step`, `vectors` seen of `num_vectors`, `loss`.

    Returns:
      The model after the last step.

    Raises:
      InputError: invalid vectors, fewer than K, or invalid settings; a loss of NaN or Inf.
    """
    x, seed = lazily(checks.vectors(x, what="the training vectors")), numbers.seed(seed)
    _check(x, num_steps, codebook_size, hidden_dim, num_epochs)
    num_vectors = SEEN_ROWS if num_epochs is None else num_epochs * len(x)
    batch_size = min(BATCH_ROWS, len(x))
    total_steps = LOG_STEPS * math.ceil(num_vectors / batch_size / LOG_STEPS)
    model = _start(x, num_steps, codebook_size, hidden_dim, seed)
    if total_steps == 0:
        return model
    mined = checks.finite(sample_rows(x, SAMPLE_ROWS, seed_for(seed, MINED_ROWS)))
    sample = to_model_space(jnp.asarray(mined), model.transform)
    neighbours = triplets.neighbours(sample)
    optimizer = _optimizer(learning_rate, total_steps)
    state = _State(jnp.int32(0), model, optimizer.init(model))
    state = jax.tree.map(jnp.copy, state)  # donated buffers must not be shared
    order, noise = seed_for(seed, BATCHES), seed_for(seed, CODE_NOISE)
    for step in range(0, total_steps, LOG_STEPS):
        chosen = [batch_rows(order, step + i, batch_size, len(x)) for i in range(LOG_STEPS)]
        rows = checks.finite(x[np.concatenate(chosen)])
        batches = to_model_space(jnp.asarray(rows), model.transform)
        batches = batches.reshape(LOG_STEPS, batch_size, -1)
        state, losses = _train_steps(
            state, batches, sample, neighbours, noise, learning_rate, total_steps
        )
        loss, done = float(losses.mean()), step + LOG_STEPS
        if not np.isfinite(loss):
            raise InputError(
                f"the loss became NaN or Inf by step {done}; lower learning_rate, or look for "
                "extreme values in the vectors"
            )
        if log is not None:
            seen = {"vectors": done * batch_size, "num_vectors": total_steps * batch_size}
            log({"step": done, **seen, "loss": loss})
    return state.model


def _check(
    x: Rows, num_steps: int, codebook_size: int, hidden_dim: int, num_epochs: int | None
) -> None:
    valid_epochs = num_epochs is None or num_epochs >= 0
    if x.ndim != 2 or min(num_steps, hidden_dim) < 1 or codebook_size < 2 or not valid_epochs:
        raise InputError(
            f"got training vectors of shape {x.shape}, num_steps {num_steps}, codebook_size "
            f"{codebook_size}, hidden_dim {hidden_dim}, num_epochs {num_epochs}; expected [N, D], "
            "codebook_size of at least 2, num_epochs of at least 0 and other numbers of at least 1"
        )
    packing.check_size(codebook_size)
    if len(x) < codebook_size:
        raise InputError(
            f"{len(x)} training vectors for {codebook_size} codewords; give at least as many "
            "vectors as codewords, or lower codebook_size"
        )
    for begin in range(0, len(x), 65536):
        checks.finite(x[begin : begin + 65536], begin, "the training vectors")


def _start(x: Rows, num_steps: int, codebook_size: int, hidden_dim: int, seed: int) -> UNQ:
    """The untrained model, a product quantizer.

    The centroid c nearest to a part y has the greatest <[y, 1, 0], [c, -|c|^2 / 2, *]>; * are free
    dimensions, by which the decoder distinguishes codewords. Temperatures start at the parts'
    errors, so that probabilities are those of a mixture of normal distributions.
    """
    rows = checks.finite(sample_rows(x, 256 * codebook_size, seed))
    transform = of_rows(rows)
    target = to_model_space(jnp.asarray(rows), transform)
    keys = jax.random.split(jax.random.key(seed), 4)
    parts = pq.train(keys[0], target, num_steps, codebook_size)
    width = parts.codebooks.shape[-1]
    offset = -0.5 * jnp.sum(jnp.square(parts.codebooks), axis=-1, keepdims=True)
    free = jax.random.normal(keys[1], (num_steps, codebook_size, FREE_DIMS))
    path = jnp.pad(parts.directions, ((0, 0), (0, 0), (0, 1 + FREE_DIMS)))
    path = path.swapaxes(0, 1).reshape(len(transform.mean), -1)
    one = jnp.tile(jnp.arange(width + 1 + FREE_DIMS) == width, num_steps).astype(jnp.float32)
    return UNQ(
        transform.mean, transform.scale,
        encoder=network.init(keys[2], path, one, hidden_dim),
        codebooks=jnp.concatenate([parts.codebooks, offset, free], axis=-1),
        log_temperatures=jnp.log(jnp.maximum(parts.errors, 1e-3)),
        decoder=network.init(keys[3], path.T, jnp.zeros_like(transform.mean), hidden_dim),
    )  # fmt: skip


def _loss(
    model: UNQ, x: jax.Array, mined: jax.Array, key: jax.Array, progress: jax.Array
) -> tuple[jax.Array, UNQ]:
    """L_1 + alpha L_2 + beta L_3 (Sec. 3), and the model with new running statistics.

    Args:
      model: of M codes.
      x: [N, D] in model space, to be reconstructed.
      mined: triplets [3, T, D] in model space: anchors, near neighbours, farther ones.
      key: of the Gumbel noise.
      progress: [], 0 at the first step to 1 at the last.
    """
    rows = jnp.concatenate([x, mined.reshape(-1, x.shape[1])])
    flat, encoder = network.apply(model.encoder, rows, training=True)
    scores = products(model, flat) * jnp.exp(-model.log_temperatures)[:, None, None]
    noise = jnp.minimum((1 - progress) / (1 - FULL_NOISE), 1) * jax.random.gumbel(key, scores.shape)
    chosen = jax.vmap(matmul)(straight_through(scores + noise), model.codebooks)
    codewords = chosen.swapaxes(0, 1).reshape(flat.shape)
    x_hat, decoder = network.apply(model.decoder, codewords[: len(x)], training=True)
    error = jnp.mean(jnp.sum(jnp.square(x - x_hat), axis=-1))

    shape = *mined.shape[:2], -1
    anchor = flat[len(x) :].reshape(shape)[:1]
    near, far = -jnp.sum(anchor * codewords[len(x) :].reshape(shape)[1:], axis=-1)
    ranking = jnp.mean(jax.nn.relu(MARGIN + near - far))
    balance = BALANCE_WEIGHTS[0] + progress * (BALANCE_WEIGHTS[1] - BALANCE_WEIGHTS[0])
    total = error + TRIPLET_WEIGHT * ranking + balance * imbalance(jax.nn.softmax(scores))
    return total, dataclasses.replace(model, encoder=encoder, decoder=decoder)


def straight_through(scores: jax.Array) -> jax.Array:
    """One-hot of the greatest score, with the gradient of the softmax: [..., K] of [..., K]."""
    soft = jax.nn.softmax(scores)
    hard = jax.nn.one_hot(jnp.argmax(scores, axis=-1), scores.shape[-1])
    return hard + soft - lax.stop_gradient(soft)


def imbalance(probabilities: jax.Array) -> jax.Array:
    """CV^2 [] of the mean use of the codewords, by probabilities [M, N, K], averaged over M."""
    usage = jnp.mean(probabilities, axis=1)
    return jnp.mean(jnp.var(usage, axis=-1) / jnp.square(jnp.mean(usage, axis=-1)))


@functools.partial(
    jax.jit, static_argnames=("learning_rate", "total_steps"), donate_argnames="state"
)
def _train_steps(
    state: _State,
    batches: jax.Array,
    sample: jax.Array,
    neighbours: jax.Array,
    seed: int,
    learning_rate: float,
    total_steps: int,
) -> tuple[_State, jax.Array]:
    """A step for each of the batches [S, N, D]; the losses [S]."""
    optimizer = _optimizer(learning_rate, total_steps)

    def update(state: _State, x: jax.Array) -> tuple[_State, jax.Array]:
        key = jax.random.fold_in(jax.random.key(seed, impl="rbg"), state.step)
        key_noise, key_mined = jax.random.split(key)
        mined = sample[triplets.draw(key_mined, neighbours, TRIPLETS)]
        progress = state.step.astype(jnp.float32) / total_steps
        of_model = jax.value_and_grad(_loss, has_aux=True)
        (loss, model), gradient = of_model(state.model, x, mined, key_noise, progress)
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes float and int
            # Running statistics have no gradient and are not updated here.
            updates, moments = optimizer.update(gradient, state.moments)
        return _State(state.step + 1, optax.apply_updates(model, updates), moments), loss

    return lax.scan(update, state, batches)


def _optimizer(learning_rate: float, total_steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_onecycle_schedule(total_steps, learning_rate, pct_start=0.1))
