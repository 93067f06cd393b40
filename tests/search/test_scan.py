"""Packed codes, lists found by a graph, and how few programs searches compile."""

from typing import Any

import indexes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from indexes import QUERIES, ROWS

from qinco_jax.quantizers import chunks
from qinco_jax.search import scan

faiss = pytest.importorskip("faiss")


@given(
    size=st.sampled_from([2, 3, 12, 16, 255, 256, 300, 4096, 65536]),
    columns=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_codes_and_bytes_survive_packing(size: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes, levels = rng.integers(size, size=(20, columns)), rng.integers(256, size=(20, 2))
    packed = scan.pack(codes, np.uint8(levels), size)
    bits = columns * scan.bits_of(size) + 2 * scan.num_digits(scan.bits_of(size)) * scan.bits_of(
        size
    )
    assert packed.shape == (20, -(-bits // 8))
    found = scan.unpack(packed, columns, size, 2)
    np.testing.assert_array_equal(found[0], codes)
    np.testing.assert_array_equal(found[1], levels)


@pytest.mark.parametrize("name", ["plain", "behind centroids"])
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_a_graph_over_many_lists_finds_the_same(
    name: str, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = indexes.filled(name, metric).search(QUERIES, 20, num_probes=3, num_reranked=ROWS)
    monkeypatch.setattr(scan, "FLAT", 4)
    seen = []

    def noted(**options: Any) -> Any:
        seen.append(options["efSearch"])
        return noted.original(**options)

    noted.original = faiss.SearchParametersHNSW  # type: ignore[attr-defined]
    monkeypatch.setattr(faiss, "SearchParametersHNSW", noted)
    index = indexes.filled(name, metric)
    lists = faiss.downcast_index(faiss.downcast_index(index.lists.quantizer).index)
    assert isinstance(lists, faiss.IndexHNSWFlat)
    for options in ({}, {"filter": range(ROWS)}):
        found = index.search(QUERIES, 20, num_probes=3, num_reranked=ROWS, ef_search=123, **options)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
        np.testing.assert_array_equal(found[1], expected[1])
    assert set(seen) == {123}
    everything = index.search(QUERIES, ROWS, num_probes=99, ef_search=99, num_reranked=ROWS)[1]
    np.testing.assert_array_equal(np.sort(everything, axis=1), [range(ROWS)] * len(QUERIES))


def test_searches_of_any_size_compile_few_programs() -> None:
    index = indexes.filled()
    rng = np.random.default_rng(0)
    before = chunks._chunk._cache_size()
    for count in rng.permutation([*range(1, 300, 23), 300]).tolist():
        queries = np.resize(QUERIES, (count, indexes.DIM))
        found = index.search(queries, 1 + count % 20)
        assert found[1].shape == (count, 1 + count % 20)
    assert chunks._chunk._cache_size() - before <= 10
