"""How a distance is read off a code: from the reconstruction alone, or with a byte kept beside it.

A reconstruction is a mean of the vectors that share a code, so it is shorter than they are. The
vector's own length, or the scale s = <x, x_hat> / |x_hat|^2 that makes <q, s x_hat> the best guess
of <q, x>, puts that right. Which of them ranks best is tried on rows held back (`build`).
"""

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.quantizers.distances import matmul

KINDS = ("reconstruction", "length", "scale")
LEVELS = 256  # of the byte
SAME_LENGTH = 0.01  # relative spread of lengths that count as one


@flax.struct.dataclass
class Reading:
    """How distances of one metric are read off.

    Attributes:
      low: [] float32, the value of byte 0.
      step: [] float32, what each further level adds.
      squared_length: [] float32, mean |x|^2, which all vectors share where `kind` is "scale".
      slope: what the scan adds for a level, in addition to <q, x_hat>; `offset` for byte 0.
      offset: see `slope`.
      metric: "l2", "ip" or "cosine", static.
      kind: one of `KINDS`, static. The byte holds |x_hat|^2 of the additive decoder, |x|^2, or s.
    """

    low: jax.Array
    step: jax.Array
    squared_length: jax.Array
    slope: jax.Array
    offset: jax.Array
    metric: str = flax.struct.field(pytree_node=False)
    kind: str = flax.struct.field(pytree_node=False)


class Measured(NamedTuple):
    """Rows to choose a reading by: vectors, both reconstructions, all [N, D]."""

    x: np.ndarray
    x_hat: np.ndarray
    rough: np.ndarray


def kinds(metric: str, x: np.ndarray) -> tuple[str, ...]:
    """The readings that a metric has for vectors [N, D]."""
    if metric == "cosine":  # of a unit vector the length says nothing
        return "reconstruction", "scale"
    lengths = np.linalg.norm(x, axis=1)
    if metric == "ip" or lengths.std() <= SAME_LENGTH * lengths.mean():
        return KINDS
    return "reconstruction", "length"


def fit(metric: str, kind: str, rows: Measured, pull: float = 0.0) -> Reading:
    """A reading whose byte spans the values of these rows.

    `pull` is how much of a vector's scale the scan takes into account, 0 to 1.
    """
    found = values(metric, kind, rows)
    low, high = np.quantile(found, (0.001, 0.999))
    step = max(float(high - low), 1e-12 + 1e-6 * abs(float(high))) / (LEVELS - 1)
    middle = float(np.square(rows.x_hat, dtype=np.float64).sum(axis=1).mean())
    slope = {"reconstruction": -0.5, "length": -0.5, "scale": pull * middle}[kind]
    if metric != "l2" and kind != "scale":
        slope = 0.0
    center = float(found.mean()) if kind == "scale" else 0.0
    squared = float(np.square(rows.x, dtype=np.float64).sum(axis=1).mean())
    low, step, squared, slope, offset = map(
        jnp.float32, (low, step, squared, slope * step, slope * (low - center))
    )
    return Reading(low, step, squared, slope, offset, metric, kind)


def values(metric: str, kind: str, rows: Measured) -> np.ndarray:
    """What a reading keeps of each row, [N] float64."""
    if kind == "reconstruction":
        return np.square(rows.rough, dtype=np.float64).sum(axis=1)
    if kind == "length":
        return np.square(rows.x, dtype=np.float64).sum(axis=1)
    squares = np.square(rows.x_hat, dtype=np.float64).sum(axis=1)
    products = (rows.x.astype(np.float64) * rows.x_hat).sum(axis=1)
    return np.where(squares > 0, products / np.maximum(squares, 1e-30), 1.0)


def to_bytes(reading: Reading, found: np.ndarray) -> np.ndarray:
    """Values [N] as the nearest of 256 levels, uint8."""
    levels = np.rint((found - float(reading.low)) / float(reading.step))
    return np.clip(levels, 0, LEVELS - 1).astype(np.uint8)


def distances(
    reading: Reading, queries: jax.Array, x_hat: jax.Array, levels: jax.Array
) -> jax.Array:
    """Distances [N] of queries [N, D] to reconstructions [N, D], a pair a row.

    Queries are of unit length under "cosine". `levels` [N] are the bytes. Smaller is nearer: the
    squared L2 distance, minus the inner product, minus the cosine.
    """
    factor, rest = _readings(reading, x_hat, levels)
    near = factor[:, None] * x_hat
    if reading.metric != "l2":
        return -jnp.sum(queries * near, axis=1)
    return jnp.maximum(jnp.sum(jnp.square(queries - near), axis=1) + rest, 0)


@jax.jit
def all_distances(
    reading: Reading, queries: jax.Array, x_hat: jax.Array, levels: jax.Array
) -> jax.Array:
    """Distances [Q, N] of queries [Q, D] to all reconstructions [N, D], as `distances`."""
    factor, rest = _readings(reading, x_hat, levels)
    near = factor[:, None] * x_hat
    products = matmul(queries, near.T)
    if reading.metric != "l2":
        return -products
    own = jnp.sum(jnp.square(near), axis=1) + rest
    return jnp.maximum(jnp.sum(jnp.square(queries), axis=1)[:, None] + own[None] - 2 * products, 0)


def _readings(reading: Reading, x_hat: jax.Array, levels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What stretches reconstructions, [N], and what to add to |q - stretched|^2, [N]."""
    squares = jnp.maximum(jnp.sum(jnp.square(x_hat), axis=1), 1e-30)
    value = reading.low + reading.step * levels.astype(jnp.float32)
    if reading.kind == "scale":
        return value, reading.squared_length - jnp.square(value) * squares
    if reading.metric == "cosine":
        return jax.lax.rsqrt(squares), jnp.zeros_like(squares)
    if reading.kind == "length":
        return jnp.sqrt(jnp.maximum(value, 0) / squares), jnp.zeros_like(squares)
    return jnp.ones_like(squares), jnp.zeros_like(squares)


def of_scores(reading: Reading, queries: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Distances [Q, S] of the scan's scores [Q, S], by the additive decoder alone."""
    if reading.metric != "l2":
        return -scores
    own = float(reading.squared_length) if reading.kind == "scale" else 0.0
    return np.square(queries).sum(axis=1, keepdims=True) + own - 2 * scores


def settings(reading: Reading) -> dict[str, Any]:
    """The reading as json."""
    fields = {field.name: getattr(reading, field.name) for field in dataclasses.fields(reading)}
    return {name: float(v) if isinstance(v, jax.Array) else v for name, v in fields.items()}


def from_settings(found: dict[str, Any]) -> Reading:
    """The reading that `settings` wrote."""
    static = {name: found[name] for name in ("metric", "kind")}
    numbers = {name: jnp.float32(found[name]) for name in found if name not in static}
    return Reading(**numbers, **static)
