"""What is exported ranks in other programs as the index ranks here."""

from pathlib import Path

import indexes
import numpy as np
import pyarrow.parquet as pq
import pytest
from indexes import QUERIES, ROWS, X

import qinco_jax as qj
from qinco_jax.search import export
from qinco_jax.vectors.shards import read_rows

faiss = pytest.importorskip("faiss")

# build takes a scale under "l2" where all vectors have one length, so that the origin is 0
CASES = [
    ("plain", "l2", "length"),
    ("plain", "l2", "scale"),
    ("behind centroids", "ip", "scale"),
    ("rotated unit vectors", "cosine", "scale"),
    ("behind centroids", "l2", "reconstruction"),
    ("plain", "cosine", "reconstruction"),
]


@pytest.mark.parametrize("case", [CASES[0], *CASES[2:]], ids=str)
def test_exact_search_over_exported_vectors_ranks_as_the_index(
    case: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "GROUP_ROWS", 64)
    index, path = indexes.filled(*case), tmp_path / "x.parquet"
    export.to_parquet(index, path, "both")
    table = pq.read_table(path)
    assert pq.ParquetFile(path).num_row_groups >= ROWS // (2 * 64)
    ids, vectors = table["id"].to_numpy(), np.float64(read_rows(f"{path}::vector"))
    assert sorted(ids) == list(range(ROWS))
    queries = np.float64(QUERIES)
    if case[1] == "cosine":
        queries = indexes.unit(queries)
    products = queries @ vectors.T
    by_l2 = table.schema.metadata[b"rank_by"] == b"l2"
    found = products - np.square(vectors).sum(1) / 2 if by_l2 else products
    expected = indexes.distances(index, QUERIES, X)[:, ids]
    for scores, distances in zip(found, expected, strict=True):
        order = np.argsort(-scores)
        assert (np.diff(distances[order]) > -1e-3 * np.abs(distances).max()).all()
    codes = np.stack([np.frombuffer(code, np.uint8) for code in table["code"].to_pylist()])
    own = np.asarray(qj.encode(index.model, X[ids]))
    columns, size = own.shape[1], index.model.codebook_size
    if index.model.config.num_centroids is None:
        np.testing.assert_array_equal(qj.unpack(codes, columns, size), own)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_faiss_alone_finds_what_the_scan_finds(case: tuple[str, str, str], tmp_path: Path) -> None:
    index, path = indexes.filled(*case), tmp_path / "x.faiss"
    export.to_faiss(index, path)
    read = faiss.read_index(str(path))
    queries = np.asarray(QUERIES, np.float32)
    stretch = np.ones((len(queries), 1), np.float32)
    if case[1] == "ip" and index.reading.squared_length > 0:  # queries as long as the rows
        usual = np.sqrt(np.float32(index.reading.squared_length))
        stretch = np.linalg.norm(queries, axis=1, keepdims=True) / usual
    scores, ids = read.search(queries / stretch, 10)
    scores *= stretch
    distances, _ = index.search(QUERIES, 10, num_reranked=0)
    if case[1] == "l2":
        centered = np.square(indexes.less_origin(index, QUERIES)).sum(1, keepdims=True)
        scores = 2 * scores - centered
    np.testing.assert_allclose(-scores, distances, rtol=1e-4, atol=1e-3)
    all_ids = index.search(QUERIES, 100, num_reranked=0)[1]
    assert all(set(some) <= set(others) for some, others in zip(ids, all_ids, strict=True))


def test_shards_are_exported_as_one(tmp_path: Path) -> None:
    shards = [indexes.empty("plain") for _ in range(2)]
    for number, shard in enumerate(shards):
        shard.add(X[number::2], np.arange(number, ROWS, 2))
    both, one = qj.search.sharded(shards), indexes.filled("plain")
    for index, name in ((both, "both"), (one, "one")):
        export.to_parquet(index, tmp_path / f"{name}.parquet", "codes")
        export.to_faiss(index, tmp_path / f"{name}.faiss")
    tables = [pq.read_table(tmp_path / f"{name}.parquet").sort_by("id") for name in ("one", "both")]
    assert tables[0].equals(tables[1])
    found = [
        faiss.read_index(str(tmp_path / f"{name}.faiss")).search(QUERIES, 5)[0]
        for name in ("one", "both")
    ]
    np.testing.assert_allclose(*found, rtol=1e-6)
    assert len(shards[0]) == ROWS // 2
    with pytest.raises(qj.InputError, match="exists"):
        export.to_faiss(one, tmp_path / "one.faiss")
    with pytest.raises(qj.InputError, match=r"cannot write .*; make sure that its directory"):
        export.to_parquet(one, tmp_path / "nowhere" / "one.parquet")
    assert len(list(tmp_path.iterdir())) == 4
