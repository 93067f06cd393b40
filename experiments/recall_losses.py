"""Losses that care for neighbours, by which `recall_and_error.py` goes on from a trained model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from qinco_jax.quantizers import coding, qinco
from qinco_jax.quantizers.transform import to_model_space
from qinco_jax.training import mixing

GROUPS, MEMBERS = 128, 8  # of a batch: rows, each followed by its nearest neighbours
UPDATES, EPOCHS, RATE, CLIP, DECAY, MIX = 8, 4, 1e-3, 0.1, 0.5, 0.7
TEMPERATURE = 0.05  # of similarities in a ranking
SEARCH = {"num_candidates": 4, "beam_size": 2, "joint": False}


def tuned(model, x, neighbours, kind, weight, seed=0):
    """The model after a few epochs by another loss.

    Batches are groups of near neighbours, moved towards others of them as in training, and the same
    for all losses.

    Args:
      model: a `Qinco` with pre-selection, trained on `x`.
      x: [N, D] float32.
      neighbours: [N, 8] rows nearest to each.
      kind: of `loss`, or "dense": rows count by a power of how near their neighbours are.
      weight: of the loss, or that power.
      seed: of the batches.
    """
    num_batches = EPOCHS * len(x) // (GROUPS * MEMBERS)
    rate = optax.warmup_cosine_decay_schedule(
        RATE / 50, RATE, num_batches * UPDATES // 20, num_batches * UPDATES, RATE / 1000
    )
    optimizer = optax.chain(
        optax.clip(CLIP), optax.scale_by_adam(), optax.add_decayed_weights(DECAY),
        optax.scale_by_learning_rate(rate),
    )  # fmt: skip
    counts = np.ones(len(x), np.float32)
    if kind == "dense":
        counts = np.linalg.norm(x - x[neighbours[:, -1]], axis=1) ** -np.float32(weight)
        counts /= counts.mean()
    moved = mixing.mixed(x, neighbours, MIX, seed, EPOCHS)
    rng, moments = np.random.default_rng(seed), optimizer.init(qinco.parameters(model))
    for _ in range(num_batches):
        first = rng.choice(len(x), GROUPS, replace=False)
        rows = np.concatenate([first[:, None], neighbours[first, : MEMBERS - 1]], axis=1).ravel()
        batch = np.asarray(moved[len(x) * rng.integers(EPOCHS, size=len(rows)) + rows])
        model, moments = _step(model, moments, batch, counts[rows], optimizer, kind, weight)
    return model


@functools.partial(jax.jit, static_argnames=("optimizer", "kind", "weight"))
def _step(model, moments, batch, counts, optimizer, kind, weight):
    """Encodes a batch once and takes several gradient steps on its codes, as `train_step`."""

    def update(carry, share):
        parameters, moments = carry

        def of_parameters(parameters):
            return loss(qinco.with_parameters(model, parameters), *share, kind, weight)

        gradient = jax.grad(of_parameters)(parameters)
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes float and int
            updates, moments = optimizer.update(gradient, moments, parameters)
        return (optax.apply_updates(parameters, updates), moments), None

    codes = coding.encode(model, batch, **SEARCH)
    shares = (rows.reshape(UPDATES, -1, *rows.shape[1:]) for rows in (batch, codes, counts))
    start = qinco.parameters(model), moments
    (parameters, moments), _ = jax.lax.scan(update, start, tuple(shares))
    return qinco.with_parameters(model, parameters), moments


def loss(model, x, codes, counts, kind, weight):
    """Mean squared errors of all steps and of the pre-selection, with what `kind` says.

    Args:
      model: of M steps.
      x: [R, D] vectors.
      codes: [R, M].
      counts: [R], how much each row counts.
      kind: "error" and "dense" add nothing; "sphere" puts 1 - cos^2 in place of a share `weight`
        of the errors; "along" counts the error along x by `weight` (ScaNN's anisotropic loss);
        "ranking" adds how the first row of each group ranks the batch by reconstructions, compared
        with how it does by vectors, as a cross-entropy.
      weight: of what is added.

    Returns:
      The loss [].
    """
    target = to_model_space(x, model.transform)
    x_hat = qinco.reconstructions(model, codes)
    errors = jnp.mean(jnp.square(x_hat - target[None]), axis=2)  # [M, R]
    decoded = x_hat * model.scale + model.mean[None, None]
    own = jnp.linalg.norm(x, axis=1)[None]
    direction = x[None] / own[..., None]
    products, lengths = jnp.sum(decoded * direction, axis=2), jnp.linalg.norm(decoded, axis=2)
    unit = x.shape[1] * jnp.square(model.scale)  # from errors of vectors to those above
    if kind == "sphere":
        angular = jnp.square(own) * (1 - jnp.square(products / lengths))
        errors += weight * (angular / unit - errors)
    if kind == "along":
        errors += (weight - 1) * jnp.square(products - own) / unit
    proposed = jax.vmap(lambda book, index: book[index])(
        model.steps.preselect, codes[:, 1:].astype(jnp.int32).T
    )
    left = jax.lax.stop_gradient(x_hat[:-1]) + proposed - target[None]
    total = jnp.sum(jnp.mean(counts[None] * errors, axis=1))
    total += jnp.sum(jnp.mean(jnp.square(left), axis=(1, 2)))
    if kind == "ranking":
        scales = jnp.sqrt(jnp.maximum(products[-1] / lengths[-1], 1e-6)) / lengths[-1]
        total += weight * _ranking(direction[0], decoded[-1] * scales[:, None])
    return total


def _ranking(x, x_hat):
    """Cross-entropy of how the first of each group ranks the others of the batch [R, D]."""
    queries, own = x[::MEMBERS], jnp.arange(0, len(x), MEMBERS)
    rows = jnp.arange(len(queries))
    wanted, found = (
        (queries @ others.T / TEMPERATURE).at[rows, own].set(-1e9) for others in (x, x_hat)
    )
    return optax.softmax_cross_entropy(found, jax.nn.softmax(wanted)).mean()
