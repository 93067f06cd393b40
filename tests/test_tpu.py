"""Every program lowers for TPUs; encode, decode and a step: `quantizers/test_precision.py`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import qinco_jax as qj
from qinco_jax.quantizers import additive, coarse, kmeans, pairwise_decoder, preselector, rq
from qinco_jax.quantizers.rq import RQ
from qinco_jax.search import distance, pairwise, rerank
from qinco_jax.search.distance import Measured
from qinco_jax.training import mixing, step

N, D, K, M = 40, 6, 16, 3
CONFIG = qj.QincoConfig(
    dim=D, num_steps=M, codebook_size=K, hidden_dim=8, num_candidates=4, beam_size=4
)
MODEL = oracle.random_model(CONFIG)
MODELS = {
    "joint": dataclasses.replace(MODEL, config=dataclasses.replace(MODEL.config, joint=True)),
    "ivf": oracle.random_model(dataclasses.replace(CONFIG, num_centroids=30)),
    "product": oracle.random_product(dataclasses.replace(CONFIG, num_parts=2)),
    "low rank": oracle.random_model(dataclasses.replace(CONFIG, form="qinco-lr")),
    "exhaustive": oracle.random_model(
        dataclasses.replace(CONFIG, form="qinco", num_candidates=None, beam_size=1)
    ),
    "rotated": oracle.random_model(dataclasses.replace(CONFIG, unit_norm=True, rotate=True)),
}
X = jnp.asarray(oracle.random_vectors(N, D))
CODES = jnp.asarray(np.random.default_rng(0).integers(K, size=(N, M), dtype=np.uint8))
LEVELS = jnp.zeros((N, 2), jnp.int32)
BOOKS = RQ(MODEL.codebook[None].repeat(M, 0), MODEL.mean, MODEL.scale)
KEY = jax.random.key(0)
STATE = qj.init_state(MODEL, qj.Recipe())
READING = distance.fit("l2", "length", Measured(*3 * [np.asarray(X)]), np.zeros(D, np.float32))
PAIRS = pairwise_decoder.checked(
    np.zeros((30, 1), int), np.array([[0], [3]]), np.zeros((1, K * K, D)), num_steps=M
)
ROWS = jnp.concatenate([CODES.astype(jnp.int32), LEVELS, jnp.zeros((N, 1), jnp.int32)], axis=1)

PROGRAMS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "k-means": (lambda key, x: kmeans.kmeans(key, x, K), (KEY, X)),
    "coarse k-means": (
        coarse._add,
        (jnp.zeros((K, D)), jnp.zeros(K, jnp.int32), X[:K], MODEL.transform, X, X[:, 0] > 0),
    ),
    "coarse codes": (coarse._nearest_of, ((X, MODEL.transform), X)),
    "RQ, encode": (rq.encode, (BOOKS, X)),
    "RQ, decode": (rq.decode, (BOOKS, CODES)),
    "RQ, residuals of beams": (lambda model, x: rq._residual_rows(model, x, 4), (BOOKS, X)),
    "pre-selector": (preselector._means, (MODEL, X, CODES)),
    "start": (lambda key, books: qj.init(key, CONFIG, books), (KEY, BOOKS)),
    "neighbours": (lambda x: mixing._nearest(x, x, 3), (X,)),
    "end of an epoch": (lambda state, mse: step._keep_best(state, mse, qj.Recipe()), (STATE, 1.0)),
    "new codewords": (
        lambda state, key: step._redraw(state, state.usage == 0, key, qj.Recipe()), (STATE, KEY)
    ),
    "pairwise decoder": (pairwise_decoder.decode_rows, (PAIRS, jnp.pad(CODES, ((0, 0), (1, 0))))),
    "sums of pairs": (pairwise._add, (X, CODES[:, 0].astype(jnp.int32), X)),
    "additive decoder": (lambda codes, x: additive._sums(codes, x, K), (CODES.astype(int), X)),
    "re-ranking": (
        lambda model, *given: rerank._of_rows((model.prepare("bfloat16"), *given[:3]), given[3]),
        (MODEL, READING, X[0], X, ROWS),
    ),
    "all distances": (distance.all_distances, (READING, X[:4], X, LEVELS)),
    **{f"{name}, encode": (qj.encode, (model, X)) for name, model in MODELS.items()},
    "ivf, decode": (qj.decode, (MODELS["ivf"], jnp.pad(CODES, ((0, 0), (1, 0))))),
    "product, decode": (qj.decode, (MODELS["product"], jnp.concatenate([CODES, CODES], axis=1))),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_lowers_for_tpus(name: str) -> None:
    function, arguments = PROGRAMS[name]
    exported = jax.export.export(jax.jit(function), platforms=["tpu"])(*arguments)
    assert exported.platforms == ("tpu",)
