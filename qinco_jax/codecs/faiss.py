"""Classical codecs as Faiss implements them: PQ, OPQ, RQ, LSQ, and those of vector databases.

PQ, OPQ, RQ and LSQ have 8 bits a code and Faiss's defaults, as in the QINCo paper (Sec. 5.1), on at
most 500,000 training vectors. RaBitQ, TurboQuant (without its unbiased part) and scalar
quantization keep some bits of every dimension, so they exist at few rates, from D / 8 bytes.
"""

import functools
from typing import Any

import numpy as np

from qinco_jax import optional
from qinco_jax.codecs.codec import Array, Codec
from qinco_jax.errors import InputError
from qinco_jax.quantizers.rq import sample_rows
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Vectors

MAX_TRAIN_ROWS = 500_000
CODEWORDS = 256
NORM_BYTES = 4
NAMES = {
    "pq": "PQ",
    "opq": "OPQ",
    "rq": "RQ",
    "lsq": "LSQ",
    "rabitq": "RaBitQ",
    "turboquant": "TurboQuant",
    "sq": "SQ",
}
NEED_IT = ", ".join(NAMES.values())


def rates(name: str, dim: int) -> list[int] | None:
    """Bytes at which a codec exists for D dimensions, `None` for any up to D."""
    if name == "rabitq":
        return [-(-dim // 8) + 8]
    if name == "turboquant":
        return [-(-dim * bits // 8) + NORM_BYTES for bits in (1, 2, 3, 4, 8)]
    if name == "sq":
        return [-(-dim * bits // 8) for bits in (4, 6, 8)]
    return None


def train(
    name: str, x: Vectors, num_bytes: int, *, seed: int = 0, beam_size: int | None = None
) -> Codec:
    """Trains a codec.

    Args:
      name: of `NAMES`.
      x: [N, D] training vectors of any real dtype, at least 256; sampled if there are many.
      num_bytes: of a code, one at which the codec exists.
      seed: of the sample and the order of the rows, which is where Faiss starts from.
      beam_size: B of RQ's encoding; `None` is the 5 that it is trained with.

    Raises:
      InputError: Faiss is not installed, vectors are unfit, or there is no such rate.
    """
    faiss = optional.faiss(NEED_IT)
    checks.vectors(x, what="the training vectors")
    exists_at = rates(name, x.shape[1])
    if num_bytes < 1 or (num_bytes not in exists_at if exists_at else num_bytes > x.shape[1]):
        there = ", ".join(map(str, exists_at)) if exists_at else f"1 to {x.shape[1]}"
        raise InputError(
            f"{NAMES[name]} of {x.shape[1]} dimensions exists at {there} bytes, not {num_bytes}"
        )
    if len(x) < CODEWORDS:
        raise InputError(
            f"{len(x)} training vectors for {CODEWORDS} codewords; give at least as many"
        )
    rows = sample_rows(x, MAX_TRAIN_ROWS, seed)
    rows = checks.finite(rows, what="the training vectors").astype(np.float32)
    index = faiss.index_factory(x.shape[1], _factory(name, x.shape[1], num_bytes))
    encode, decode = (_unit_encode, _unit_decode) if name == "turboquant" else (_encode, _decode)
    rows = np.random.default_rng(seed).permutation(rows)
    index.train(rows / _norms(rows) if name == "turboquant" else rows)
    if beam_size is not None:
        index.rq.max_beam_size = beam_size
    return Codec(
        NAMES[name] + (f" B={beam_size}" if beam_size else ""),
        8.0 * num_bytes,
        functools.partial(encode, index),
        functools.partial(decode, index),
        len(faiss.serialize_index(index)),
    )


def _factory(name: str, dim: int, num_bytes: int) -> str:
    """Faiss's own name of the codec; PQ fills dimensions up to a multiple of its bytes."""
    whole = -(-dim // num_bytes) * num_bytes
    return {
        "pq": f"Pad{whole},PQ{num_bytes}x8" if whole > dim else f"PQ{num_bytes}x8",
        "opq": f"OPQ{num_bytes}_{whole},PQ{num_bytes}x8",
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
    """TurboQuant is made for unit vectors, so their norms are kept beside the codes."""
    x = np.ascontiguousarray(x, np.float32)
    norms = _norms(x)
    return np.concatenate([_encode(index, x / norms), norms.view(np.uint8)], axis=1)


def _unit_decode(index: Any, codes: Array) -> np.ndarray:
    norms = np.ascontiguousarray(codes[:, -NORM_BYTES:]).view(np.float32)
    return _decode(index, codes[:, :-NORM_BYTES]) * norms


def _norms(x: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.maximum(norms, np.finfo(np.float32).tiny, dtype=np.float32)
