"""Faiss's codecs: PQ, OPQ, RQ, LSQ, and those of vector databases.

PQ, OPQ, RQ and LSQ have 8 bits per code and Faiss's defaults, as in the QINCo paper (Sec. 5.1), and
at most 500,000 training vectors; RQ is the better of two trainings. All four may be trained on
vectors that are moved towards their neighbours (`training.mixing`), where there are few. RaBitQ,
TurboQuant (without its unbiased part) and scalar quantization keep some bits of every dimension, so
they have few rates, from D / 8 bytes.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from qinco_jax import numbers, optional
from qinco_jax.codecs.codec import Array, Codec
from qinco_jax.errors import InputError
from qinco_jax.quantizers.rq import sample_rows
from qinco_jax.seeds import ROW_ORDER, seed_for
from qinco_jax.training import mixing
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Vectors

MAX_TRAIN_ROWS = 500_000
CODEWORDS = 256
NORM_BYTES = 4
CHOICE_ROWS = 10_000  # held back to choose between two trainings of RQ
DEFAULT_BEAM = 5  # Faiss's
TRAINING_BEAMS = 1, DEFAULT_BEAM
NAMES = {
    "pq": "PQ",
    "opq": "OPQ",
    "rq": "RQ",
    "lsq": "LSQ",
    "rabitq": "RaBitQ",
    "turboquant": "TurboQuant",
    "sq": "SQ",
}
NAMED = ", ".join(NAMES.values())
MOVABLE = "pq", "opq", "rq", "lsq"  # codecs that learn codebooks, and may overfit
MOVED_ROWS = 100_000  # at least, that a codec is trained on if rows are moved


def rates(name: str, dim: int) -> list[int] | None:
    """The rates in bytes that a codec has for D dimensions; `None` if it has all from 1 to D."""
    if name == "rabitq":
        return [-(-dim // 8) + 8]
    if name == "turboquant":
        return [-(-dim * bits // 8) + NORM_BYTES for bits in (1, 2, 3, 4, 8)]
    if name == "sq":
        return [-(-dim * bits // 8) for bits in (4, 6, 8)]
    return None


def train(
    name: str,
    x: Vectors,
    num_bytes: int,
    *,
    seed: int = 0,
    beam_size: int | None = None,
    mix: float = 0.0,
) -> Codec:
    """Trains a codec.

    Args:
      name: a key of `NAMES`.
      x: [N, D] training vectors of any real dtype, at least 256; sampled if there are many.
      num_bytes: of a code, one of the codec's rates.
      seed: of the sample and the order of the rows, on which Faiss's initial centroids depend.
      beam_size: B of RQ's encoding; `None` is Faiss's 5. RQ is trained with a beam of 1 and of 5,
        and the one with the smaller error on a tenth of the rows, held back, is taken.
      mix: of a codec in `MOVABLE`: it is trained on `MOVED_ROWS`, which are `x` several times over,
        each time moved by at most this share of the way towards a neighbour; 0 moves none.

    Raises:
      InputError: Faiss is not installed, invalid vectors, too many to be moved, or a rate that the
        codec does not have.
    """
    faiss = optional.faiss(NAMED)
    checks.vectors(x, what="the training vectors")
    seed = numbers.seed(seed)
    possible = rates(name, x.shape[1]) or range(1, x.shape[1] + 1)
    if num_bytes not in possible:
        listed = ", ".join(map(str, possible))
        raise InputError(
            f"{NAMES[name]} of {x.shape[1]} dimensions takes {listed} bytes, not {num_bytes}"
        )
    if len(x) < CODEWORDS:
        raise InputError(
            f"{len(x)} training vectors for {CODEWORDS} codewords; give at least as many"
        )
    rows = sample_rows(x, MAX_TRAIN_ROWS, seed)
    rows = checks.finite(rows, what="the training vectors").astype(np.float32)
    make = functools.partial(faiss.index_factory, x.shape[1], _factory(name, x.shape[1], num_bytes))
    encode, decode = (_unit_encode, _unit_decode) if name == "turboquant" else (_encode, _decode)
    rows = np.random.default_rng(seed_for(seed, ROW_ORDER)).permutation(rows)
    held_back = min(len(rows) // 10, CHOICE_ROWS, len(rows) - CODEWORDS) if name == "rq" else 0
    rows, goal = np.split(rows, [len(rows) - held_back])
    if mix:
        rows = np.asarray(mixing.at_least(rows, mix, seed, MOVED_ROWS))
    if name == "rq":
        index = _better_rq(make, rows, goal, beam_size)
    else:
        index = make()
        with _without_warnings(index, num_bytes):
            index.train(rows / _norms(rows) if name == "turboquant" else rows)
    return Codec(
        NAMES[name] + f" B={beam_size}" * bool(beam_size) + ", moved" * bool(mix),
        8.0 * num_bytes,
        functools.partial(encode, index),
        functools.partial(decode, index),
        len(faiss.serialize_index(index)),
    )


def _better_rq(
    make: Callable[[], Any], rows: np.ndarray, goal: np.ndarray, beam_size: int | None
) -> Any:
    """Which of two beams in training gives the smaller error on `goal` depends on the vectors."""
    found = []
    for training_beam in TRAINING_BEAMS:
        index = make()
        index.rq.max_beam_size = training_beam
        index.rq.cp.min_points_per_centroid = 1
        index.train(rows)
        index.rq.max_beam_size = beam_size or DEFAULT_BEAM
        error = np.square(goal - _decode(index, _encode(index, goal)), dtype=np.float64).sum()
        found.append((error, index))
    return min(found, key=lambda pair: pair[0])[1]


@contextlib.contextmanager
def _without_warnings(index: Any, num_bytes: int) -> Iterator[None]:
    """Faiss would print, for every k-means, that there are few rows for each codeword."""
    faiss = optional.faiss(NAMED)
    whole = faiss.downcast_index(index)
    chain = range(whole.chain.size()) if isinstance(whole, faiss.IndexPreTransform) else ()
    before = [faiss.downcast_VectorTransform(whole.chain.at(n)) for n in chain]
    inner = faiss.downcast_index(whole.index) if before else whole
    rotations = [each for each in before if isinstance(each, faiss.OPQMatrix)]
    if isinstance(inner, faiss.IndexPQ):
        inner.pq.cp.min_points_per_centroid = 1
    own = [faiss.ProductQuantizer(each.d_out, num_bytes, 8) for each in rotations]
    for each, quantizer in zip(rotations, own, strict=True):
        quantizer.cp.min_points_per_centroid = 1
        each.pq = quantizer
    try:
        yield
    finally:
        for each in rotations:
            each.pq = None


def _factory(name: str, dim: int, num_bytes: int) -> str:
    """Faiss's own name of the codec; PQ pads dimensions to a multiple of its bytes.

    np: no polysemous training, which takes seconds and only renumbers the codewords.
    """
    padded = -(-dim // num_bytes) * num_bytes
    return {
        "pq": f"Pad{padded},PQ{num_bytes}x8np" if padded > dim else f"PQ{num_bytes}x8np",
        "opq": f"OPQ{num_bytes}_{padded},PQ{num_bytes}x8np",
        "rq": f"RQ{num_bytes}x8",
        "lsq": f"LSQ{num_bytes}x8",
        "rabitq": f"RR{dim},RaBitQ",
        "turboquant": f"RR{dim},SQtqmse{8 * (num_bytes - NORM_BYTES) // dim}",
        "sq": f"SQ{8 * num_bytes // dim}",
    }[name]


def _encode(index: Any, x: Array) -> np.ndarray:
    codes: np.ndarray = index.sa_encode(np.ascontiguousarray(x, np.float32))
    return codes


def _decode(index: Any, codes: Array) -> np.ndarray:
    x_hat: np.ndarray = index.sa_decode(np.ascontiguousarray(codes))
    return x_hat


def _unit_encode(index: Any, x: Array) -> np.ndarray:
    """TurboQuant is made for unit vectors, so norms are stored with the codes."""
    x = np.ascontiguousarray(x, np.float32)
    norms = _norms(x)
    return np.concatenate([_encode(index, x / norms), norms.view(np.uint8)], axis=1)


def _unit_decode(index: Any, codes: Array) -> np.ndarray:
    norms = np.ascontiguousarray(codes[:, -NORM_BYTES:]).view(np.float32)
    return _decode(index, codes[:, :-NORM_BYTES]) * norms


def _norms(x: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.maximum(norms, np.finfo(np.float32).tiny, dtype=np.float32)
