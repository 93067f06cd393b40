"""Error, recall and the use of codes against brute force in float64."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qinco_jax as qj
from qinco_jax.codecs.codec import Codec
from qinco_jax.errors import InputError
from qinco_jax.evaluate import metrics, neighbours, results, tables
from qinco_jax.evaluate.metrics import measure, usage
from qinco_jax.evaluate.neighbours import RANKS, nearest_neighbours, queries_of

RNG = np.random.default_rng(0)
DATABASE = np.float32(RNG.normal(size=(9000, 16)))  # more than a block
QUERIES = np.float32(RNG.normal(size=(1100, 16)))


def coarse(step: float) -> Codec:
    """Rounds to multiples of `step`: many rows decode alike."""
    return Codec(
        "rounding", 128.0,
        lambda x: np.int32(np.round(np.asarray(x, np.float32) / step)),
        lambda codes: np.float32(codes) * np.float32(step),
    )  # fmt: skip


DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "l2": lambda q, x: np.square(q[:, None] - x[None]).sum(-1),
    "ip": lambda q, x: -(q @ x.T),
    "cosine": lambda q, x: -(unit(q) @ unit(x).T),
}


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)


def as_distances(metric: str, q: np.ndarray, x: np.ndarray) -> np.ndarray:
    return DISTANCES[metric](np.float64(q), np.float64(x)).round(9)


def expected(true: np.ndarray, found: np.ndarray, k: int) -> tuple[float, float]:
    """Recall@k and k-recall@k of one query, by every choice among the rows that tie."""
    k = min(k, len(true))
    nearest, right = true <= true.min(), true <= np.sort(true)[k - 1]
    edge = np.sort(found)[k - 1]
    before, tied = np.flatnonzero(found < edge), np.flatnonzero(found == edge)
    any_, share = [], []
    for choice in itertools.combinations(tied, k - len(before)):
        chosen = np.append(before, choice).astype(int)
        any_.append(nearest[chosen].any())
        share.append(right[chosen].sum() / k)
    return float(np.mean(any_)), float(np.mean(share))


@given(
    st.integers(1, 14), st.integers(1, 5), st.sampled_from(["l2", "ip", "cosine"]),
    st.sampled_from([1.0, 2.0, 6.0]), st.integers(0, 2**32 - 1), st.booleans(),
)  # fmt: skip
def test_recall_is_that_of_brute_force_with_ties_and_duplicates(
    rows: int, asked: int, metric: str, step: float, seed: int, given_truth: bool
) -> None:
    rng = np.random.default_rng(seed)
    database = np.float32(rng.integers(-3, 4, size=(rows, 3)))
    database[rng.integers(rows, size=rows // 3)] = database[0]  # duplicates
    queries = np.float32(rng.integers(-3, 4, size=(asked, 3)))
    codec = coarse(step)
    true = as_distances(metric, queries, database)
    found = as_distances(metric, queries, codec.decode(codec.encode(database)))
    truth = np.argsort(true, axis=1, kind="stable") if given_truth else None
    score = measure(codec, database, [queries_of(queries, database, metric, truth)])
    for k in RANKS:
        both = np.mean([expected(t, f, k) for t, f in zip(true, found, strict=True)], axis=0)
        assert score.recall["queries"][f"recall@{k}"].value == pytest.approx(both[0], abs=1e-9)
        if k > 1:
            mean = score.recall["queries"][f"{k}-recall@{k}"].value
            assert mean == pytest.approx(both[1], abs=1e-9)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_many_blocks_give_what_one_would(metric: str) -> None:
    codec = coarse(0.5)
    true = as_distances(metric, QUERIES[:50], DATABASE)
    x_hat = codec.decode(codec.encode(DATABASE))
    found = as_distances(metric, QUERIES[:50], x_hat)
    score = measure(codec, DATABASE, [queries_of(QUERIES[:50], DATABASE, metric)])
    recall = score.recall["queries"]
    order = np.argsort(found, axis=1)
    for k in RANKS:
        top, best = order[:, :k], np.argsort(true, axis=1)[:, :k]
        assert recall[f"recall@{k}"].value == pytest.approx((top == best[:, :1]).any(1).mean())
        both = np.mean([len(set(a) & set(b)) / k for a, b in zip(top, best, strict=True)])
        assert k == 1 or recall[f"{k}-recall@{k}"].value == pytest.approx(both)
    assert score.mse.value == pytest.approx(np.square(DATABASE - x_hat).sum(1).mean(), rel=1e-6)
    assert score.relative_error == pytest.approx(score.mse.value / DATABASE.var(0).sum(), rel=1e-4)
    assert score.mse.low < score.mse.value < score.mse.high


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_neighbours_are_exact_wherever_the_vectors_lie(offset: float) -> None:
    database, queries = DATABASE + np.float32(offset), QUERIES + np.float32(offset)
    exact = as_distances("l2", queries[:200], database)
    found = nearest_neighbours(database, queries[:200], 5)
    near = np.take_along_axis(exact, found, axis=1)
    np.testing.assert_allclose(near, np.sort(exact, axis=1)[:, :5], rtol=1e-3)
    assert (found[:, 0] == exact.argmin(axis=1)).mean() > 0.995


def test_losses_are_differences_query_by_query() -> None:
    codec, asked, other = coarse(2.0), QUERIES[:300], QUERIES[300:600]
    first = queries_of(asked, DATABASE, name="main")
    noisy = queries_of(asked + 0.1, DATABASE, name="noisy")._replace(paired=True)
    same = queries_of(asked, DATABASE, name="same")._replace(paired=True)
    far = queries_of(other, DATABASE, name="far")
    score = measure(codec, DATABASE, [first, noisy, same, far])
    assert set(score.losses) == {"noisy", "same"}
    assert all(loss == (0, 0, 0) for loss in score.losses["same"].values())
    for name, loss in score.losses["noisy"].items():
        before, after = score.recall["main"][name], score.recall["noisy"][name]
        assert loss.value == pytest.approx(before.value - after.value)
        assert loss.low <= loss.value <= loss.high
        # Narrower than two sets of other queries would tell.
        assert loss.high - loss.low <= np.hypot(before.high - before.low, after.high - after.low)
    row = results.fields(score, [first, noisy, same, far])["other_queries"]
    assert row["noisy"]["10-recall@10_loss"] == score.losses["noisy"]["10-recall@10"].value
    assert "recall@1_loss" not in row["far"]


def test_a_perfect_codec_finds_everything_and_a_constant_one_what_chance_does() -> None:
    doubled = np.concatenate([DATABASE[:100], DATABASE[:100]])
    asked = [queries_of(QUERIES, doubled)]
    perfect = Codec("all", 512.0, lambda x: np.asarray(x).view(np.int32),
                    lambda codes: np.asarray(codes).view(np.float32))  # fmt: skip
    assert {each.value for each in measure(perfect, doubled, asked).recall["queries"].values()} == {
        1.0
    }
    constant = Codec("constant", 8.0, lambda x: np.zeros((len(x), 1), np.uint8),
                     lambda codes: np.zeros((len(codes), 16), np.float32))  # fmt: skip
    score = measure(constant, DATABASE[:200], [queries_of(QUERIES, DATABASE[:200])])
    values = [score.recall["queries"][f"recall@{k}"].value for k in RANKS]
    assert values == pytest.approx([1 / 200, 10 / 200, 100 / 200])
    assert (score.entropy_bits, score.dead_codewords) == (0.0, 255)


def test_usage_counts_bits_and_dead_codewords() -> None:
    codes = np.uint8([[0, 3], [1, 3], [2, 3], [3, 3]])
    assert usage(codes, (4, 4)) == ((2.0, 0.0), 3)
    assert usage(codes, (4, 16)) == ((2.0, 0.0), 15)
    uniform = RNG.permutation(np.repeat(np.arange(256), 4))[:, None]
    assert usage(uniform, (256,)) == ((pytest.approx(8.0),), 0)


def test_an_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    draws = {str(i): np.float64(RNG.random(200) < 0.3) for i in range(60)}
    found = metrics.bootstrap(draws)
    assert np.mean([own.low <= 0.3 <= own.high for own in found.values()]) > 0.85
    assert found["7"].value == pytest.approx(draws["7"].mean())
    assert metrics.bootstrap({"recall": np.ones(7)}) == {"recall": (1.0, 1.0, 1.0)}


def test_a_ground_truth_that_contradicts_the_database_is_refused() -> None:
    database, queries = DATABASE[:500], QUERIES[:40]
    truth = nearest_neighbours(database, queries, 100)
    taken = queries_of(queries, database, groundtruth=truth)
    np.testing.assert_allclose(taken.reach, queries_of(queries, database).reach, rtol=1e-4)
    few = queries_of(queries, database, groundtruth=truth[:, :1])
    np.testing.assert_allclose(few.reach, taken.reach, rtol=1e-4)
    for bad, words in (
        (truth + 450, "database of 500 rows"),
        (truth[:30], "one row per query"),
        (np.float32(truth), "expected integers"),
        (truth[:, ::-1], "belongs to another database or metric"),
    ):
        with pytest.raises(InputError, match=words):
            queries_of(queries, database, groundtruth=bad)
    with pytest.raises(InputError, match="belongs to another database or metric"):
        queries_of(queries, database, "ip", truth)
    with pytest.raises(InputError, match="unknown metric 'l1'; known: l2, ip, cosine"):
        queries_of(queries, database, "l1")
    with pytest.raises(InputError, match="0 queries of 500 database rows; give"):
        queries_of(queries[:0], database)
    assert len(queries) < neighbours.CHECKED_QUERIES


def test_a_table_reads_by_rate() -> None:
    rows = [
        {"codec": name, "bytes": size, "mse": 1.5, "recall@1": 0.25}
        for size in (4.0, 2.0) for name in ("b", "a")
    ]  # fmt: skip
    lines = tables.markdown(rows).splitlines()
    assert lines[0].split() == ["|", "codec", "|", "bytes", "|", "MSE", "|", "R@1", "|"]
    assert [line.split()[1] for line in lines[2:]] == ["b", "a", "b", "a"]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_queries_may_be_rows_of_the_database(metric: str) -> None:
    database = np.random.default_rng(0).normal(size=(500, 64)) + 3
    database = (database / np.linalg.norm(database, axis=1, keepdims=True)).astype(np.float32)
    truth = np.argsort(-database @ database.T, axis=1, kind="stable")[:, :1]
    asked = queries_of(database, database, metric, truth)
    assert asked.reach.shape[0] == 500
    with pytest.raises(InputError, match="belongs to another database or metric"):
        queries_of(database, database, metric, np.roll(truth, 1, axis=0))


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_recall_and_error_of_arrays_are_those_of_brute_force(metric: str) -> None:
    rng = np.random.default_rng(0)
    database, queries = rng.normal(size=(2, 300, 6))
    database[1] = database[0]
    x_hat = database + 0.5 * rng.normal(size=database.shape)
    np.testing.assert_allclose(qj.mse(database, x_hat), ((database - x_hat) ** 2).sum(1).mean())

    def distances(x: np.ndarray) -> np.ndarray:
        if metric == "l2":
            return np.square(queries[:, None] - x[None]).sum(-1)
        return -queries @ (x / np.linalg.norm(x, axis=1, keepdims=True) ** (metric == "cosine")).T

    true, found = distances(database), np.argsort(distances(x_hat), axis=1, kind="stable")
    for k in (1, 7, 300):
        right = np.isclose(np.take_along_axis(true, found[:, :k], 1), true.min(1)[:, None])
        assert qj.recall(queries, database, x_hat, k=k, metric=metric) == right.any(axis=1).mean()


def test_recall_and_error_refuse_what_does_not_fit() -> None:
    x = np.ones((4, 3))
    assert qj.mse(x.tolist(), x) == 0
    for wrong, message in (
        (lambda: qj.mse(x, x[:3]), r"vectors \(4, 3\) and reconstructions \(3, 3\)"),
        (lambda: qj.mse(x, np.full((4, 3), np.nan)), "row 0 of x_hat holds NaN"),
        (lambda: qj.recall(x[:, :2], x, x), "the queries have 2 dimensions"),
        (lambda: qj.recall(x, x, x, k=5), "k from 1 to the 4 rows"),
        (lambda: qj.recall(x, x, x, metric="hamming"), "unknown metric 'hamming'"),
        (lambda: qj.recall(x * 1e25, x, x), r"row 0 of the queries holds 1e\+25"),
        (lambda: qj.recall(x, x * 1e25, x), r"row 0 of x holds 1e\+25"),
    ):
        with pytest.raises(InputError, match=message):
            wrong()
