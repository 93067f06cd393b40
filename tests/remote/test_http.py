"""Vectors on a web server, with and without ranges, and at schemes that need no server."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import servers
from servers import Fault

import qinco_jax as qj
from qinco_jax.remote import failures, ranges
from qinco_jax.remote.paths import RemotePath
from qinco_jax.vectors.convert import convert
from qinco_jax.vectors.shards import read_rows

X = np.random.default_rng(0).normal(size=(20_000, 16)).astype(np.float32)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.setattr(failures, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(ranges, "PART_BYTES", 100_000)
    monkeypatch.setattr(ranges, "AHEAD_BYTES", 200_000)
    np.save(tmp_path / "x.npy", X)
    return (tmp_path / "x.npy").read_bytes()


def test_rows_come_by_ranges_and_ahead_of_who_reads_in_order(file: bytes) -> None:
    with servers.serving(**{"x.npy?key=1": file}) as server:
        rows = read_rows(server.at("x.npy?key=1"))
        server.asked.clear()
        np.testing.assert_array_equal(rows[5000:5010], X[5000:5010])
        assert server.ranges() == [f"bytes={128 + 5000 * 64}-{128 + 5010 * 64 - 1}"]
        server.faults = [Fault(drop=50), Fault(status=503), Fault(hangs_up=True)]
        for begin in range(0, len(X), 500):
            np.testing.assert_array_equal(rows[begin : begin + 500], X[begin : begin + 500])
        assert len(server.asked) < 40  # the parts, not the blocks
        server.always = Fault(status=500)
        with pytest.raises(qj.InputError, match=r"answers 500 .*; try again later"):
            np.asarray(rows[9000:9010])
        server.always = Fault()
        np.testing.assert_array_equal(rows[9000:9010], X[9000:9010])
        server.etag = '"2"'
        with pytest.raises(qj.InputError, match="has changed since it was opened"):
            np.asarray(rows[7000:7010])


def test_threads_share_rows(file: bytes) -> None:
    def reads(seed: int) -> bool:
        rng, at = np.random.default_rng(seed), 0
        for _ in range(30):
            at = at if rng.integers(3) else int(rng.integers(len(X)))
            end = at + int(rng.integers(1, 2000))
            if not np.array_equal(rows[at:end], X[at:end]):
                return False
            at = end if end < len(X) else 0
        picked = rng.integers(0, len(X), 50)
        return np.array_equal(rows[picked], X[picked])

    with servers.serving(**{"x.npy": file}) as server, ThreadPoolExecutor(6) as threads:
        rows = read_rows(server.at("x.npy"))
        assert all(threads.map(reads, range(6)))


def test_servers_that_give_no_parts_or_no_file_are_one_sentence(file: bytes) -> None:
    with servers.serving(**{"x.npy": file}) as server:
        server.always = Fault(ranges=False)
        with pytest.raises(qj.InputError, match="is on a server without byte ranges; copy it"):
            read_rows(server.at("x.npy"))
        server.always = Fault(status=403)
        with pytest.raises(qj.InputError, match=r"x.npy answers 403 .*; check the name, or"):
            read_rows(server.at("x.npy"))
        server.always = Fault()
        with pytest.raises(qj.InputError, match=r"there is no file http.*/y.npy; check its name"):
            read_rows(server.at("y.npy"))
    with pytest.raises(qj.InputError, match=r"cannot be reached \(Connect.*; check the address"):
        read_rows(server.at("x.npy"))


def test_memory_is_a_place_too(file: bytes, tmp_path: Path) -> None:
    convert(tmp_path / "x.npy", "memory://folder/x.fbin", progress=None)
    rows = read_rows("memory://folder/x.fbin")
    np.testing.assert_array_equal(rows, X)
    with pytest.raises(qj.InputError, match=r"memory://folder/x.fbin exists; choose"):
        convert(tmp_path / "x.npy", "memory://folder/x.fbin")
    assert [path.name for path in RemotePath("memory://folder").iterdir()] == ["x.fbin"]
