"""A real server on loopback: answers, batches, limits, bad input, and how it stops."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import qinco_jax as qj
from qinco_jax.search import Index, disk

pytest.importorskip("faiss")

DIM, ROWS = 8, 400
LIMITS = {"wait-ms": 200, "max-bytes": 50_000, "max-rows": 200, "max-k": 150, "max-queue": 300}
BINARY = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def index() -> Index:
    x = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
    config = qj.QincoConfig(
        num_steps=3, codebook_size=16, hidden_dim=8, num_blocks=1, num_candidates=4, beam_size=2
    )
    found = qj.search.build(qj.train(x, config, num_epochs=0), x, num_lists=4)
    found.add(x)
    return found


@pytest.fixture(scope="module")
def folder(index: Index, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "index"
    disk.save(index, folder)
    return folder


class Server:
    """`qinco serve` in a process of its own, on a free port."""

    def __init__(self, folder: Path, *options: object) -> None:
        arguments = ["serve", folder, "--port", 0, *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qinco_jax", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + self.process.communicate()[1]
        self.url = found[0]

    def stop(self, number: signal.Signals) -> tuple[int, str]:
        """The exit code after a signal, and what was written to stderr."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors

    def together(self, *bodies: dict[str, Any]) -> list[httpx.Response]:
        """The answers to requests that are sent at the same time."""

        async def ask() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=self.url, timeout=60) as client:
                return await asyncio.gather(
                    *(client.post("/search", **_json(body)) for body in bodies)
                )

        return asyncio.run(ask())

    def metrics(self) -> dict[str, float]:
        text = httpx.get(f"{self.url}/metrics").raise_for_status().text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    found = Server(folder, *(part for name, n in LIMITS.items() for part in (f"--{name}", n)))
    yield found
    assert found.stop(signal.SIGINT) == (0, "")


def _json(body: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(body, default=lambda array: array.tolist())
    return {"content": text, "headers": {"content-type": "application/json"}}


def queries(num_rows: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_rows, DIM)).astype(np.float32)


def assert_found(response: httpx.Response, index: Index, x: np.ndarray, **settings: Any) -> None:
    """An answer is what the index finds for the same queries by themselves."""
    distances, ids = index.search(x, **settings)
    assert response.status_code == 200, response.text
    found = response.json()
    np.testing.assert_array_equal(found["ids"], ids)
    np.testing.assert_allclose(
        np.array(found["distances"], float), np.where(ids < 0, np.nan, distances), rtol=1e-5
    )


def test_requests_are_searched_together_and_each_gets_its_own(server: Server, index: Index) -> None:
    before = server.metrics()
    settings: list[dict[str, Any]] = [
        {"k": 3}, {"k": 5, "num_probes": 1}, {"k": 3, "num_reranked": 0},
        {"k": 150, "num_probes": 1}, {"k": 4, "num_probes": 4, "filter": [7, 3, 399]},
    ]  # fmt: skip
    asked = [(queries(1 + n % 3, n), settings[n % 5]) for n in range(24)]
    answers = server.together(*({"vectors": x, **options} for x, options in asked))
    for response, (x, options) in zip(answers, asked, strict=True):
        assert_found(response, index, x, **options)
    after = server.metrics()
    changed = {name: after[name] - before.get(name, 0) for name in after}
    assert changed["qinco_batch_requests_sum"] == 24 > changed["qinco_batch_requests_count"]
    assert changed["qinco_rows_total"] == changed["qinco_batch_rows_sum"] == 48
    assert changed['qinco_requests_total{status="200"}'] == 24
    assert changed["qinco_request_seconds_count"] == 24 and after["qinco_queue_rows"] == 0


def test_a_bad_request_does_not_hurt_those_beside_it(server: Server, index: Index) -> None:
    x = queries(2)
    bad = {
        "vectors has 3 dimensions": {"vectors": [[1, 2, 3]]},
        "row 1 of vectors holds NaN": {"vectors": [[0] * DIM, [float("nan")] * DIM]},
        "k = 151 exceeds the 150": {"vectors": x, "k": 151},
    }
    answers = server.together({"vectors": x}, *bad.values(), {"vectors": x[:1]})
    assert_found(answers[0], index, x)
    assert_found(answers[-1], index, x[:1])
    for text, response in zip(bad, answers[1:-1], strict=True):
        assert response.status_code == 400 and text in response.json()["error"]


def test_binary_rows_get_a_binary_answer(server: Server, index: Index) -> None:
    x = queries(3)
    response = httpx.post(
        f"{server.url}/search?k=150&num_probes=1", content=x.tobytes(), headers=BINARY
    )
    distances, ids = index.search(x, 150, num_probes=1)
    assert response.headers["content-type"] == BINARY["content-type"]
    found = np.frombuffer(response.content, "<i8", ids.size).reshape(ids.shape)
    np.testing.assert_array_equal(found, ids)
    near = np.frombuffer(response.content, "<f4", offset=found.nbytes).reshape(ids.shape)
    np.testing.assert_allclose(near, distances, rtol=1e-5)
    assert (np.isinf(near) == (ids == -1)).all() and (ids == -1).any()


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"{", 400, "the body is not JSON"),
        (b"[" * 20_000, 400, "the body is not JSON"),
        (b"[]", 400, 'the body has no "vectors"'),
        ({"vectors": []}, 400, "vectors has shape (0,)"),
        ({"vectors": [[1] * DIM, [1]]}, 400, "no matrix of numbers"),
        ({"vectors": [["1"] * DIM]}, 400, "vectors must be integers or floats"),
        ({"vectors": np.zeros((201, DIM))}, 400, "takes 200 at once"),
        ({"vectors": np.zeros((1, DIM)), "k": 1.5}, 400, "k must be an integer, got 1.5"),
        ({"vectors": np.zeros((1, DIM)), "num_reranked": 301}, 400, "exceeds the 300"),
        ({"vectors": np.zeros((1, DIM)), "filter": [-1]}, 400, "filter must be a list of ids"),
        ({"vectors": np.zeros((1, DIM)), "probes": 3}, 400, "did you mean 'num_probes'?"),
        (b" " * 50_001, 413, "more than 50000 bytes"),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_one_sentence(
    server: Server, body: Any, status: int, text: str
) -> None:
    given = _json(body) if isinstance(body, dict) else {**_json({}), "content": body}
    response = httpx.post(f"{server.url}/search", **given)
    assert (response.status_code, list(response.json())) == (status, ["error"])
    assert text in response.json()["error"]


def test_other_places_forms_and_long_bodies_are_refused(server: Server) -> None:
    def error(status: int, method: str, path: str, **given: Any) -> str:
        response = httpx.request(method, f"{server.url}{path}", **given)
        assert response.status_code == status
        return str(response.json()["error"])

    assert "there is no POST /add" in error(404, "POST", "/add", json={})
    assert "there is no GET /search" in error(405, "GET", "/search")
    assert "content type is 'text/plain'" in error(
        415, "POST", "/search", content=b"", headers={"content-type": "text/plain"}
    )
    assert "no multiple of the 32" in error(400, "POST", "/search", content=b"123", headers=BINARY)
    assert "k must be an integer, got 'x'" in error(
        400, "POST", "/search?k=x", content=bytes(32), headers=BINARY
    )
    pieces = (bytes(10_000) for _ in range(2000))  # of a length that no header tells
    assert "more than 50000 bytes" in error(413, "POST", "/search", content=pieces, headers=BINARY)


def test_a_full_queue_asks_to_come_back(server: Server, index: Index) -> None:
    x = queries(200)
    answers = server.together(*({"vectors": x, "k": k} for k in (1, 2, 3)))
    full = [response for response in answers if response.status_code == 503]
    assert full and all(int(response.headers["retry-after"]) > 0 for response in full)
    assert "200 vectors wait already" in full[0].json()["error"]
    for k, response in zip((1, 2, 3), answers, strict=True):
        if response not in full:
            assert_found(response, index, x, k=k)


def test_health_tells_what_is_served(server: Server) -> None:
    response = httpx.get(f"{server.url}/health")
    assert response.json() == {"status": "ready", "vectors": ROWS, "dim": DIM, "metric": "l2"}


def test_requests_in_flight_are_answered_when_the_server_is_stopped(
    folder: Path, index: Index
) -> None:
    server = Server(folder, "--wait-ms", 2000, "--mmap", "--host", "0.0.0.0")
    url, x = server.url.replace("0.0.0.0", "127.0.0.1"), queries(1)

    async def ask() -> tuple[list[httpx.Response], tuple[int, str]]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            asked = [
                asyncio.create_task(client.post("/search", **_json({"vectors": x})))
                for _ in range(3)
            ]
            while "qinco_queue_rows 3.0" not in (await client.get("/metrics")).text:
                assert not any(task.done() for task in asked)
            stopped = asyncio.create_task(asyncio.to_thread(server.stop, signal.SIGTERM))
            with pytest.raises(httpx.TransportError):
                while True:
                    await client.get("/health")
            assert not any(task.done() for task in asked)
            return await asyncio.gather(*asked), await stopped

    answers, (code, errors) = asyncio.run(ask())
    for response in answers:
        assert_found(response, index, x)
    assert code == 0
    assert re.fullmatch(r"warning: whoever reaches http://0.0.0.0:\d+ can search .*\n", errors)
