"""Operating points: measured, kept where no other is better, saved, and chosen by recall."""

from pathlib import Path

import numpy as np
import pytest

import qinco_jax as qj
from qinco_jax.evaluate.neighbours import nearest_neighbours
from qinco_jax.search import tune

CONFIG = qj.QincoConfig(
    num_steps=4, codebook_size=16, hidden_dim=8, num_blocks=1, num_candidates=4, beam_size=2
)
RNG = np.random.default_rng(0)
CENTERS = 4 * RNG.normal(size=(20, 8))
X = np.float32(CENTERS[RNG.integers(20, size=1000)] + RNG.normal(size=(1000, 8)))
QUERIES = X[:60] + np.float32(0.2 * RNG.normal(size=(60, 8)))
TRUTH = nearest_neighbours(X, QUERIES, 5)


@pytest.fixture(scope="module")
def index() -> qj.search.Index:
    index = qj.search.build(qj.train(X, CONFIG, num_epochs=0), X, num_lists=16)
    index.add(X)
    index.tune(QUERIES, TRUTH, k=5)
    return index


def test_points_are_a_front_and_say_what_a_search_finds(index: qj.search.Index) -> None:
    points = index.points
    speeds = [point["queries_per_second"] for point in points]
    assert len(points) > 1 and speeds == sorted(speeds, reverse=True)
    assert tune.front(points, 5) == points
    for point in points:
        _, ids = index.search(QUERIES, 5, **tune.settings(point))
        shares = [len(np.intersect1d(own, true)) / 5 for own, true in zip(ids, TRUTH, strict=True)]
        assert point["5-recall@5"] == pytest.approx(np.mean(shares))
        assert point["recall@1"] == pytest.approx((ids[:, 0] == TRUTH[:, 0]).mean())
        assert point["recall@5"] == pytest.approx((ids == TRUTH[:, :1]).any(axis=1).mean())
        assert 0 < point["p50_ms"] <= point["p99_ms"] and point["ef_search"] is None


def test_a_recall_picks_the_fastest_point_that_reached_it(index: qj.search.Index) -> None:
    best = max(point["5-recall@5"] for point in index.points)
    for recall in (0.01, best):
        point = index.point_for(recall, 5)
        enough = [p for p in index.points if p["5-recall@5"] >= recall]
        assert point["queries_per_second"] == max(p["queries_per_second"] for p in enough)
        chosen = index.search(QUERIES, 5, recall=recall)
        np.testing.assert_array_equal(
            chosen, index.search(QUERIES, 5, **tune.settings(point))
        )  # fmt: skip
    with pytest.raises(qj.InputError, match=rf"reached a 5-recall@5 of 1; .* reached {best:.3f}"):
        index.search(QUERIES, 5, recall=1.0)
    with pytest.raises(qj.InputError, match=r"no operating points for k = 3 \(there are: k = 5\)"):
        index.search(QUERIES, 3, recall=best)
    with pytest.raises(qj.InputError, match="give it or them"):
        index.search(QUERIES, 5, recall=best, num_probes=2)
    with pytest.raises(qj.InputError, match="above 0 and at most 1, got 90"):
        index.point_for(90, 5)


def test_points_are_saved_and_another_k_is_added(index: qj.search.Index, tmp_path: Path) -> None:
    qj.search.save(index, tmp_path / "index")
    other = qj.search.load(tmp_path / "index")
    assert other.points == index.points and other.made == index.made
    other.tune(QUERIES, TRUTH, k=1)
    assert {point["k"] for point in other.points} == {1, 5}
    assert other.point_for(0.01, 5) == index.point_for(0.01, 5)


def test_a_graph_of_lists_is_tuned_too(
    index: qj.search.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune.scan, "FLAT", 8)
    graph = qj.search.build(index.model, X, num_lists=16)
    graph.add(X)
    points = graph.tune(QUERIES, TRUTH, k=5)
    assert all(point["ef_search"] >= 16 for point in points)


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (TRUTH[:, :3], "60 queries with 3 neighbours each; tuning for k = 5"),
        (TRUTH[:9], r"int32 \(9, 5\); expected integers \[60, 5\]"),
        (TRUTH + 0.5, "float64"),
        (TRUTH + 1000, r"from 1\d+ to 1\d+, but those of the index end at 999"),
    ],
)
def test_neighbours_that_cannot_be_are_refused(
    index: qj.search.Index, truth: np.ndarray, message: str
) -> None:
    with pytest.raises(qj.InputError, match=message):
        index.tune(QUERIES, truth, k=5)
