"""Error and recall against brute force."""

import numpy as np
import pytest

from qinco_jax.codec import Codec
from qinco_jax.evaluate import metrics, report
from qinco_jax.evaluate.metrics import measure, nearest_neighbours

RNG = np.random.default_rng(0)
DATABASE = np.float32(RNG.normal(size=(9000, 16)))  # more than a block
QUERIES = np.float32(RNG.normal(size=(1100, 16)))
ROUNDING = Codec("rounding", 16.0, lambda x: np.round(2 * np.asarray(x)), lambda codes: codes / 2)


def distances(queries: np.ndarray, x: np.ndarray) -> np.ndarray:
    queries, x = np.float64(queries), np.float64(x)
    return np.square(queries).sum(1)[:, None] - 2 * queries @ x.T + np.square(x).sum(1)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_neighbours_are_exact_wherever_the_vectors_lie(offset: float) -> None:
    database, queries = DATABASE + np.float32(offset), QUERIES + np.float32(offset)
    exact = distances(queries - np.float64(offset), database - np.float64(offset))
    found = nearest_neighbours(database, queries)
    nearest = np.take_along_axis(exact, found[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(nearest, exact.min(axis=1), rtol=1e-3)
    assert (found == exact.argmin(axis=1)).mean() > 0.995


def test_error_and_recall_are_those_of_brute_force() -> None:
    nearest = distances(QUERIES, DATABASE).argmin(axis=1)
    score = measure(ROUNDING, DATABASE, QUERIES, nearest)
    decoded = ROUNDING.decode(ROUNDING.encode(DATABASE))
    assert score.mse == pytest.approx(np.square(DATABASE - decoded).sum(1).mean(), rel=1e-6)
    table = distances(QUERIES, decoded)
    rank = (table < np.take_along_axis(table, nearest[:, None], axis=1) - 1e-9).sum(axis=1)
    for k in metrics.RANKS:
        assert score.recall[k] == pytest.approx((rank < k).mean(), abs=0.005)


def test_vectors_with_one_code_share_their_ranks() -> None:
    constant = Codec(
        "constant", 0.0, lambda x: np.zeros(len(x)), lambda codes: np.zeros((len(codes), 16))
    )
    score = measure(constant, DATABASE[:200], QUERIES, nearest_neighbours(DATABASE[:200], QUERIES))
    assert score.recall == pytest.approx({1: 1 / 200, 10: 10 / 200, 100: 100 / 200})


def test_a_table_reads_by_rate() -> None:
    rows = [
        {"codec": name, "bytes": size, "mse": 1.5, "recall@1": 0.25}
        for size in (4.0, 2.0) for name in ("b", "a")
    ]  # fmt: skip
    lines = report.table(rows).splitlines()
    assert lines[0].split() == ["|", "codec", "|", "bytes", "|", "MSE", "|", "R@1", "|"]
    assert [line.split()[1] for line in lines[2:]] == ["b", "a", "b", "a"]
    assert len({len(line) for line in lines}) == 1
