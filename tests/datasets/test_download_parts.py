"""Rows of a file, and compressed files, from servers that fail: the bytes are right, or refused."""

import gzip
import tempfile
import tracemalloc
from pathlib import Path

import pytest
import servers
from downloads import BODY, CUT, FAULTS, SUM, TAKEN, begun, fetch, flipped, plan, sent
from hypothesis import given
from hypothesis import strategies as st
from servers import Fault, Server

from qinco_jax import InputError
from qinco_jax.datasets import download
from qinco_jax.datasets.download import Remote
from qinco_jax.datasets.transfers import Cut

pytestmark = pytest.mark.usefixtures("quick")

# Rows of a file


@given(
    faults=st.lists(FAULTS.filter(lambda fault: fault.ranges), max_size=5),
    cut=st.builds(Cut, st.integers(1, 9), st.integers(0, 9), st.integers(9, 30), st.none()),
    rows=st.integers(1, 20),
    header=st.integers(0, 8),
)
def test_any_cut_is_the_head_and_the_end_and_no_row_twice(
    faults: list[Fault], cut: Cut, rows: int, header: int
) -> None:
    body = BODY[: header + rows * cut.row]
    taken = body[: header + cut.first * cut.row]
    taken += body[max(len(taken), len(body) - cut.last * cut.row) :]
    with servers.serving(x=body) as server, tempfile.TemporaryDirectory() as folder:
        server.faults = list(faults)
        assert fetch(Path(folder), server.at("x"), cut=cut) == taken


def test_a_cut_takes_its_rows_alone(tmp_path: Path, server: Server) -> None:
    server.faults = [Fault(), Fault(), Fault(drop=4000), Fault(), Fault(), Fault(drop=1000)]
    assert fetch(tmp_path, server.at("x"), cut=CUT._replace(rows=181), size=len(TAKEN)) == TAKEN
    assert sent(server) == len(TAKEN) + 5000
    for attempt in (fetch, plan):
        with pytest.raises(InputError, match="has 181 rows, not 182"):
            attempt(tmp_path / "other", server.at("x"), cut=CUT._replace(rows=182))


def test_a_cut_of_a_server_without_ranges_is_refused_unread(tmp_path: Path, server: Server) -> None:
    server.always = Fault(ranges=False, trickle=0.05)
    for attempt in (fetch, plan):
        with pytest.raises(InputError, match="does not support ranges, and the whole file"):
            attempt(tmp_path, server.at("x"), cut=CUT)
    assert all(sum(asked.sent) < 50_000 for asked in server.asked)
    server.always = Fault(headers={"Content-Range": "bytes 0-0/*"})
    with pytest.raises(InputError, match="does not send the length of the file, which ranges need"):
        fetch(tmp_path, server.at("x"), cut=CUT)


def test_the_pieces_of_a_cut_are_of_one_version(tmp_path: Path, server: Server) -> None:
    begun(tmp_path, server, cut=CUT)
    server.etag, server.files["/x"] = '"2"', BODY[::-1]
    expected = BODY[::-1][:33_900] + BODY[::-1][-22_000:]
    assert fetch(tmp_path, server.at("x"), cut=CUT) == expected


def test_another_cut_is_another_file(tmp_path: Path, server: Server) -> None:
    begun(tmp_path, server, cut=CUT)
    assert fetch(tmp_path, server.at("x"), cut=CUT._replace(last=0)) == TAKEN[:33_900]


# Compressed files


@pytest.mark.parametrize("encoding", ["", "x-gzip"])
def test_a_gz_is_resumed_and_decompressed(tmp_path: Path, server: Server, encoding: str) -> None:
    server.files["/x.gz?sig=1"] = gzip.compress(BODY[:70_000]) + gzip.compress(BODY[70_000:])
    server.always = Fault(headers={"Content-Encoding": encoding})
    server.faults = [server.always, server.always._replace(drop=500)]
    assert fetch(tmp_path, server.at("x.gz?sig=1"), size=len(BODY), sha256=SUM) == BODY
    assert sent(server) == len(server.files["/x.gz?sig=1"]) + 500
    assert not list(tmp_path.glob("*.gz"))


def test_a_gz_placed_by_hand_is_taken_and_left(tmp_path: Path) -> None:
    packed = tmp_path / "x.gz"
    packed.write_bytes(gzip.compress(BODY)[:-9])
    remote = Remote("x", ("http://127.0.0.1:1/x.gz",), sha256=SUM)
    with pytest.raises(InputError, match=r"x\.gz is damaged or truncated .*; replace x\.gz"):
        download.fetch(remote, tmp_path, lambda *_: None)
    packed.write_bytes(gzip.compress(BODY))
    assert download.plan([remote], tmp_path) == []
    assert download.fetch(remote, tmp_path, lambda *_: None).read_bytes() == BODY
    assert packed.exists()


@pytest.mark.parametrize(
    "packed, size, says",
    [
        (gzip.compress(BODY)[:-2], None, "damaged or truncated"),
        (flipped(gzip.compress(BODY)), None, "damaged or truncated"),
        (gzip.compress(bytes(10**6)), None, "decompresses to more than"),
        (gzip.compress(BODY), len(BODY) - 1, "decompresses to more than 199,999 bytes"),
        (gzip.compress(BODY), len(BODY) + 1, "200000 bytes, not 200001"),
    ],
)
def test_a_bad_gz_is_refused_and_fetched_anew(
    tmp_path: Path, server: Server, packed: bytes, size: int | None, says: str
) -> None:
    server.files["/x.gz"] = packed
    with pytest.raises(InputError, match=says):
        fetch(tmp_path, server.at("x.gz"), size=size)
    assert not [path for path in tmp_path.iterdir() if path.name != ".x.lock"]
    server.files["/x.gz"] = gzip.compress(BODY)
    assert fetch(tmp_path, server.at("x.gz")) == BODY


def test_decompressing_takes_little_memory(tmp_path: Path, server: Server) -> None:
    server.files["/x.gz"] = gzip.compress(bytes(30_000_000), 1)
    remote = Remote("x", (server.at("x.gz"),), 30_000_000)
    tracemalloc.start()
    try:
        download.fetch(remote, tmp_path, lambda *_: None)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()
