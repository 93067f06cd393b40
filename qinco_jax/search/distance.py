"""How a distance is read off a code: from the reconstruction alone, or with a byte kept beside it.

A reconstruction is a mean of the vectors that share a code, so it is shorter than they are. The
vector's own length |x| puts that right for all alike. A scale s depends on how far off each one is,
too, by the cosine c of x and x_hat. With s = c |x| / |x_hat|, <q, s x_hat> is the best guess of
<q, x> for any q; near x, where ranking matters, s = sqrt(c) |x| / |x_hat|, half-way to the length,
finds more than both. Which reading ranks best is tried on rows (`trial`).
"""

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.quantizers.distances import matmul

KINDS = ("reconstruction", "length", "scale")
LEVELS = 256  # of a byte
SAME_LENGTH = 0.01  # spread of squared lengths that count as one, as a share of the variance


@flax.struct.dataclass
class Reading:
    """How distances of one metric are read off.

    Attributes:
      low: [V] float32, the value that level 0 of each byte stands for.
      step: [V] float32, what each further level adds.
      squared_length: [] float32, mean |x|^2, which all vectors share where `kind` is "scale".
      origin: [D] float32, which is subtracted from all vectors under "l2", so that float32 keeps
        the digits of distances; 0 for other metrics, and where all lengths are the same.
      slope: [V] float32, what the scan adds for a level, in addition to <q, x_hat>.
      offset: [] float32, what it adds for level 0 of all bytes.
      metric: "l2", "ip" or "cosine", static.
      kind: one of `KINDS`, static. The first byte holds |x_hat|^2 of the additive decoder, |x|^2,
        or s. Under "l2" a second one holds |x_hat|^2 beside the latter two: the scan cannot do
        without.
    """

    low: jax.Array
    step: jax.Array
    squared_length: jax.Array
    slope: jax.Array
    offset: jax.Array
    origin: jax.Array
    metric: str = flax.struct.field(pytree_node=False)
    kind: str = flax.struct.field(pytree_node=False)


class Measured(NamedTuple):
    """Rows to choose a reading by: vectors, both reconstructions, all [N, D] and `in_space`."""

    x: np.ndarray
    x_hat: np.ndarray
    rough: np.ndarray


def kinds(metric: str, x: np.ndarray) -> tuple[str, ...]:
    """The readings that a metric has for vectors [N, D]: what says nothing about them is left out.

    Of unit vectors, and others of one length, the length says nothing. Where lengths differ, an L2
    distance depends on them, and the scale alone would not tell them.
    """
    if metric == "ip":
        return KINDS
    same = metric == "cosine" or have_one_length(x)
    return ("reconstruction", "scale") if same else ("reconstruction", "length")


def have_one_length(x: np.ndarray) -> bool:
    """Whether the lengths of vectors [N, D] differ too little to tell them apart."""
    squares = np.square(x, dtype=np.float64).sum(axis=1)
    return bool(squares.std() <= SAME_LENGTH * x.var(axis=0, dtype=np.float64).sum())


def origin_of(metric: str, x: np.ndarray) -> np.ndarray:
    """The `origin` of a reading for vectors like these, [D] float32."""
    if metric != "l2" or have_one_length(x):
        return np.zeros(x.shape[1], np.float32)
    return x.mean(axis=0, dtype=np.float64).astype(np.float32)


def in_space(x: np.ndarray, metric: str, origin: np.ndarray) -> np.ndarray:
    """Vectors [N, D] as distances are computed, float32: less the origin, or of unit length."""
    x = np.asarray(x, np.float32)
    if metric != "cosine":
        return x - origin if metric == "l2" else x
    largest = np.abs(x).max(axis=1, keepdims=True)  # as `transform.unit`, without compiling
    x = x / np.where(largest > 0, largest, 1)
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(lengths > 0, lengths, 1)


def fit(metric: str, kind: str, rows: Measured, origin: np.ndarray, pull: float = 0.0) -> Reading:
    """A reading whose byte spans the values of these rows.

    `pull` is how much of a vector's scale the scan takes into account, 0 to 1.
    """
    found = values(metric, kind, rows)
    low, high = np.quantile(found, (0.001, 0.999), axis=0)
    step = np.maximum(high - low, 1e-12 + 1e-6 * np.abs(high)) / (LEVELS - 1)
    heeded, center = np.zeros(len(low)), np.zeros(len(low))
    if kind == "scale":
        middle = np.square(rows.x_hat, dtype=np.float64).sum(axis=1).mean()
        heeded[0], center[0] = pull * middle, found[:, 0].mean()
    if metric == "l2":
        heeded[-1] = -0.5
    squared = np.square(rows.x, dtype=np.float64).sum(axis=1).mean()
    numbers = low, step, squared, heeded * step, heeded @ (low - center), origin
    low, step, mean, slope, offset, zero = (jnp.asarray(number, jnp.float32) for number in numbers)
    return Reading(low, step, mean, slope, offset, zero, metric, kind)


def values(metric: str, kind: str, rows: Measured) -> np.ndarray:
    """What a reading keeps of each row, [N, V] float64."""
    norms = np.square(rows.rough, dtype=np.float64).sum(axis=1)
    if kind == "reconstruction":
        return norms[:, None]
    if kind == "length":
        first = np.square(rows.x, dtype=np.float64).sum(axis=1)
    else:
        lengths = np.linalg.norm(rows.x.astype(np.float64), axis=1)
        own = np.linalg.norm(rows.x_hat.astype(np.float64), axis=1)
        products = (rows.x.astype(np.float64) * rows.x_hat).sum(axis=1)
        both = np.sqrt(np.maximum(products, 0) * lengths)
        first = np.where(own > 0, both / np.maximum(own, 1e-30) ** 1.5, 1.0)
    return np.stack([first, norms] if metric == "l2" else [first], axis=1)


def to_bytes(reading: Reading, found: np.ndarray) -> np.ndarray:
    """Values [N, V] as the nearest of 256 levels each, uint8."""
    levels = np.rint((found - np.asarray(reading.low)) / np.asarray(reading.step))
    return np.clip(levels, 0, LEVELS - 1).astype(np.uint8)


def distances(
    reading: Reading, queries: jax.Array, x_hat: jax.Array, levels: jax.Array
) -> jax.Array:
    """Distances [N] of queries [N, D] to reconstructions [N, D], a pair a row.

    Both are `in_space`. `levels` [N, V] are the bytes. Smaller is nearer: the squared L2 distance,
    minus the inner product, minus the cosine.
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


def ranked_by(reading: Reading) -> str:
    """The metric, "l2" or "ip", by which queries rank `stretched` rows as by the reading."""
    return "l2" if reading.metric == "l2" and reading.kind != "scale" else "ip"


@jax.jit
def stretched(reading: Reading, x_hat: jax.Array, levels: jax.Array) -> jax.Array:
    """Reconstructions [N, D], `in_space`, with the lengths that their bytes [N, V] give them.

    What else a distance has is the same for all rows: under "l2" with a scale it is
    |q|^2 + `squared_length` - 2 <q, stretched>.
    """
    return _readings(reading, x_hat, levels)[0][:, None] * x_hat


def _readings(reading: Reading, x_hat: jax.Array, levels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What stretches reconstructions, [N], and what to add to |q - stretched|^2, [N]."""
    squares = jnp.maximum(jnp.sum(jnp.square(x_hat), axis=1), 1e-30)
    value = reading.low[0] + reading.step[0] * levels[:, 0].astype(jnp.float32)
    if reading.kind == "scale":
        return value, reading.squared_length - jnp.square(value) * squares
    if reading.metric == "cosine":
        return jax.lax.rsqrt(squares), jnp.zeros_like(squares)
    if reading.kind == "length":
        return jnp.sqrt(jnp.maximum(value, 0)) / jnp.sqrt(squares), jnp.zeros_like(squares)
    return jnp.ones_like(squares), jnp.zeros_like(squares)


def scan_adds(reading: Reading, levels: np.ndarray) -> np.ndarray:
    """What the scan adds to <q, x_hat> for bytes [N, V], [N] float64."""
    return float(reading.offset) + levels @ np.asarray(reading.slope, np.float64)


def of_scores(reading: Reading, queries: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Distances [Q, S] of the scan's scores [Q, S], by the additive decoder alone."""
    if reading.metric != "l2":
        return -scores
    return np.square(queries).sum(axis=1, keepdims=True) - 2 * scores


def settings(reading: Reading) -> dict[str, Any]:
    """The reading as json, without its origin."""
    fields = {field.name: getattr(reading, field.name) for field in dataclasses.fields(reading)}
    del fields["origin"]
    return {
        name: np.asarray(value).tolist() if isinstance(value, jax.Array) else value
        for name, value in fields.items()
    }


def from_settings(found: dict[str, Any], origin: np.ndarray) -> Reading:
    """The reading that `settings` wrote, and its origin."""
    low, step, squared, slope, offset = (
        jnp.asarray(found[name], jnp.float32)
        for name in ("low", "step", "squared_length", "slope", "offset")
    )
    return Reading(
        low, step, squared, slope, offset, jnp.asarray(origin), found["metric"], found["kind"]
    )
