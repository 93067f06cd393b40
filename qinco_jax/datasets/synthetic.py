"""Synthetic vectors with a chosen dependence of residuals on the first code, and a known error.

Each of C cells holds a circle with its own plane and radius. With a first codebook of the centers,
a second codebook of K codewords on the circle of each cell is optimal; one shared by all cells is
not, unless the circles are equal.
"""

from typing import NamedTuple

import numpy as np

from qinco_jax.errors import InputError

CENTER_NORM = 4.0
"""Centers are at least sqrt(2) times this far apart, well beyond the radii of about 1."""
RADIUS_RANGE = 4.0
"""Ratio of the largest radius to the smallest at strength 1."""


class ResidualLaw(NamedTuple):
    """x = centers[j] + frames[j] (cos t, sin t) + noise n: j, t uniform, n standard normal.

    Attributes:
      centers: [C, D] float64, of the cells; the mean of a cell's vectors.
      frames: [C, D, 2] float64; orthogonal columns, both as long as the radius of the cell. The
        mean squared radius is 1.
      noise: standard deviation in each dimension.
    """

    centers: np.ndarray
    frames: np.ndarray
    noise: float


def residual_law(
    seed: int, dim: int, num_cells: int, *, strength: float, noise: float = 0.02
) -> ResidualLaw:
    """Draws a random law; the centers depend on the seed but not on the strength.

    Args:
      seed: of the centers, and of the rotations at strength 1.
      dim: D, at least 2.
      num_cells: C, at most 2 D.
      strength: 0 gives all cells the same circle, so that residuals are independent of the cell;
        1 gives each its own rotation and spreads the radii over `RADIUS_RANGE`; values between
        rotate and spread less.
      noise: standard deviation, below the distance between neighboring codewords on a circle.

    Raises:
      InputError: too many cells for `dim`, or a strength outside 0 to 1.
    """
    if dim < 2 or not 1 <= num_cells <= 2 * dim:
        raise InputError(f"num_cells must be 1 to {2 * dim} in {dim} dimensions, got {num_cells}")
    if not 0 <= strength <= 1:
        raise InputError(f"strength must be 0 to 1, got {strength}")
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    centers = CENTER_NORM * np.concatenate([axes, -axes])[:num_cells]
    generators = rng.normal(size=(num_cells, dim, dim))
    angles = np.pi / np.sqrt(8 * dim) * (generators - generators.swapaxes(1, 2))  # within +-pi
    radii = RADIUS_RANGE ** (strength * np.linspace(-0.5, 0.5, num_cells))
    radii /= np.sqrt(np.mean(radii**2))
    frames = radii[:, None, None] * _rotations(strength * angles)[:, :, :2]
    return ResidualLaw(centers, frames, noise)


def draw(law: ResidualLaw, seed: int, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws vectors [N, D] float32 from a law; also returns the cell of each, [N] int64."""
    rng = np.random.default_rng(seed)
    num_cells, dim = law.centers.shape
    cells = rng.integers(num_cells, size=num_rows)
    angle = rng.uniform(0, 2 * np.pi, size=num_rows)
    on_circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    x = law.centers[cells] + np.einsum("ndi,ni->nd", law.frames[cells], on_circle)
    return (x + law.noise * rng.normal(size=(num_rows, dim))).astype(np.float32), cells


def conditional_codebooks(law: ResidualLaw, codebook_size: int) -> np.ndarray:
    """The optimal K codewords for the residuals of each cell, [C, K, D]: a regular polygon."""
    angle = 2 * np.pi / codebook_size * np.arange(codebook_size)
    corners = np.stack([np.cos(angle), np.sin(angle)])
    radii, mean_distance = _distances(law)
    shrink = np.sinc(1 / codebook_size) * mean_distance / radii
    return (shrink[:, None, None] * (law.frames @ corners)).swapaxes(1, 2)


def ideal_error(law: ResidualLaw, codebook_size: int) -> float:
    """Mean squared error, summed over dimensions, of the centers and `conditional_codebooks`.

    The nearest of K corners leaves E[r^2] - (sinc(1/K) E[r])^2 in the plane, r the distance from
    the center, and the noise in the other D - 2 dimensions.
    """
    radii, mean_distance = _distances(law)
    in_plane = radii**2 + 2 * law.noise**2 - (np.sinc(1 / codebook_size) * mean_distance) ** 2
    return float(np.mean(in_plane) + (law.centers.shape[1] - 2) * law.noise**2)


def _distances(law: ResidualLaw) -> tuple[np.ndarray, np.ndarray]:
    """The radius of each cell [C], and its vectors' mean distance from the center in the plane.

    The mean of a Rice distribution, up to terms of order noise^6.
    """
    radii = np.linalg.norm(law.frames[:, :, 0], axis=1)
    return radii, radii + law.noise**2 / (2 * radii) + law.noise**4 / (8 * radii**3)


def _rotations(skew: np.ndarray) -> np.ndarray:
    """Matrix exponentials of skew-symmetric matrices [C, D, D]."""
    values, vectors = np.linalg.eigh(1j * skew)
    return np.real((vectors * np.exp(-1j * values)[:, None, :]) @ vectors.conj().swapaxes(1, 2))
