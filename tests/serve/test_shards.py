"""Shards behind Ray Serve: right answers, or none, while their processes are killed."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import indexes
import numpy as np
import pytest
from indexes import QUERIES, X

import qinco_jax as qj
from qinco_jax.cluster import connect
from qinco_jax.search import manifest
from qinco_jax.search.searcher import Asked, Shortlist
from qinco_jax.serve.app import MISSING, application
from qinco_jax.serve.requests import Incomplete, Refused
from qinco_jax.serve.shards import Deployed

pytest.importorskip("faiss")

CASE, ROWS = "300 codewords", 300


def whole() -> qj.search.Index:
    index = indexes.empty(CASE)
    index.add(X[:ROWS])
    return index


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    parts = manifest.shards_of(ROWS, 2)
    for part in parts:
        shard = indexes.empty(CASE)
        shard.add(X[part.begin : part.end], np.arange(part.begin, part.end))
        qj.search.save(shard, tmp_path / part.name)
    manifest.write(tmp_path, parts, indexes.empty(CASE))
    return tmp_path


@pytest.fixture
def deployed(folder: Path) -> Iterator[Deployed]:
    pytest.importorskip("ray")
    with connect.connected(2) as ray:
        found = Deployed(ray, manifest.read(folder), 2, seconds=8)
        yield found
        found.stop()


def processes(deployed: Deployed, number: int) -> set[int]:
    """The replicas of a shard, which are asked in turn."""
    asked = [deployed.handles[number].process.remote() for _ in range(16)]
    return {call.result(timeout_s=30) for call in asked}


@pytest.mark.filterwarnings("ignore")  # of Ray and what it rests on
def test_killed_replicas_never_make_an_answer_wrong(deployed: Deployed) -> None:
    expected = whole().search(QUERIES, num_probes=3)

    def assert_whole() -> None:
        found = deployed.search(QUERIES, num_probes=3)
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)

    assert_whole()
    assert len(deployed) == ROWS and deployed.missing == []
    os.kill(min(processes(deployed, 0)), signal.SIGKILL)
    for _ in range(5):  # the other replica answers
        assert_whole()
    for process in processes(deployed, 1):
        os.kill(process, signal.SIGKILL)
    name = "shard-00001-of-00002"
    try:
        assert_whole()  # where it came back while the request was tried again
    except Refused as refused:
        assert f"{name} cannot answer now" in str(refused) and refused.status == 503
    _, ids, missing = deployed.partly(QUERIES, 10, num_probes=3)
    half = indexes.empty(CASE)
    half.add(X[: ROWS // 2])
    if missing:  # it may be back by now
        assert missing == [name]
        np.testing.assert_array_equal(ids, half.search(QUERIES, num_probes=3)[1])
    until = time.monotonic() + 60
    while deployed.missing and time.monotonic() < until:
        time.sleep(0.2)
    assert_whole()


class HalfThere(Incomplete):
    """An index that lacks a part of its vectors."""

    missing = ["shard-1"]  # noqa: RUF012

    def __init__(self, index: qj.search.Index) -> None:
        self.index, self.model, self.reading = index, index.model, index.reading
        self.pairs, self.list_vectors = index.pairs, index.list_vectors

    def __len__(self) -> int:
        return len(self.index)

    def shortlist(self, queries: np.ndarray, asked: Asked) -> Shortlist:
        return self.index.shortlist(queries, asked)

    def ranked(self, queries: np.ndarray, shortlist: Shortlist, asked: Asked) -> Any:
        return self.index.ranked(queries, shortlist, asked)

    def partly(self, queries: np.ndarray, k: int, **settings: Any) -> Any:
        return (*self.search(queries, k, **settings), self.missing)


def test_an_answer_without_a_shard_says_so_and_only_when_asked() -> None:
    app = application(HalfThere(whole()))
    body = {"vectors": QUERIES[:2].tolist(), "k": 2}

    async def ask() -> list[httpx.Response]:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client,
        ):
            return [
                await client.post("/search", json=body),
                await client.post("/search", json={**body, "partial": True}),
                await client.post(
                    "/search?k=2&partial=1", content=QUERIES[:2].astype("<f4").tobytes(),
                    headers={"content-type": "application/octet-stream"},
                ),
                await client.post("/search", json={**body, "partial": "perhaps"}),
                await client.get("/health"),
            ]  # fmt: skip

    plain, partial, binary, bad, health = asyncio.run(ask())
    assert plain.status_code == 200 and MISSING not in plain.headers
    assert "missing" not in plain.json()
    assert partial.json()["missing"] == ["shard-1"] and partial.headers[MISSING] == "shard-1"
    assert binary.headers[MISSING] == "shard-1" and len(binary.content) == 4 * (8 + 4)
    assert bad.status_code == 400 and "partial must be true or false" in bad.json()["error"]
    assert health.json()["missing"] == ["shard-1"]
