"""From vectors to model space in which codewords are added up, and back."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.quantizers.distances import along_last, matmul
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows, derived, spans

Array = jax.Array | np.ndarray

COVARIANCE_ROWS = 8192
PRECISION = 2.0**24  # float32 rounds a number so many times as large as z by as much as z
SCALES = 1e-12, 1e12


@flax.struct.dataclass
class Transform:
    """z = (u - mean) / scale, then z R; u is the vector x, or x / |x|.

    Attributes:
      mean: [D] float32.
      scale: [] float32.
      rotation: R [D, D] float32, orthogonal; `None` is the identity.
      unit_norm: whether u = x / |x|, static; a vector of zeros stays one.
    """

    mean: jax.Array
    scale: jax.Array
    rotation: jax.Array | None = None
    unit_norm: bool = flax.struct.field(pytree_node=False, default=False)


def to_model_space(x: jax.Array, transform: Transform) -> jax.Array:
    """Vectors as the codebooks and the network see them: centred, scaled and rotated.

    Args:
      x: [..., D], any real dtype.
      transform: a model's (`model.transform`), which undoes it at the end of `decode`.

    Returns:
      [..., D] float32: (u - mean) / scale, rotated where the model rotates, with u = x / |x| for a
      model of unit vectors, else x.
    """
    x = x.astype(jnp.float32)
    if transform.unit_norm:
        x = unit(x)
    z = (x - along_last(transform.mean, x)) / transform.scale
    return z if transform.rotation is None else matmul(z, transform.rotation)


def from_model_space(z: jax.Array, transform: Transform) -> jax.Array:
    """The u [..., D] of z [..., D] float32: undoes `to_model_space`, except for lengths."""
    if transform.rotation is not None:
        z = matmul(z, transform.rotation.T)
    return z * transform.scale + along_last(transform.mean, z)


def reach(transform: Transform, spread: float = 1.0) -> float:
    """The greatest magnitude of numbers in vectors whose codes mean something.

    Farther out, float32 rounds a vector by as much as codewords lie apart, and distances tell no
    codeword from another.

    Args:
      transform: a model's, of concrete arrays.
      spread: how far codewords lie from 0 in model space, where training vectors have a standard
        deviation of 1.
    """
    if transform.unit_norm:
        return checks.FLOAT32_MAX
    middle = float(np.abs(np.asarray(transform.mean)).max())
    return min(checks.FLOAT32_MAX, middle + PRECISION * float(transform.scale) * spread)


def unit(x: jax.Array) -> jax.Array:
    """Vectors [..., D] float32 divided by their length; zeros stay zeros.

    So do vectors of numbers below 1.2e-38, which XLA takes for zeros.
    """
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    # XLA multiplies by the inverse of a divisor, and that of 1e38 would be zero to it.
    nearer = jnp.where(largest > 2.0**64, 2.0**-64, jnp.where(largest < 2.0**-64, 2.0**64, 1.0))
    x, largest = x * nearer, largest * nearer
    x = x / jnp.where(largest > 0, largest, 1.0)  # else the squares of 1e20 and 1e-30 are lost
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.where(squares > 0, squares, 1.0))


def approximated(x: Array, unit_norm: bool) -> np.ndarray:
    """What a codec's reconstructions of vectors [N, D] approximate: x, or x / |x|, float32."""
    x = np.asarray(x, np.float32)
    return np.asarray(unit(jnp.asarray(x))) if unit_norm else x


def approximate(x: Rows, unit_norm: bool) -> Rows:
    """The rows [N, D] that reconstructions of `x` approximate, computed when they are read."""
    return derived(x, functools.partial(approximated, unit_norm=True)) if unit_norm else x


def of_rows(
    rows: np.ndarray, *, unit_norm: bool = False, center: bool = True, rotate: bool = False
) -> Transform:
    """The transform that training vectors [N, D] ask for.

    Args:
      rows: of any real dtype.
      unit_norm: divide vectors by their length.
      center: take `mean` from the rows; else it is 0.
      rotate: take R from the rows' PCA: its columns are the principal components, greatest
        variance first, each with its greatest entry positive.

    Returns:
      The transform. Its scale is the standard deviation of all numbers from the mean, or from 0
      without one (QINCo2, Sec. 4); 1 where all are the same.

    Raises:
      InputError: the rows are so small or large that float32 loses the squares of errors.
    """
    rows = approximated(rows, unit_norm) if unit_norm else rows
    middle = rows.mean(axis=0, dtype=np.float64)
    mean = middle if center else np.zeros_like(middle)
    variance = np.square(rows - mean).mean()
    scale = np.sqrt(variance) if variance > 0 else 1.0
    if not SCALES[0] <= scale <= SCALES[1]:
        raise InputError(
            f"the training vectors vary by {scale:.0e}, and float32 loses the squares of numbers "
            f"outside {SCALES[0]:g} to {SCALES[1]:g}; multiply them by {1 / scale:.0e}"
        )
    rotation = np.float32(_components(rows, middle)) if rotate else None
    placed = jax.device_put((np.float32(mean), np.float32(scale), rotation))
    return Transform(placed[0], placed[1], placed[2], unit_norm)


def _components(rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The principal components of rows [N, D], as columns [D, D] float64."""
    scatter = np.zeros((len(mean), len(mean)))
    for span in spans(len(rows), COVARIANCE_ROWS):
        part = rows[span] - mean
        scatter += part.T @ part
    columns = np.linalg.eigh(scatter)[1][:, ::-1]
    greatest = np.abs(columns).argmax(axis=0)
    return columns * np.sign(columns[greatest, np.arange(len(mean))])
