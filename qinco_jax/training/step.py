"""One step of training: recipe, state, loss, update, end of an epoch. The loop is in `fit.py`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from qinco_jax.config import refuses_unknown
from qinco_jax.errors import InputError
from qinco_jax.quantizers import coding, qinco
from qinco_jax.quantizers.qinco import Qinco
from qinco_jax.quantizers.transform import to_model_space

SCHEDULES = ("cosine", "plateau")
COMPUTE_DTYPES = ("float32", "bfloat16")
DEFAULT_ROWS = 1_200_000


@refuses_unknown
@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
      num_epochs: 0 gives the initial model; `None` takes as many as see 1.2 million rows (at most
        100), which is minutes on two cores.
      epoch_rows: an epoch is a pass over the training rows, or over this many where there are more;
        each ends with a validation.
      batch_size: rows that are encoded at once, over all devices; a multiple of `num_updates`.
      num_updates: gradient steps on the codes of a batch, each on its share of the rows.
      learning_rate: peak rate of AdamW.
      schedule: "cosine" to `final_rate`, or "plateau": a tenth after `patience` epochs without a
        better validation error, stop after five times as many (QINCo, Sec. A.3).
      warmup: share of all steps in which the rate rises linearly from 0.
      final_rate: share of `learning_rate` that the cosine ends at.
      weight_decay: decoupled; 0 makes AdamW plain Adam.
      clip: gradients are clipped to +-clip, element by element; `None` leaves them.
      patience: epochs, for "plateau".
      train_candidates: A while training; `None` means the model's.
      train_beam: B while training; `None` means the model's.
      train_joint: joint pre-selection while training or not; `None` means the model's.
      compute_dtype: "float32" or "bfloat16", of the network's products; the rest is float32.
      num_val: rows held back for validation, at most a tenth of all.
    """

    num_epochs: int | None = None
    epoch_rows: int = 500_000
    batch_size: int = 1024
    num_updates: int = 8
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    warmup: float = 0.05
    final_rate: float = 1e-3
    weight_decay: float = 0.1
    clip: float | None = 0.1
    patience: int = 10
    train_candidates: int | None = None
    train_beam: int | None = None
    train_joint: bool | None = None
    compute_dtype: str = "float32"
    num_val: int = 10_000

    def __post_init__(self) -> None:
        whole, optional = int, (int, type(None))
        for name, kind, low, high in (
            ("num_epochs", optional, 0, np.inf),
            ("epoch_rows", whole, 1, np.inf),
            ("batch_size", whole, 1, np.inf),
            ("num_updates", whole, 1, np.inf),
            ("learning_rate", (int, float), 0, np.inf),
            ("warmup", (int, float), 0, 1),
            ("final_rate", (int, float), 0, 1),
            ("weight_decay", (int, float), 0, np.inf),
            ("clip", (int, float, type(None)), 0, np.inf),
            ("patience", whole, 1, np.inf),
            ("train_candidates", optional, 1, np.inf),
            ("train_beam", optional, 1, np.inf),
            ("num_val", whole, 1, np.inf),
        ):
            value = getattr(self, name)
            fits = isinstance(value, kind) and not isinstance(value, bool)
            if not fits or (value is not None and not low <= value <= high):
                raise InputError(f"the recipe's {name} must be {low} to {high}, got {value!r}")
        if self.train_joint not in (None, False, True):
            raise InputError(
                f"the recipe's train_joint must be true, false or None, got {self.train_joint!r}"
            )
        for name, known in (("schedule", SCHEDULES), ("compute_dtype", COMPUTE_DTYPES)):
            if getattr(self, name) not in known:
                raise InputError(
                    f"the recipe's {name} must be {' or '.join(known)}, got {getattr(self, name)!r}"
                )

    @property
    def search(self) -> dict[str, Any]:
        """What `coding.encode` is called with while training."""
        return {
            "num_candidates": self.train_candidates,
            "beam_size": self.train_beam,
            "joint": self.train_joint,
        }


RECIPES: Mapping[str, Recipe] = {
    "small": Recipe(train_candidates=4, train_beam=2, train_joint=False),
    "qinco1": Recipe(
        num_epochs=1000,
        epoch_rows=10_000_000,
        batch_size=1024,
        num_updates=1,
        learning_rate=1e-3,
        schedule="plateau",
        warmup=0.0,
        weight_decay=0.0,
        clip=None,
    ),
    **{
        name: Recipe(
            num_epochs=63,
            epoch_rows=10_000_000,
            batch_size=1024,
            num_updates=1,
            learning_rate=8e-4,
            warmup=3 / 63,
            train_candidates=16,
            train_beam=32,
            train_joint=False,
        )
        for name in ("qinco2-S", "qinco2-M", "qinco2-L")
    },
}
"""The recipe of each preset: ours for "small", the papers' for theirs (QINCo, Sec. A.3; QINCo2)."""


def length(recipe: Recipe, num_rows: int) -> tuple[int, int, int]:
    """Rows of a batch, batches of an epoch and of the whole training, on `num_rows` rows."""
    batch_size = min(recipe.batch_size, num_rows) // recipe.num_updates * recipe.num_updates
    rows = min(num_rows, recipe.epoch_rows)
    num_epochs = recipe.num_epochs
    if num_epochs is None:
        num_epochs = min(100, -(-DEFAULT_ROWS // rows))
    steps_per_epoch = max(1, rows // max(1, batch_size))
    return batch_size, steps_per_epoch, steps_per_epoch * num_epochs


@flax.struct.dataclass
class State:
    """All that a training run changes; a checkpoint holds exactly this.

    Attributes:
      step: [] int32, batches seen.
      model: the parameters, float32.
      moments: optimizer state.
      rate_scale: [] float32, lowered by the "plateau" schedule.
      usage: [M, K] int32, how often a codeword was chosen in this epoch.
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


def start(model: Qinco, recipe: Recipe) -> State:
    """The state before the first step."""
    num_steps, codebook_size, dim = model.num_steps, model.codebook_size, model.dim
    state = State(
        step=jnp.int32(0),
        model=model,
        moments=_optimizer(recipe).init(qinco.parameters(model)),
        rate_scale=jnp.float32(1),
        usage=jnp.zeros((num_steps, codebook_size), jnp.int32),
        residual_mean=jnp.zeros((num_steps, dim)),
        residual_std=jnp.ones((num_steps, dim)),
        best=model,
        best_mse=jnp.float32(jnp.inf),
        stale=jnp.int32(0),
    )
    return jax.tree.map(jnp.copy, state)  # the step donates its buffers, which must not be shared


def loss(model: Qinco, x: jax.Array, codes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum over the steps of the mean squared errors of x_hat_m and of the pre-selection.

    The error of a coarse codebook, which is frozen, is no part of it.

    Args:
      model: of M steps.
      x: [N, D] in model space.
      codes: [N, M], constants; with a coarse codebook [N, 1 + M].

    Returns:
      The loss [], and the reconstructions [M, N, D] or [1 + M, N, D].
    """
    x_hat = qinco.reconstructions(model, codes)
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
    state: State,
    batch: jax.Array,
    recipe: Recipe,
    total_steps: int,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[State, jax.Array]:
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
    cast = functools.partial(qinco.network_dtype, dtype=jnp.dtype(recipe.compute_dtype))
    model = state.model
    encode: Callable[..., Any] = functools.partial(coding.encode, **recipe.search)
    if mesh is not None:  # left to itself, the compiler gathers the batch for every top-k
        rows = PartitionSpec(mesh.axis_names[0])
        encode = jax.shard_map(
            encode, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows, check_vma=False
        )
    codes = encode(cast(model), batch)

    def update(carry: tuple[Any, Any], share: tuple[jax.Array, ...]) -> tuple[Any, Any]:
        parameters, moments = carry
        x, codes, step = share

        def of_parameters(parameters: Any) -> tuple[jax.Array, jax.Array]:
            return loss(cast(qinco.with_parameters(model, parameters)), x, codes)

        (value, x_hat), gradient = jax.value_and_grad(of_parameters, has_aux=True)(parameters)
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes float and int
            updates, moments = _optimizer(recipe).update(gradient, moments, parameters)
        step_size = state.rate_scale * _schedule(recipe, total_steps)(step)
        updates = jax.tree.map(lambda update: -step_size * update, updates)
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
    """Rows [N, ...] dealt to the updates [U, N / U, ...], so that a sharded batch stays sharded."""
    return rows.reshape(-1, recipe.num_updates, *rows.shape[1:]).swapaxes(0, 1)


@functools.partial(jax.jit, static_argnames="recipe", donate_argnames="state")
def end_epoch(state: State, mse: jax.Array, key: jax.Array, recipe: Recipe) -> State:
    """Keeps the best model, lowers the rate on a plateau, re-samples dead codewords.

    A codeword that no vector used in the epoch is drawn anew, as main and as pre-selection
    codeword, from a normal distribution with the running statistics of what its step quantizes
    (QINCo2, appendix).

    Args:
      state: donated.
      mse: [] validation error of `state.model`.
      key: of the new codewords.
      recipe: static.
    """
    better = mse < state.best_mse
    stale = jnp.where(better, 0, state.stale + 1)
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.model, state.best)
    rate_scale = state.rate_scale
    if recipe.schedule == "plateau":
        rate_scale *= jnp.where((stale > 0) & (stale % recipe.patience == 0), 0.1, 1.0)

    model, dead = state.model, (state.usage == 0)[..., None]
    fresh = jax.random.normal(key, (*state.usage.shape, model.dim))
    fresh = fresh * state.residual_std[:, None] + state.residual_mean[:, None]
    first = None if model.ivf else jnp.where(dead[0], fresh[0], model.codebook)
    rest = slice(0 if model.ivf else 1, None)
    steps = dataclasses.replace(
        model.steps,
        codebook=jnp.where(dead[rest], fresh[rest], model.steps.codebook),
        preselect=jax.tree.map(
            lambda s: jnp.where(dead[rest], fresh[rest], s), model.steps.preselect
        ),
    )
    return dataclasses.replace(
        state,
        model=qinco.with_parameters(model, (first, steps)),
        best=best,
        best_mse=jnp.minimum(mse, state.best_mse),
        stale=stale,
        rate_scale=rate_scale,
        usage=jnp.zeros_like(state.usage),
    )


def rate(state: State, recipe: Recipe, total_steps: int) -> jax.Array:
    """The learning rate [] of the next step."""
    return state.rate_scale * jnp.asarray(
        _schedule(recipe, total_steps)(state.step.astype(jnp.float32))
    )


def is_exhausted(state: State, recipe: Recipe) -> bool:
    """Whether the "plateau" schedule has nothing left to try."""
    return recipe.schedule == "plateau" and int(state.stale) >= 5 * recipe.patience


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
    clip = optax.identity() if recipe.clip is None else optax.clip(recipe.clip)
    return optax.chain(
        clip,
        optax.scale_by_adam(),
        optax.add_decayed_weights(recipe.weight_decay),
    )


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
