"""The pairwise decoder of a search: tables for pairs of codes, above the additive decoder.

The additive decoder cannot say what two codes mean together. Where many vectors were seen, a table
of K * K rows for such a pair can (QINCo2, Sec. 3), at a cost between the scan's and the network's:
of more codes than the network could decode it picks those that are worth it.
"""

import functools
import itertools
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.quantizers import pairwise_decoder, rq
from qinco_jax.quantizers.coding import Model
from qinco_jax.quantizers.pairwise_decoder import PairwiseDecoder
from qinco_jax.vectors.stored import spans

WIDER = 4  # times as many codes come from the scan
STRENGTHS = 1.0, 4.0, 16.0, 64.0  # rows by which a cell is drawn to the additive decoder
MIN_GAIN = 0.01  # of the error that is left, for which a table is kept
MAX_TABLES, MAX_BYTES = 8, 2**28
LEAST_ROWS, CHOICE_ROWS = 4, 64  # for each cell: to fit tables at all, to compare pairs by
COARSE_STEPS = 3
BLOCK_ROWS = 65536
NAMES = "singles", "coarse_codes", "pairs", "pair_tables"


@flax.struct.dataclass
class Pairs:
    """Approximates a vector by its list's, one table row for each code and one for each pair.

    Attributes:
      singles: [C, K, D] float32, the tables of the additive decoder; 0 for a decoder without one.
      decoder: the tables of the pairs.
      base: [L, D] float32, the vectors of residual lists; `None` for other lists, whose codes say
        all, although pairs of them with a code may say more.
    """

    singles: jax.Array
    decoder: PairwiseDecoder
    base: jax.Array | None

    def decode(self, codes: jax.Array) -> jax.Array:
        """Approximations [N, D] float32 of lists and codes [N, 1 + C] int32."""
        x_hat = pairwise_decoder.decode_rows(self.decoder, codes)
        for place in range(len(self.singles)):
            x_hat = x_hat + self.singles[place, codes[:, 1 + place]]
        return x_hat if self.base is None else x_hat + self.base[codes[:, 0]]


def fit(
    codes: np.ndarray,
    left: np.ndarray,
    singles: np.ndarray,
    list_vectors: np.ndarray,
    is_residual: bool,
    *,
    num_held: int,
    seed: int = 0,
) -> Pairs | None:
    """The pairs that say most about what the additive decoder leaves over; `None` if none do.

    Args:
      codes: lists and codes [N, 1 + C] int32.
      left: [N, D] float32, x less the additive decoder's approximation.
      singles: [C, K, D] of that decoder.
      list_vectors: [L, D]; each is told to the pairs as one code, or of more than K lists as three.
      is_residual: whether the list's vector is part of the approximation.
      num_held: the last rows, which are held back.
      seed: of the small codes of list vectors.
    """
    num_columns, codebook_size, _ = singles.shape
    coarse = coarse_codes(list_vectors, codebook_size, seed)
    pool = np.concatenate([codes[:, 1:], coarse[codes[:, 0]]], axis=1)
    pairs, tables = fit_tables(pool, left, codebook_size, num_held)
    if not len(tables):
        return None
    decoder = pairwise_decoder.checked(coarse, pairs, tables, num_steps=num_columns)
    base = jnp.asarray(list_vectors) if is_residual else None
    return Pairs(jnp.asarray(singles), decoder, base)


def coarse_codes(list_vectors: np.ndarray, codebook_size: int, seed: int) -> np.ndarray:
    """Small codes [L, P] int32 in 0..K-1 of the list vectors [L, D]."""
    if len(list_vectors) <= codebook_size:
        return np.arange(len(list_vectors), dtype=np.int32)[:, None]
    found = rq.train(list_vectors, COARSE_STEPS, codebook_size, seed=seed)
    return np.asarray(rq.encode(found, list_vectors, beam_size=1)).astype(np.int32)


def fit_tables(
    pool: np.ndarray, left: np.ndarray, codebook_size: int, num_held: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best pairs one after the other, each for what the ones before leave over.

    The row of a cell is the mean of its rows, times n / (n + strength) for n of them. Pair and
    strength are those with the least error on the rows held back; a table that lowers it by less
    than a hundredth ends the search.

    Args:
      pool: [N, P] integers in 0..K-1, all that pairs are chosen among.
      left: [N, D] float32.
      codebook_size: K.
      num_held: the last rows, which are held back.

    Returns:
      Pairs [2, T] int32 and tables [T, K * K, D] float32, T from 0 to as many as
      `MAX_TABLES` and `MAX_BYTES` allow.
    """
    left, (num_rows, dim) = np.array(left, np.float32), left.shape
    num_cells, num_seen = codebook_size**2, num_rows - num_held
    seen, held = slice(num_seen), slice(num_seen, num_rows)
    some = slice(0, num_seen, max(1, num_seen // (CHOICE_ROWS * num_cells)))
    pairs, tables = [], []
    for _ in range(min(MAX_TABLES, MAX_BYTES // (4 * num_cells * dim))):
        tried: list[tuple[float, tuple[int, int]]] = []
        for pair in itertools.combinations(range(pool.shape[1]), 2):
            cells = cells_of(pool, pair, codebook_size)
            counts, sums = cell_sums(cells[some], left[some], num_cells)
            tried.append((min(_errors(counts, sums, cells[held], left[held])), pair))
        _, pair = min(tried)
        cells = cells_of(pool, pair, codebook_size)
        counts, sums = cell_sums(cells[seen], left[seen], num_cells)
        errors = _errors(counts, sums, cells[held], left[held])
        if min(errors) > (1 - MIN_GAIN) * np.square(left[held], dtype=np.float64).sum():
            break
        strength = STRENGTHS[int(np.argmin(errors))]
        tables.append(sums / (counts + np.float32(strength))[:, None])
        pairs.append(pair)
        for span in spans(num_rows, BLOCK_ROWS):
            left[span] -= tables[-1][cells[span]]
    found = np.array(pairs, np.int32).reshape(-1, 2).T
    return found, np.array(tables, np.float32).reshape(-1, num_cells, dim)


def cells_of(pool: np.ndarray, pair: tuple[int, int], codebook_size: int) -> np.ndarray:
    """The cell i * K + j [N] int32 of each row's codes [N, P] at two places of the pool."""
    first, second = (pool[:, place].astype(np.int32) for place in pair)
    return first * np.int32(codebook_size) + second


def cell_sums(cells: np.ndarray, left: np.ndarray, num_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """How many rows each cell has, [cells] float32, and the sums [cells, D] of their `left`."""
    counts = np.bincount(cells, minlength=num_cells).astype(np.float32)
    sums = jnp.zeros((num_cells, left.shape[1]), jnp.float32)
    for span in spans(len(cells), BLOCK_ROWS):
        sums = _add(sums, jnp.asarray(cells[span]), jnp.asarray(left[span]))
    return counts, np.asarray(sums)


@functools.partial(jax.jit, donate_argnums=0)
def _add(sums: jax.Array, cells: jax.Array, left: jax.Array) -> jax.Array:
    return sums.at[cells].add(left)


def _errors(
    counts: np.ndarray, sums: np.ndarray, cells: np.ndarray, left: np.ndarray
) -> list[float]:
    """The squared error of rows that a table of each strength leaves over."""
    own = sums[cells]
    products = np.einsum("nd,nd->n", own, left, dtype=np.float64)
    squares = np.einsum("nd,nd->n", own, own, dtype=np.float64)
    total = np.einsum("nd,nd->", left, left, dtype=np.float64)
    shares = [1 / (counts[cells] + strength) for strength in STRENGTHS]
    return [float(total + (share * (share * squares - 2 * products)).sum()) for share in shares]


def check_fits(decoder: PairwiseDecoder, model: Model, metric: str) -> None:
    """Refuses a published decoder that says nothing about the distances of a model's codes.

    Raises:
      InputError: it is of other codes, or the metric is "cosine".
    """
    if metric == "cosine":
        raise InputError(
            "the pairwise decoder approximates vectors, not angles; leave it out, or build the "
            'index with metric="l2" or "ip"'
        )
    num_centroids = model.config.num_centroids
    ours = num_centroids, len(model.column_sizes) - 1, model.codebook_size, model.dim
    theirs = (
        len(decoder.coarse_codes), decoder.num_steps, decoder.codebook_size,
        decoder.tables.shape[2],
    )  # fmt: skip
    if ours != theirs:
        raise InputError(
            f"the pairwise decoder is of (K_ivf, M, K, D) = {theirs} and the model of {ours}; give "
            "the decoder that was fitted to the model's codes"
        )


def alone(decoder: PairwiseDecoder, list_vectors: np.ndarray) -> Pairs:
    """A published decoder, which says all that a code adds to its coarse centroid."""
    size, dim = decoder.codebook_size, decoder.tables.shape[2]
    singles = jnp.zeros((decoder.num_steps, size, dim), jnp.float32)
    return Pairs(singles, decoder, jnp.asarray(list_vectors))


def arrays(pairs: Pairs | None) -> dict[str, np.ndarray]:
    """What a file keeps of it, by the names that `of_arrays` takes."""
    if pairs is None:
        return {}
    decoder = pairs.decoder
    found = pairs.singles, decoder.coarse_codes, decoder.pairs, decoder.tables
    return dict(zip(NAMES, map(np.asarray, found), strict=True))


def of_arrays(
    found: Mapping[str, np.ndarray], list_vectors: np.ndarray, is_residual: bool
) -> Pairs | None:
    """The decoder that `arrays` wrote among others, if one is there."""
    if NAMES[0] not in found:
        return None
    singles, *rest = (found[name] for name in NAMES)
    decoder = pairwise_decoder.checked(*rest, num_steps=len(singles))
    base = jnp.asarray(list_vectors) if is_residual else None
    return Pairs(jnp.asarray(singles), decoder, base)
