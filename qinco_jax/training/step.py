"""One step of training: state, loss, update, end of an epoch. `loop` repeats it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from qinco_jax.quantizers import coding, precision, qinco
from qinco_jax.quantizers.qinco import Qinco
from qinco_jax.quantizers.transform import to_model_space
from qinco_jax.training.recipe import Recipe, with_mix

DEAD_AFTER = 64  # vectors per codeword, below which one that none uses may merely be unlucky
CODEBOOKS = "codebook", "preselect"  # of a `Step`


@flax.struct.dataclass
class TrainState:
    """All that a training run changes; a checkpoint holds exactly this.

    Attributes:
      step: [] int32, batches seen.
      model: the parameters, float32.
      moments: optimizer state.
      rate_scale: [] float32, lowered by the "plateau" schedule.
      usage: [M, K] int32, how often a codeword was chosen since dead ones were last looked for.
      residual_mean: [M, D], running mean of what each step quantizes.
      residual_std: [M, D], its running standard deviation.
      best: the parameters with the lowest validation error so far.
      best_mse: [] float32, that error.
      stale: [] int32, epochs since then.
    """

    step: jax.Array
    model: Qinco
    moments: Any
    rate_scale: jax.Array
    usage: jax.Array
    residual_mean: jax.Array
    residual_std: jax.Array
    best: Qinco
    best_mse: jax.Array
    stale: jax.Array


@functools.partial(jax.jit, static_argnames="recipe")
def init_state(model: Qinco, recipe: Recipe) -> TrainState:
    """The state before the first step, from a model of one part, such as `train(num_epochs=0)`."""
    num_steps, codebook_size, dim = model.num_steps, model.codebook_size, model.dim
    state = TrainState(
        step=jnp.int32(0),
        model=model,
        moments=_optimizer(recipe, 0.0).init(qinco.parameters(model)),
        rate_scale=jnp.float32(1),
        usage=jnp.zeros((num_steps, codebook_size), jnp.int32),
        residual_mean=jnp.zeros((num_steps, dim), jnp.float32),
        residual_std=jnp.ones((num_steps, dim), jnp.float32),
        best=model,
        best_mse=jnp.float32(jnp.inf),
        stale=jnp.int32(0),
    )
    return jax.tree.map(jnp.copy, state)  # the step donates its buffers, which must not be shared


def loss(
    model: Qinco, x: jax.Array, codes: jax.Array, compute_dtype: str = "float32"
) -> tuple[jax.Array, jax.Array]:
    """Sum over the steps of the mean squared errors of x_hat_m and of the pre-selection.

    The error of a coarse codebook, which is frozen, is not included.

    Args:
      model: of M steps.
      x: [N, D] in model space.
      codes: [N, M], constants; with a coarse codebook [N, 1 + M].
      compute_dtype: "float32" or "bfloat16", of the network's products, those of the gradient too.

    Returns:
      The loss [], and the reconstructions [M, N, D] or [1 + M, N, D].
    """
    x_hat = qinco.reconstructions(qinco.network_dtype(model, compute_dtype), codes)
    total = jnp.sum(jnp.mean(jnp.square(x_hat - x[None]), axis=(1, 2))[int(model.ivf) :])
    if model.steps.preselect is not None:
        proposed = jax.vmap(lambda book, index: book[index])(
            model.steps.preselect, codes[:, 1:].astype(jnp.int32).T
        )
        error = jax.lax.stop_gradient(x_hat[:-1]) + proposed - x[None]
        total += jnp.sum(jnp.mean(jnp.square(error), axis=(1, 2)))
    return total, x_hat


@functools.partial(
    jax.jit, static_argnames=("recipe", "total_steps", "mesh"), donate_argnames="state"
)
def train_step(
    state: TrainState,
    batch: jax.Array,
    recipe: Recipe,
    total_steps: int,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[TrainState, jax.Array]:
    """Encodes a batch without gradient, then decodes its codes with gradient (QINCo, Sec. 3.2).

    The codes serve `recipe.num_updates` gradient steps, each on its share of the rows.

    Args:
      state: donated.
      batch: [N, D] raw vectors, any real dtype; may be sharded over a mesh.
      recipe: static.
      total_steps: of the schedule.
      mesh: static; `batch` is sharded over its one axis. `None` where it is not sharded.

    Returns:
      The next state and the mean loss [].
    """
    model, compute_dtype = state.model, precision.resolve(recipe.compute_dtype)
    encode: Callable[..., Any] = functools.partial(
        coding.encode, **recipe.search, compute_dtype=compute_dtype
    )
    if mesh is not None:  # left to itself, the compiler gathers the batch for every top-k
        rows = PartitionSpec(mesh.axis_names[0])
        encode = jax.shard_map(
            encode, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows, check_vma=False
        )
    codes = encode(model, batch)

    def update(carry: tuple[Any, Any], share: tuple[jax.Array, ...]) -> tuple[Any, Any]:
        parameters, moments = carry
        x, codes, step = share

        def of_parameters(parameters: Any) -> tuple[jax.Array, jax.Array]:
            return loss(qinco.with_parameters(model, parameters), x, codes, compute_dtype)

        (value, x_hat), gradient = jax.value_and_grad(of_parameters, has_aux=True)(parameters)
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes float and int
            step_size = state.rate_scale * _schedule(recipe, total_steps)(step)
            optimizer = _optimizer(recipe, step_size)
            updates, moments = optimizer.update(gradient, moments, parameters)
        residual = jnp.concatenate([x[None], x[None] - x_hat[:-1]])[-model.num_steps :]
        statistics = value, jnp.mean(residual, axis=1), jnp.std(residual, axis=1)
        return (optax.apply_updates(parameters, updates), moments), statistics

    x = to_model_space(batch, model.transform)
    parts = jnp.arange(recipe.num_updates, dtype=jnp.float32) / recipe.num_updates
    shares = _shares(x, recipe), _shares(codes, recipe), state.step.astype(jnp.float32) + parts
    start = qinco.parameters(model), state.moments
    (parameters, moments), (values, mean, std) = jax.lax.scan(update, start, shares)

    steps, index = jnp.arange(model.num_steps)[:, None], codes.T.astype(jnp.int32)
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        model=qinco.with_parameters(model, parameters),
        moments=moments,
        usage=state.usage.at[steps, index[-model.num_steps :]].add(1),
        residual_mean=0.9 * state.residual_mean + 0.1 * jnp.mean(mean, axis=0),
        residual_std=0.9 * state.residual_std + 0.1 * jnp.mean(std, axis=0),
    )
    return state, jnp.mean(values)


def _shares(rows: jax.Array, recipe: Recipe) -> jax.Array:
    """Rows [N, ...] split over the updates [U, N / U, ...]; a sharded batch stays sharded."""
    return rows.reshape(-1, recipe.num_updates, *rows.shape[1:]).swapaxes(0, 1)


def end_epoch(
    state: TrainState, mse: jax.Array, key: jax.Array, recipe: Recipe, num_rows: int
) -> TrainState:
    """Keeps the best model, lowers the rate on a plateau, redraws dead codewords.

    A codeword is dead if none of at least `DEAD_AFTER` vectors per codeword used it since the last
    redrawing, over as many epochs as see so many; fewer different vectors say nothing, however
    often they are seen. It is drawn anew, as main and as pre-selection codeword, from a normal
    distribution with the running statistics of what its step quantizes (QINCo2, appendix), and its
    moments start at 0.

    Args:
      state: donated. Not to be called under `jit`.
      mse: [] validation error of `state.model`.
      key: of the new codewords.
      recipe: of the run.
      num_rows: N, how many different vectors there are to train on.

    Returns:
      the state of the next epoch; its `usage` [M, K] counts from 0 after a look for the dead.
    """
    state, dead = _keep_best(state, mse, recipe)
    many = num_rows >= DEAD_AFTER * state.model.codebook_size
    return _redraw(state, dead, key, recipe) if many and np.asarray(dead).any() else state


@functools.partial(jax.jit, static_argnames="recipe", donate_argnames="state")
def _keep_best(state: TrainState, mse: jax.Array, recipe: Recipe) -> tuple[TrainState, jax.Array]:
    """The state after an epoch, and which codewords are dead, [M, K]."""
    better = mse < state.best_mse
    stale = jnp.where(better, 0, state.stale + 1)
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.model, state.best)
    rate_scale = state.rate_scale
    if recipe.schedule == "plateau":
        rate_scale *= jnp.where((stale > 0) & (stale % recipe.patience == 0), 0.1, 1.0)

    num_vectors = jnp.sum(state.usage[0])  # each used one codeword of every step
    enough = num_vectors >= DEAD_AFTER * state.usage.shape[1]
    dead = enough & (state.usage == 0)
    state = dataclasses.replace(
        state,
        best=best,
        best_mse=jnp.where(better, mse, state.best_mse),  # NaN is no better
        stale=stale,
        rate_scale=rate_scale,
        usage=jnp.where(enough, 0, state.usage),
    )
    return state, dead


@functools.partial(jax.jit, static_argnames="recipe", donate_argnames="state")
def _redraw(state: TrainState, dead: jax.Array, key: jax.Array, recipe: Recipe) -> TrainState:
    """Draws dead codewords [M, K] anew."""
    fresh = jax.random.normal(key, (*dead.shape, state.model.dim), jnp.float32)
    fresh = fresh * state.residual_std[:, None] + state.residual_mean[:, None]
    parameters = qinco.parameters(state.model)
    masks = _for_codebooks(parameters, dead[..., None], jnp.bool(False))
    drawn = _for_codebooks(parameters, fresh, jnp.float32(0))
    parameters = jax.tree.map(
        lambda old, dead, new: jnp.where(dead, new, old), parameters, masks, drawn
    )
    moments = optax.tree_map_params(
        _optimizer(recipe, 0.0), lambda old, dead: jnp.where(dead, 0, old), state.moments, masks
    )
    return dataclasses.replace(
        state, model=qinco.with_parameters(state.model, parameters), moments=moments
    )


def _for_codebooks(
    parameters: qinco.Parameters, arrays: jax.Array, other: jax.Array
) -> qinco.Parameters:
    """A tree like `parameters` with `arrays` [M, K, ...] for codebooks and `other` elsewhere."""
    codebook, steps = parameters
    rest = arrays if codebook is None else arrays[1:]
    leaves: dict[str, Any] = {
        name: None if leaf is None else rest if name in CODEBOOKS else other
        for name, leaf in vars(steps).items()
    }
    return None if codebook is None else arrays[0], dataclasses.replace(steps, **leaves)


@functools.partial(jax.jit, static_argnames=("recipe", "total_steps"))
def rate(state: TrainState, recipe: Recipe, total_steps: int) -> jax.Array:
    """The learning rate [] of the next step."""
    return state.rate_scale * jnp.asarray(
        _schedule(recipe, total_steps)(state.step.astype(jnp.float32))
    )


def is_exhausted(state: TrainState, recipe: Recipe) -> bool:
    """Whether the "plateau" schedule has nothing left to try."""
    return recipe.schedule == "plateau" and int(state.stale) >= 5 * recipe.patience


def _optimizer(recipe: Recipe, rate: jax.Array | float) -> optax.GradientTransformation:
    """AdamW at a learning rate [], whose state does not depend on that."""
    clip = optax.identity() if recipe.clip is None else optax.clip(recipe.clip)
    decay = with_mix(recipe, recipe.mix or 0.0).weight_decay
    decayed = _without_codebooks if recipe.mix else None
    adamw = optax.scale_by_adam(), optax.add_decayed_weights(decay, decayed)
    return optax.chain(clip, *adamw, optax.scale_by_learning_rate(rate))


def _without_codebooks(parameters: qinco.Parameters) -> Any:
    """A tree like `parameters` with True for the network's arrays, False for codebooks."""
    codebook, steps = parameters
    leaves: dict[str, Any] = {
        name: None if leaf is None else name not in CODEBOOKS for name, leaf in vars(steps).items()
    }
    return None if codebook is None else False, dataclasses.replace(steps, **leaves)


def _schedule(recipe: Recipe, total_steps: int) -> optax.Schedule:
    warmup = max(1, round(recipe.warmup * total_steps))
    if recipe.schedule == "plateau":
        return optax.linear_schedule(recipe.learning_rate / warmup, recipe.learning_rate, warmup)
    return optax.warmup_cosine_decay_schedule(
        recipe.learning_rate / warmup,
        recipe.learning_rate,
        warmup,
        max(total_steps, warmup + 1),
        recipe.learning_rate * recipe.final_rate,
    )
