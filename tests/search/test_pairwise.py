"""Tables for pairs of codes: what is fitted, what is kept, and what it brings to a search."""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qinco_jax as qj
from qinco_jax.quantizers import additive, pairwise_decoder, rq
from qinco_jax.quantizers.untrained import init
from qinco_jax.search import disk, pairwise, scan

pytest.importorskip("faiss")
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
DECODER = CHECKPOINTS / "v2_pairwise_decoder_ivf32_M4_K16_D16.pt"
FITTED = CHECKPOINTS / "v2_pairwise_decoder_ivf32_M4_K16_D16_rows.npz"
RNG = np.random.default_rng


def rows_of_pairs(
    num_rows: int, size: int, pairs: dict[tuple[int, int], float], seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Codes [N, 4] and vectors [N, 8]: noise, and a table for each pair times its number."""
    tables, rng = RNG(0), RNG(seed + 1)
    codes = rng.integers(0, size, (num_rows, 4)).astype(np.int32)
    x = rng.normal(size=(num_rows, 8))
    for (first, second), weight in pairs.items():
        x += weight * tables.normal(size=(size, size, 8))[codes[:, first], codes[:, second]]
    return codes, np.float32(x)


def mean_error(x: np.ndarray) -> float:
    return float(np.square(x, dtype=np.float64).sum(axis=1).mean())


def oracle_tables(
    codes: np.ndarray, x: np.ndarray, size: int, num_held: int
) -> tuple[list[tuple[int, int]], list[np.ndarray]]:
    """The greedy choice, written down cell by cell in float64."""
    left, chosen, found = x.astype(np.float64), [], []
    seen = len(x) - num_held
    while True:
        tried = {}
        for pair in itertools.combinations(range(codes.shape[1]), 2):
            for strength in pairwise.STRENGTHS:
                table = np.zeros((size, size, x.shape[1]))
                for cell in itertools.product(range(size), repeat=2):
                    own = left[:seen][(codes[:seen, pair] == cell).all(axis=1)]
                    table[cell] = own.sum(axis=0) / (len(own) + strength)
                after = left - table[codes[:, pair[0]], codes[:, pair[1]]]
                tried[pair, strength] = mean_error(after[seen:]), table, after
        best = min(tried, key=lambda key: tried[key][0])
        if tried[best][0] > (1 - pairwise.MIN_GAIN) * mean_error(left[seen:]):
            return chosen, found
        chosen.append(best[0])
        found.append(tried[best][1])
        left = tried[best][2]


def test_tables_and_their_order_are_those_of_the_equations() -> None:
    codes, x = rows_of_pairs(500, 3, {(1, 2): 2.0, (0, 3): 1.0, (0, 1): 0.5})
    pairs, tables = pairwise.fit_tables(codes, x, 3, 100)
    expected = oracle_tables(codes, x, 3, 100)
    assert pairs.T.tolist() == [list(pair) for pair in expected[0]]
    assert pairs.T.tolist()[:3] == [[1, 2], [0, 3], [0, 1]]
    np.testing.assert_allclose(tables, np.reshape(expected[1], tables.shape), rtol=1e-4, atol=1e-5)


def test_cells_of_few_rows_are_drawn_to_zero_and_useless_tables_left_out() -> None:
    few, many = (rows_of_pairs(count, 16, {(1, 2): 1.0}) for count in (1500, 20_000))
    held_codes, held = rows_of_pairs(5000, 16, {(1, 2): 1.0}, seed=1)
    for codes, x in (few, many):
        pairs, tables = pairwise.fit_tables(codes, x, 16, len(x) // 5)
        assert pairs.T.tolist()[0] == [1, 2]
        rows = held - tables[0][pairwise.cells_of(held_codes, (1, 2), 16)]
        assert mean_error(rows) < 0.8 * mean_error(held)
    noise = np.float32(RNG(0).normal(size=few[1].shape))
    assert pairwise.fit_tables(few[0], noise, 16, 300)[1].shape == (0, 256, 8)


@pytest.mark.parametrize("limit", ["MAX_TABLES", "MAX_BYTES"])
def test_tables_stay_within_their_limits(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, x = rows_of_pairs(2000, 4, dict.fromkeys(itertools.combinations(range(4), 2), 1.0))
    assert len(pairwise.fit_tables(codes, x, 4, 400)[1]) > 2
    monkeypatch.setattr(pairwise, limit, {"MAX_TABLES": 2, "MAX_BYTES": 2 * 4 * 4 * 8 * 4}[limit])
    assert len(pairwise.fit_tables(codes, x, 4, 400)[1]) == 2


def test_list_vectors_are_told_by_small_codes() -> None:
    vectors = np.float32(RNG(0).normal(size=(200, 4)))
    assert pairwise.coarse_codes(vectors[:16], 16, 0)[:, 0].tolist() == list(range(16))
    codes = pairwise.coarse_codes(vectors, 16, 0)
    assert codes.shape == (200, pairwise.COARSE_STEPS) and codes.min() == 0 and codes.max() == 15
    assert len(np.unique(codes, axis=0)) > 150


@functools.cache
def published() -> dict[str, np.ndarray]:
    with np.load(FITTED) as file:
        return dict(file)


def test_published_tables_are_means_of_cells() -> None:
    rows = published()
    pool = np.concatenate([rows["codes"][:, 1:], rows["coarse_codes"][rows["codes"][:, 0]]], axis=1)
    for first, second, error in rows["errors_of_first_pair"]:
        cells = pairwise.cells_of(pool, (int(first), int(second)), 16)
        counts, sums = pairwise.cell_sums(cells, rows["left"], 256)
        table = sums / np.maximum(counts, 1)[:, None]
        np.testing.assert_allclose(mean_error(rows["left"] - table[cells]), error, rtol=1e-5)
        if (first, second) == tuple(rows["pairs"][0]):
            expected = qj.load_pytorch(DECODER).tables[0]
            np.testing.assert_allclose(table, expected, rtol=1e-5, atol=1e-5)


def test_fitted_on_the_published_rows_the_error_on_others_is_less() -> None:
    rows = published()
    codes, left, others = rows["codes"].astype(np.int32), rows["left"], rows["other_left"]
    singles = additive.fit([(codes[:, 1:], left)], 4, 16, 16)
    remaining = left - additive.decode(singles, codes[:, 1:])
    found = pairwise.fit(codes, remaining, singles, rows["centroids"], True, num_held=1000)
    assert found is not None
    other_codes = jnp.asarray(rows["other_codes"].astype(np.int32))
    x_hat = np.asarray(found.decode(other_codes)) - rows["centroids"][rows["other_codes"][:, 0]]
    theirs = pairwise_decoder.decode(qj.load_pytorch(DECODER), other_codes)
    alone = additive.decode(singles, rows["other_codes"][:, 1:])
    error = mean_error(others - x_hat)
    assert error < 0.85 * mean_error(others - theirs)
    assert error < 0.95 * mean_error(others - alone)


@functools.cache
def woven() -> tuple[qj.Qinco, np.ndarray]:
    """A model whose codes mean little one by one, and vectors [5000, 8] near what it can say."""
    rng = RNG(0)
    config = qj.QincoConfig(
        dim=8, num_steps=3, codebook_size=8, hidden_dim=8, num_blocks=1, num_candidates=4,
        beam_size=4,
    )  # fmt: skip
    books = jnp.asarray(np.float32(rng.normal(size=(3, 8, 8))))
    plain = rq.RQ(books, jnp.zeros(8), jnp.float32(1))
    model = init(jax.random.key(0), config, plain)
    weights = {
        name: jnp.asarray(np.float32(rng.normal(size=getattr(model.steps, name).shape) * scale))
        for name, scale in {"concat": 1.0, "down": 0.3, "proj_out": 0.15}.items()
    }
    model = dataclasses.replace(model, steps=dataclasses.replace(model.steps, **weights))
    x_hat = np.asarray(qj.decode(model, rng.integers(0, 8, (5000, 3)).astype(np.uint8)))
    return model, x_hat + np.float32(0.2 * rng.normal(size=x_hat.shape))


@functools.cache
def built(max_rows: int = 100_000) -> qj.search.Index:
    model, x = woven()
    return qj.search.build(model, x[:4000], 10, max_rows=max_rows)


def copy_of(index: qj.search.Index, **changes: object) -> qj.search.Index:
    lists = scan.new(index.list_vectors, index.tables, index.reading, index.lists.by_residual)
    return dataclasses.replace(index, lists=lists, **changes)


def recall(index: qj.search.Index, num_reranked: int) -> float:
    x = woven()[1][:4000]
    queries = x[:300] + np.float32(0.3 * RNG(1).normal(size=(300, 8)))
    nearest = np.square(queries[:, None] - x).sum(axis=-1).argmin(axis=1)
    _, ids = index.search(queries, 10, num_probes=10, num_reranked=num_reranked)
    return float((ids == nearest[:, None]).any(axis=1).mean())


def test_pairs_of_woven_codes_find_more() -> None:
    with_pairs, without = copy_of(built()), copy_of(built(), pairs=None)
    assert with_pairs.pairs is not None
    assert disk.describe(with_pairs)["pairs"] == len(with_pairs.pairs.decoder.tables)
    for index in (with_pairs, without):
        index.add(woven()[1][:4000])
    for num_reranked in (0, 12):
        assert recall(with_pairs, num_reranked) > recall(without, num_reranked) + 0.05


def test_distances_without_the_network_are_those_of_the_pairs() -> None:
    index, (model, x) = copy_of(built()), woven()
    index.add(x[:500])
    assert index.pairs is not None and index.reading.kind == "reconstruction"
    distances, ids = index.search(x[500:510], 500, num_probes=10, num_reranked=0)
    own = np.asarray(qj.encode(model, x[:500]))
    x = x - np.asarray(index.reading.origin)
    lists = scan.nearest_lists(index.lists, index.list_vectors, x[:500])
    codes = np.concatenate([lists[:, None], own], axis=1).astype(np.int32)
    x_hat = np.asarray(index.pairs.decode(jnp.asarray(codes)))
    expected = np.square(x[500:510, None] - x_hat).sum(axis=-1)
    np.testing.assert_allclose(distances, np.take_along_axis(expected, ids, axis=1), rtol=1e-4)
    assert (np.diff(distances, axis=1) >= 0).all()


def test_pairs_rank_what_all_shards_name() -> None:
    whole, shards = copy_of(built()), [copy_of(built()) for _ in range(2)]
    x, queries = woven()[1][:400], woven()[1][400:420]
    whole.add(x)
    for number, shard in enumerate(shards):
        shard.add(x[number::2], np.arange(number, 400, 2))
    for num_reranked in (0, 12):  # copies of a code may change places, at one distance
        near, of_one = (
            index.search(queries, 5, num_probes=10, num_reranked=num_reranked)[0]
            for index in (qj.search.sharded(shards), whole)
        )
        np.testing.assert_allclose(near, of_one, rtol=1e-5)


def test_of_few_rows_no_pairs_are_learnt() -> None:
    index = built(max_rows=300)  # not enough for 64 cells
    assert index.pairs is None and disk.describe(index)["pairs"] == 0


def test_pairs_that_find_no_more_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = pairwise.fit

    def spoilt(*args: Any, **options: Any) -> pairwise.Pairs | None:
        found = fit(*args, **options)
        return found and dataclasses.replace(found, singles=-found.singles)

    monkeypatch.setattr(pairwise, "fit", spoilt)
    model, x = woven()
    assert qj.search.build(model, x[:4000], 10).pairs is None


def test_pairs_are_saved_and_decide_what_may_be_merged(tmp_path: Path) -> None:
    one, other = copy_of(built()), copy_of(built())
    one.add(woven()[1][:200])
    other.add(woven()[1][200:300], range(200, 300))
    disk.save(one, tmp_path / "one")
    again = qj.search.load(tmp_path / "one")
    again.merge(other)
    one.merge(other)
    for index in (one, again):
        assert index.pairs is not None and len(index) == 300
    queries = woven()[1][:20]
    for found, expected in zip(again.search(queries), one.search(queries), strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(qj.InputError, match="the indexes differ in model, lists, decoder"):
        again.merge(copy_of(built(), pairs=None))


def test_a_published_decoder_works_in_the_same_place() -> None:
    model = qj.load_pytorch(CHECKPOINTS / "v2_ivf32_A4_B8_de24_M4_K16_D16_golden.pt")
    decoder, rows = qj.load_pytorch(DECODER), published()
    x = rows["left"][:1000] + rows["centroids"][rows["codes"][:1000, 0]]
    index = qj.search.build(model, x, pairs=decoder)
    index.add(x)
    codes = np.asarray(qj.encode(model, x[:100])).astype(np.int32)
    x_hat = index.list_vectors[codes[:, 0]] + pairwise_decoder.decode(decoder, codes)
    np.testing.assert_allclose(index.pairs.decode(jnp.asarray(codes)), x_hat, rtol=1e-5, atol=1e-5)
    distances, ids = index.search(x[:100], 1, num_probes=32, num_reranked=0)
    assert (ids[:, 0] < 1000).all() and np.isfinite(distances).all()
    assert index.pairs is not None
    with pytest.raises(qj.InputError, match='build the index with metric="l2" or "ip"'):
        qj.search.build(model, x, metric="cosine", pairs=decoder)
    with pytest.raises(qj.InputError, match=r"the model of \(None, 2, 8, 8\)"):
        qj.search.build(*woven(), pairs=decoder)
