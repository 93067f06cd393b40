"""Shards answer as one index over all vectors does, and only shards that fit together do."""

import json
import shutil
from pathlib import Path
from typing import Any

import indexes
import numpy as np
import pytest
from indexes import QUERIES, ROWS, X

import qinco_jax as qj
from qinco_jax.search import manifest
from qinco_jax.search.manifest import fitted_sha256

pytest.importorskip("faiss")

ALONE = 300  # rows of X of which no two are copies
CASES = ("300 codewords", "l2"), ("behind centroids", "ip"), ("300 codewords", "cosine")
SPLIT = np.random.default_rng(3).integers(0, 3, size=ROWS)  # the shard of each row
SPLIT[:4] = 2


def split(case: tuple[str, str], rows: int) -> list[qj.search.Index]:
    """The first rows of `X` in three shards of different sizes."""
    shards = []
    for number in range(3):
        shard, own = indexes.empty(*case), np.flatnonzero(SPLIT[:rows] == number)
        shard.add(X[own], own)
        shards.append(shard)
    return shards


@pytest.mark.parametrize("case", CASES, ids=str)
def test_shards_answer_as_one_index_does(case: tuple[str, str]) -> None:
    whole, shards = indexes.empty(*case), qj.search.sharded(split(case, ALONE))
    whole.add(X[:ALONE])
    assert len(shards) == ALONE and shards.metric == case[1]
    options: list[dict[str, Any]] = [
        {}, {"k": 3, "num_probes": 1}, {"num_reranked": 0}, {"k": 150, "num_probes": 2},
        {"filter": range(50, 120)}, {"filter": [7, 250, 9, 5000], "num_reranked": 0},
    ]  # fmt: skip
    for given in options:
        (near, ids), (near_of_one, ids_of_one) = (
            index.search(QUERIES, **given) for index in (shards, whole)
        )
        np.testing.assert_array_equal(ids, ids_of_one)
        np.testing.assert_allclose(near, near_of_one, rtol=1e-5, atol=1e-6)


def test_copies_in_different_shards_are_found_in_the_order_of_their_ids() -> None:
    case = "plain", "l2"
    shards, whole = qj.search.sharded(split(case, ROWS)), indexes.filled(*case)
    found = shards.search(QUERIES, 30, num_probes=1000, num_reranked=ROWS)
    indexes.assert_nearest(found, indexes.distances(whole, QUERIES, X), np.arange(ROWS))


def test_shards_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    plain = indexes.filled("plain")
    with pytest.raises(qj.InputError, match="shard 1 is of another model than shard 0"):
        qj.search.sharded([plain, indexes.filled("12 codewords")])
    with pytest.raises(qj.InputError, match="shard 1 has other lists, decoders or another reading"):
        qj.search.sharded([plain, indexes.filled("plain", "ip")])
    with pytest.raises(qj.InputError, match="the id 0 is in two shards"):
        qj.search.sharded([plain, indexes.filled("plain")])
    with pytest.raises(qj.InputError, match="got no shards"):
        qj.search.sharded([])
    with pytest.raises(qj.InputError, match=r"is not an index in shards: .*shards.json is missing"):
        qj.search.sharded(tmp_path)
    x = np.float32(X[:, :4])
    config = indexes.small(dim=4)
    other = qj.search.build(qj.train(x, config, num_epochs=0), x, 2)
    with pytest.raises(qj.InputError, match="shard 1 has 4 dimensions, and shard 0 has 8"):
        qj.search.sharded([plain, other])


def test_a_folder_of_shards_is_checked_against_its_manifest(tmp_path: Path) -> None:
    parts, fitted = manifest.shards_of(ALONE, 3), indexes.empty("plain")
    for part in parts:
        shard = indexes.empty("plain")
        shard.add(X[part.begin : part.end], np.arange(part.begin, part.end))
        qj.search.save(shard, tmp_path / part.name)
    manifest.write(tmp_path, parts, fitted)
    assert manifest.read(tmp_path).fitted_sha256 == fitted_sha256(fitted)
    whole = indexes.empty("plain")
    whole.add(X[:ALONE])
    for mmap in (False, True):
        found = qj.search.sharded(tmp_path, mmap=mmap).search(QUERIES, 5)
        np.testing.assert_array_equal(found[1], whole.search(QUERIES, 5)[1])

    first, moved = tmp_path / parts[0].name, tmp_path / "moved"
    first.rename(moved)
    with pytest.raises(qj.InputError, match=f"the shard {first} is missing; run the"):
        qj.search.sharded(tmp_path)
    shutil.copytree(tmp_path / parts[1].name, first)
    qj.search.sharded(tmp_path)  # of as many vectors: the ids are the manifest's word
    shutil.rmtree(first)
    for name, text in (("12 codewords", "is of another model than"), ("plain", "400 vectors")):
        qj.search.save(indexes.filled(name), first)
        with pytest.raises(qj.InputError, match=text):
            qj.search.sharded(tmp_path)
        shutil.rmtree(first)
    moved.rename(first)
    file = tmp_path / manifest.FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dim": 9}))
    with pytest.raises(qj.InputError, match=r"shards.json is damaged"):
        qj.search.sharded(tmp_path)
