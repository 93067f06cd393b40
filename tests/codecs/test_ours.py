"""RQ as a baseline: the better of two trainings, ours and Faiss's."""

import functools

import numpy as np
import pytest

import qinco_jax as qj
from qinco_jax.codecs import faiss as faiss_codecs
from qinco_jax.codecs import ours
from qinco_jax.seeds import ROW_ORDER, seed_for

RNG = np.random.default_rng(0)
CENTERS = RNG.normal(size=(40, 16))
CLUSTERS = np.float32(CENTERS[RNG.integers(40, size=4000)] + 0.3 * RNG.normal(size=(4000, 16)))
X, X_VAL = CLUSTERS[:3600], CLUSTERS[3600:]


def mse(model: qj.rq.RQ) -> float:
    x_hat = np.asarray(qj.rq.decode(model, qj.rq.encode(model, X_VAL)))
    return float(np.square(X_VAL - x_hat, dtype=np.float64).sum(axis=1).mean())


def test_rq_is_the_better_of_a_greedy_training_and_one_for_a_beam() -> None:
    train = functools.partial(qj.rq.train, X, 4, 16, num_iters=25)
    errors = [mse(train(beam_size=beam_size)) for beam_size in (1, 5)]
    assert errors[0] != errors[1]
    assert mse(ours.best_rq(X, X_VAL, 4, 16, seed=0)) == min(errors)


@pytest.mark.parametrize("name", ["pq", "opq", "rq"])
def test_faiss_does_not_print_that_rows_are_few(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss")
    x = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    faiss_codecs.train(name, x, 2)
    assert capfd.readouterr() == ("", "")


def test_rq_of_faiss_is_the_better_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    x = CLUSTERS.astype(np.float64)
    order = np.random.default_rng(seed_for(0, ROW_ORDER)).permutation(len(x))
    rows = CLUSTERS[order[-400:]]  # those held back

    def error(beam: int) -> float:
        monkeypatch.setattr(faiss_codecs, "TRAINING_BEAMS", (beam,))
        codec = faiss_codecs.train("rq", x, 2, beam_size=8)
        return float(np.square(rows - np.asarray(codec.decode(codec.encode(rows)))).sum())

    alone = [error(beam) for beam in (1, 5)]
    monkeypatch.undo()
    codec = faiss_codecs.train("rq", x, 2, beam_size=8)
    found = float(np.square(rows - np.asarray(codec.decode(codec.encode(rows)))).sum())
    assert alone[0] != alone[1] and found == min(alone)
