"""What an index finds is what brute force over its codes finds, however it was filled."""

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import indexes
import numpy as np
import oracle
import pytest
from hypothesis import given
from indexes import CONFIGS, QUERIES, ROWS, X

import qinco_jax as qj
from qinco_jax.search import scan

pytest.importorskip("faiss")
EVERYTHING = {"num_probes": 1000, "num_reranked": ROWS}
FILTERS = {
    "all": None,
    "a list": [7, 3, 307, 9, 250],
    "an array": np.arange(0, 400, 3, dtype=np.uint16),
    "a range": range(-5, 100),
    "a range with steps": range(0, 400, 7),
    "none": [],
    "strangers": [5000, 6000],
    "an empty range": range(9, 3),
    "a range beyond all ids": range(10, 2**70),
}
CASES = [
    (name, metric, kind)
    for name in CONFIGS
    for metric in indexes.metrics_of(name)
    for kind in (indexes.kinds_of(metric) if name in ("plain", "behind centroids") else (None,))
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_everything_re_ranked_is_brute_force(case: tuple[str, str, str | None]) -> None:
    index = indexes.filled(*case)
    found = index.search(QUERIES, 30, **EVERYTHING)
    assert found[0].dtype == np.float32 and found[1].dtype == np.int64
    indexes.assert_nearest(found, indexes.distances(index, QUERIES, X), np.arange(ROWS))


def test_the_network_may_compute_in_bfloat16() -> None:
    exact, index = indexes.filled("plain"), indexes.filled("plain")
    index.compute_dtype = "bfloat16"
    (near, ids), (rough, others) = (one.search(QUERIES, 10, **EVERYTHING) for one in (exact, index))
    assert (near != rough).any()
    np.testing.assert_allclose(rough, near, rtol=0.03)
    assert (ids[:, :1] == others).any(axis=1).mean() > 0.9
    with pytest.raises(qj.InputError, match="unknown compute dtype 'float8'; known: float32, bf"):
        qj.search.load("anywhere", compute_dtype="float8")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_re_ranking_distances_are_sums_of_tables(case: tuple[str, str, str | None]) -> None:
    index = indexes.filled(*case)
    reading, queries = index.reading, indexes.in_space(index, QUERIES)
    adds = float(reading.offset) + indexes.levels(index, X) @ np.float64(reading.slope)
    stretch: Any = 1.0
    if index.metric == "ip":  # the byte is worth more to a longer query
        usual = float(reading.squared_length) ** 0.5
        stretch = np.linalg.norm(queries, axis=1, keepdims=True) / usual
    scores = queries @ indexes.rough(index, X).T + stretch * adds
    expected = -scores
    if index.metric == "l2":
        expected = np.square(queries).sum(1)[:, None] - 2 * scores
        plain = np.square(queries[:, None] - indexes.rough(index, X)[None]).sum(2)
        assert abs(np.median(expected / plain) - 1) < 0.05
    found = index.search(QUERIES, 30, num_probes=1000, num_reranked=0)
    indexes.assert_nearest(found, expected, np.arange(ROWS))


@pytest.mark.parametrize("name", ["plain", "behind centroids"])
@pytest.mark.parametrize("filter", FILTERS.values(), ids=FILTERS)
def test_a_filter_names_all_that_is_found(name: str, filter: Any) -> None:
    index = indexes.filled(name)
    allowed = np.ones(ROWS, bool)
    if filter is not None:
        allowed = np.array([number in filter for number in range(ROWS)])
    expected = np.where(allowed, indexes.distances(index, QUERIES, X), np.inf)
    for num_reranked in (0, ROWS):
        found = index.search(QUERIES, 120, num_probes=99, num_reranked=num_reranked, filter=filter)
        assert ((found[1] == -1) == np.isinf(found[0])).all()
        assert (found[1] >= 0).sum(axis=1).tolist() == [min(120, allowed.sum())] * len(QUERIES)
    indexes.assert_nearest(found, expected, np.arange(ROWS))


@given(
    name=st.sampled_from(["plain", "behind centroids"]),
    metric=st.sampled_from(["l2", "ip"]),
    ids=st.lists(st.integers(0, 2**63 - 2), min_size=40, max_size=40, unique=True),
    filter=st.none() | st.lists(st.integers(0, 39)),
    k=st.integers(1, 40),
    num_probes=st.integers(1, 25),
)
def test_search_is_brute_force_over_the_lists_that_are_probed(
    name: str, metric: str, ids: list[int], filter: list[int] | None, k: int, num_probes: int
) -> None:
    index = indexes.empty(name, metric)
    index.add(X[:40], ids)
    chosen = None if filter is None else [ids[place] for place in filter]
    found = index.search(QUERIES, k, num_probes=num_probes, num_reranked=40, filter=chosen)
    probed = indexes.nearest(index, QUERIES, metric)[:, :num_probes]
    seen = (probed[:, :, None] == indexes.lists_of(index, X[:40])).any(axis=1)
    if chosen is not None:
        seen = seen & np.isin(np.arange(40), filter)
    expected = np.where(seen, indexes.distances(index, QUERIES, X[:40]), np.inf)
    indexes.assert_nearest(found, expected, np.array(ids))


def contents(index: qj.search.Index) -> dict[int, tuple[int, bytes]]:
    """The list and the packed code of every id."""
    found = {}
    for number in range(index.lists.nlist):
        ids, packed = scan.entries(index.lists, number)
        codes = [(number, code.tobytes()) for code in packed]
        found |= dict(zip(ids.tolist(), codes, strict=True))
    assert len(found) == len(index)
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_order_blocks_and_parts_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = indexes.metrics_of(name)[0]
    whole, backwards, parts = indexes.filled(name, metric), indexes.empty(name, metric), []
    monkeypatch.setattr("qinco_jax.search.index.BLOCK_ROWS", 7)
    monkeypatch.setattr("qinco_jax.search.searcher.QUERY_BLOCK", 16)
    backwards.add(X[100:][::-1], np.arange(100, ROWS)[::-1])
    backwards.add(X[:100], np.arange(100))
    assert contents(backwards) == contents(whole)
    for begin in (200, 0):
        parts.append(indexes.empty(name, metric))
        parts[-1].add(X[begin : begin + 200], range(begin, begin + 200))
    parts[0].merge(parts[1])
    assert contents(parts[0]) == contents(whole) and parts[0].next_id == ROWS
    assert len(parts[1]) == 200
    expected = whole.search(QUERIES, 10, **EVERYTHING)
    for other in (backwards, parts[0]):
        near, ids = other.search(QUERIES, 10, **EVERYTHING)
        np.testing.assert_allclose(near, expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(ids, expected[1])


@pytest.mark.parametrize("name", CONFIGS)
def test_codes_that_exist_take_the_place_of_vectors(name: str) -> None:
    metric = indexes.metrics_of(name)[-1]
    for kind in indexes.kinds_of(metric):
        whole, coded, alone = (indexes.empty(name, metric, kind) for _ in range(3))
        codes = np.asarray(qj.encode(whole.model, X))
        whole.add(X)
        coded.add(X, codes=codes)
        assert contents(coded) == contents(whole)
        alone.add(codes=codes)
        x_hat = np.asarray(qj.decode(whole.model, codes))
        np.testing.assert_array_equal(alone.reconstruct(np.arange(ROWS)), x_hat)
        np.testing.assert_allclose(
            whole.reconstruct([7, 3, 7]), x_hat[[7, 3, 7]], rtol=1e-5, atol=1e-6
        )
        if kind == "reconstruction" and whole.model.config.num_centroids:
            assert contents(alone) == contents(whole)  # list and byte come of the code alone


def test_what_is_removed_is_not_found_and_its_id_is_free() -> None:
    index = indexes.filled()
    assert index.remove([3, 3, 5000]) == 1 and index.remove(range(100, 300)) == 200
    assert index.remove([]) == 0
    assert len(index) == ROWS - 201 and 3 not in index.ids()
    left = np.setdiff1d(np.arange(ROWS), [3, *range(100, 300)])
    found = index.search(QUERIES, 50, **EVERYTHING)
    indexes.assert_nearest(found, indexes.distances(index, QUERIES, X[left]), left)
    with pytest.raises(qj.InputError, match="the index has no vector with the id 3"):
        index.reconstruct([4, 3])
    index.add(X[3:4], [3])
    assert contents(index)[3] == contents(indexes.filled())[3]
    index.add(X[:1])
    assert index.ids().max() == ROWS


@pytest.mark.parametrize("dtype", [np.float16, np.uint8, np.float64, ">f4", ">f8"])
def test_numbers_of_any_kind_are_taken(dtype: Any) -> None:
    x = np.clip(X.round(), 0, 9)
    index, expected = indexes.empty(), indexes.empty()
    index.add(x.astype(dtype))
    expected.add(x)
    queries = np.clip(QUERIES.round(), 0, 9)
    assert contents(index) == contents(expected)
    for one, two in zip(index.search(queries.astype(dtype)), expected.search(queries), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("factor", [1e-30, 1e18])
def test_the_length_of_a_query_means_nothing_to_angles(factor: float) -> None:
    index = indexes.filled("plain", "cosine")
    expected = index.search(QUERIES, 5)
    found = index.search(QUERIES * np.float32(factor), 5)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)


def test_queries_of_zeros_and_none_at_all() -> None:
    for metric in ("l2", "ip", "cosine"):
        index = indexes.filled("plain", metric)
        near, ids = index.search(np.zeros((2, indexes.DIM)), 5)
        assert np.isfinite(near).all() and (ids >= 0).all()
        near, ids = index.search(np.zeros((0, indexes.DIM), np.float32), 5)
        assert near.shape == ids.shape == (0, 5)


def test_distances_far_from_zero_keep_their_digits() -> None:
    shift = np.float32(1000)
    model = indexes.model_of("plain")
    model = model.replace(mean=model.mean + shift)
    index = qj.search.build(model, X + shift, 6)
    index.add(X + shift)
    found = index.search(QUERIES + shift, 5, **EVERYTHING)
    expected = indexes.distances(index, QUERIES + shift, X + shift)
    indexes.assert_nearest(found, expected, np.arange(ROWS), atol=1e-2)
    near = indexes.filled("plain").search(QUERIES, 10, num_probes=6, num_reranked=0)
    far = index.search(QUERIES + shift, 10, num_probes=6, num_reranked=0)
    same = [len(np.intersect1d(*ids)) for ids in zip(near[1], far[1], strict=True)]
    assert np.mean(same) > 8  # the scan's sums keep theirs, too


Call = Callable[[qj.search.Index], object]
BAD: dict[str, tuple[Call, str]] = {
    "dimension": (
        lambda index: index.search(QUERIES[:, :5]),
        "the queries have 5 dimensions a vector, but the model has 8",
    ),
    "one query": (lambda i: i.search(QUERIES[0]), r"shape \(8,\); .* one vector x as x\[None\]"),
    "too many": (lambda i: i.search(QUERIES, 401), "k = 401 exceeds the 400 vectors"),
    "none": (lambda i: i.search(QUERIES, 0), "k must be at least 1, got 0"),
    "half": (lambda i: i.search(QUERIES, 1.5), "k must be an integer, got 1.5"),  # type: ignore[arg-type]
    "recall in words": (lambda i: i.search(QUERIES, recall="1"), "recall must be a finite number"),  # type: ignore[arg-type]
    "a graph without end": (
        lambda i: i.search(QUERIES, ef_search=10**12),
        "ef_search must be 1 to",
    ),
    "no probes": (lambda i: i.search(QUERIES, num_probes=0), "num_probes must be at least 1"),
    "less than none": (lambda i: i.search(QUERIES, num_reranked=-1), "num_reranked must be at"),
    "NaN": (lambda i: i.search(np.full((2, 8), np.nan)), "row 0 of the queries holds NaN"),
    "huge": (lambda i: i.search(np.full((2, 8), 1e30)), "row 0 of the queries holds 1e\\+30"),
    "negative filter": (lambda i: i.search(QUERIES, filter=[-1]), "integers from 0 to 2\\^63 - 2"),
    "filter of floats": (lambda i: i.search(QUERIES, filter=[0.5]), "the ids are float64"),  # type: ignore[list-item]
    "NaN in vectors": (
        lambda i: i.add(np.where(np.arange(ROWS)[:, None] == 399, np.nan, X)),
        "row 399 of the vectors holds NaN",
    ),
    "other vectors": (lambda i: i.add(X[:, :3]), "x has 3 dimensions a vector"),
    "nothing": (lambda i: i.add(), "got nothing; give vectors"),
    "one vector": (lambda i: i.add(X[0]), r"got \(8,\); give vectors \[N, D\]"),
    "twice": (lambda i: i.add(X[:2], [900, 900]), "the id 900 is there twice"),
    "there already": (lambda i: i.add(X[:2], [900, 7]), "the id 7 is there twice"),
    "negative": (lambda i: i.add(X[:2], [900, -7]), "from -7 to 900; give a list of integers"),
    "float": (lambda i: i.add(X[:2], [900.0, 7.0]), "the ids are float64"),  # type: ignore[list-item]
    "too large": (lambda i: i.add(X[:2], [900, 2**63 - 1]), "integers from 0 to 2\\^63 - 2"),
    "far too large": (lambda i: i.add(X[:2], [900, 2**70]), "integers from 0 to 2\\^63 - 2"),
    "too few ids": (lambda i: i.add(X[:2], [900]), "got 1 ids for 2 vectors"),
    "no ids": (lambda i: i.add(X[:2], []), "got 0 ids for 2 vectors"),
    "codes out of range": (
        lambda i: i.add(codes=np.full((3, 3), 16)),
        "code 16 in row 0, column 0 is outside 0..15",
    ),
    "codes below range": (lambda i: i.add(codes=np.full((3, 3), -1)), "code -1 in row 0"),
    "codes of another": (lambda i: i.add(codes=np.zeros((3, 2), int)), r"expected integers \[N, 3"),
    "codes of floats": (lambda i: i.add(codes=np.zeros((3, 3))), "the codes are float64"),
    "codes of fewer": (lambda i: i.add(X, codes=np.zeros((3, 3), int)), r"got \(400, 8\) and \(3,"),
    "itself": (lambda i: i.merge(i), "the id 0 is there twice"),
    "others": (lambda i: i.merge(indexes.empty("12 codewords")), "the indexes differ in model"),
    "unknown": (lambda i: i.reconstruct([400]), "no vector with the id 400"),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_input_is_refused_and_changes_nothing(call: Call, message: str) -> None:
    index = indexes.filled()
    before = contents(index)
    with pytest.raises(qj.InputError, match=message) as raised:
        call(index)
    assert "\n" not in str(raised.value)
    assert contents(index) == before and index.next_id == ROWS


def test_an_empty_index_says_that_it_is_empty() -> None:
    with pytest.raises(qj.InputError, match="the index has no vectors; add some"):
        indexes.empty().search(QUERIES)
    index = indexes.empty()
    index.add(X[:0])
    index.add(codes=np.zeros((0, 3), np.uint8))
    assert len(index) == index.next_id == len(index.ids()) == 0
    assert index.reconstruct([]).shape == (0, indexes.DIM)
    index.merge(indexes.empty())
    assert len(index) == 0


def test_after_the_greatest_id_others_must_be_given() -> None:
    index = indexes.empty()
    index.add(X[:1], [2**63 - 2])
    assert index.search(QUERIES, 1)[1].tolist() == [[2**63 - 2]] * len(QUERIES)
    assert index.search(QUERIES, 1, filter=range(5, 2**63 - 1))[1].max() == 2**63 - 2
    with pytest.raises(
        qj.InputError, match="0 ids are left after 9223372036854775806, and there are 1 "
    ):
        index.add(X[:1])
    index.add(X[:1], [0])
    assert len(index) == 2


def test_a_row_takes_its_code_two_bytes_at_most_and_its_id() -> None:
    model = oracle.random_model(indexes.small(codebook_size=256, num_steps=8))
    index = qj.search.build(model, X, 4)
    index.add(X)
    assert index.code_bytes <= 8 + 2
    held = sum(
        index.lists.invlists.list_size(number) * (index.lists.invlists.code_size + 8)
        for number in range(4)
    )
    assert held <= ROWS * (8 + 1 + 8) * 1.1
