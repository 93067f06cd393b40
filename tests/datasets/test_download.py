"""Downloads from servers that fail in every way: the bytes are right, or refused."""

import email.utils
import gzip
import hashlib
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tracemalloc
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from hypothesis import given
from hypothesis import strategies as st
from servers import Fault, Server

from qinco_jax import InputError
from qinco_jax.datasets import download, transports
from qinco_jax.datasets.download import Missing, Remote
from qinco_jax.datasets.transfers import Cut

BODY = random.Random(0).randbytes(200_000)
SUM = hashlib.sha256(BODY).hexdigest()
SCRIPT = Path(servers.__file__).with_name("fetching.py")


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """No pauses to speak of, and no proxy of this machine's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transports, "PAUSE_SECONDS", 0.001)
        patch.setattr(download, "WAIT_SECONDS", 0.01)
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        yield


@pytest.fixture
def server() -> Iterator[Server]:
    with servers.serving(x=BODY) as running:
        yield running


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been waited for."""
    monkeypatch.setattr(transports, "PAUSE_SECONDS", 1.0)
    asked: list[float] = []
    clock = types.SimpleNamespace(sleep=asked.append, time=time.time)
    monkeypatch.setattr(transports, "time", clock)
    return asked


def fetch(folder: Path, *addresses: str, **about: object) -> bytes:
    remote = Remote("x", addresses, **about)  # type: ignore[arg-type]
    path = download.fetch(remote, folder, lambda done, total: None)
    assert path == folder / "x"
    assert not list(folder.glob(".*partial*"))
    return path.read_bytes()


def plan(folder: Path, *addresses: str, **about: object) -> list[Missing]:
    return download.plan([Remote("x", addresses, **about)], folder)  # type: ignore[arg-type]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


# The file as it should be


def test_a_file_comes_with_its_sum_and_is_not_fetched_again(tmp_path: Path, server: Server) -> None:
    told: list[tuple[int, int | None]] = []
    remote = Remote("set/part/x", (server.at("x"),), len(BODY), SUM)
    path = download.fetch(remote, tmp_path / "new", lambda *what: told.append(what))
    assert path == tmp_path / "new" / "set" / "part" / "x" and path.read_bytes() == BODY
    assert told == sorted(told) and told[-1] == (len(BODY), len(BODY))
    assert path.with_name("x.sha256").read_text() == f"{SUM}  x\n"
    assert download.verify(remote, tmp_path / "new") == SUM
    assert download.fetch(remote, tmp_path / "new", lambda *_: None) == path
    assert len(server.asked) == 1


def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    with servers.serving(x=b"") as server:
        assert fetch(tmp_path, server.at("x")) == b""


def test_a_file_placed_by_hand_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(BODY)
    assert fetch(tmp_path, "http://127.0.0.1:1/x", size=len(BODY), sha256=SUM) == BODY
    assert download.plan([Remote("x", ())], tmp_path) == []
    assert download.verify(Remote("x", ()), tmp_path) == SUM
    with pytest.raises(InputError, match=r"/x has 200000 bytes instead of 7; remove it and"):
        fetch(tmp_path, size=7)
    (tmp_path / "y").mkdir()
    with pytest.raises(InputError, match=r"/y is a directory"):
        download.plan([Remote("y", ())], tmp_path)


# Connections that break


def test_a_broken_connection_goes_on_where_it_broke(tmp_path: Path, server: Server) -> None:
    server.faults = [
        Fault(drop=1000), Fault(drop=50_000, reset=True), Fault(hangs_up=True), Fault(status=503),
        Fault(drop=0), Fault(drop=7),
    ]  # fmt: skip
    assert fetch(tmp_path, server.at("x")) == BODY
    begins = [None, 1000, 51_000, 51_000, 51_000, 51_000, 51_007]
    assert server.ranges() == [begin and f"bytes={begin}-" for begin in begins]
    assert {asked.headers["Accept-Encoding"] for asked in server.asked} == {"identity"}
    assert {asked.headers["If-Range"] for asked in server.asked[1:]} == {'"1"'}


DROPS = st.tuples(st.integers(0, 300), st.booleans(), st.booleans())
FAULTS = st.one_of(
    DROPS.map(lambda drawn: Fault(drop=drawn[0], reset=drawn[1], ranges=drawn[2])),
    st.sampled_from([429, 500, 503]).map(lambda status: Fault(status=status)),
    st.just(Fault(hangs_up=True)),
)


@given(
    faults=st.lists(FAULTS, max_size=5),
    length=st.integers(1, 400),
    etags=st.sampled_from(['"1"', 'W/"1"', None]),
    chunked=st.booleans(),
)
def test_any_faults_end_in_the_same_bytes(
    faults: list[Fault], length: int, etags: str | None, chunked: bool
) -> None:
    headers = {"Transfer-Encoding": "chunked", "Content-Length": ""} if chunked else None
    with servers.serving(x=BODY[:length]) as server, tempfile.TemporaryDirectory() as folder:
        server.etag, server.always = etags, Fault(headers=headers)
        server.faults = [f._replace(headers=headers) if f.drop is not None else f for f in faults]
        assert fetch(Path(folder), server.at("x")) == BODY[:length]


def test_slow_bytes_are_waited_for_and_silence_is_not(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transports, "SILENT_SECONDS", 0.5)
    server.files["/x"] = BODY[:40_000]
    server.faults = [Fault(trickle=0.02)]
    assert fetch(tmp_path / "slow", server.at("x")) == BODY[:40_000]
    assert len(server.asked) == 1
    server.faults = [Fault(silent=20_000)]
    assert fetch(tmp_path / "silent", server.at("x")) == BODY[:40_000]
    assert server.ranges()[-2:] == [None, "bytes=20000-"]


def test_without_progress_it_gives_up_and_can_go_on(tmp_path: Path, server: Server) -> None:
    server.faults = [Fault(drop=1000)]
    server.always = Fault(drop=0)
    with pytest.raises(InputError) as caught:
        fetch(tmp_path, server.at("x"), f"http://127.0.0.1:{closed_port()}/other")
    assert f"x cannot be fetched: {server.at('x')} dropped the connection (" in str(caught.value)
    assert f"to start over from another address, remove {tmp_path / '.x.partial'}" in str(
        caught.value
    )
    assert "/other" not in str(caught.value)
    assert len(server.asked) == 1 + transports.TRIES
    assert (tmp_path / ".x.partial").read_bytes() == BODY[:1000]
    server.always = Fault()
    assert fetch(tmp_path, server.at("x")) == BODY
    assert server.ranges()[-1] == "bytes=1000-"


def test_a_busy_server_says_how_long_to_wait(
    tmp_path: Path, server: Server, pauses: list[float]
) -> None:
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    server.faults = [
        Fault(status=429, headers={"Retry-After": wait}) for wait in ("7", date, "86400", "soon")
    ]
    assert fetch(tmp_path, server.at("x")) == BODY
    assert pauses == [7, pytest.approx(30, abs=3), transports.LONGEST_PAUSE_SECONDS, 8]


def test_pauses_grow_until_bytes_arrive(
    tmp_path: Path, server: Server, pauses: list[float]
) -> None:
    server.faults = [Fault(status=500)] * 3 + [Fault(drop=9)] + [Fault(status=502)] * 2
    assert fetch(tmp_path, server.at("x")) == BODY
    assert pauses == [1, 2, 4, 1, 1, 2]


def test_a_length_that_never_comes_is_given_up(tmp_path: Path, server: Server) -> None:
    server.always = Fault(headers={"Content-Length": "200001"})
    with pytest.raises(InputError, match=r"x cannot be fetched: .*; call again later"):
        fetch(tmp_path, server.at("x"))
    assert not (tmp_path / "x").exists()


# Other addresses


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_is_not_there_is_taken_from_elsewhere(
    tmp_path: Path, server: Server, status: int
) -> None:
    server.faults = [Fault(status=status)]
    assert fetch(tmp_path, server.at("gone"), server.at("x")) == BODY
    assert [asked.path for asked in server.asked] == ["/gone", "/x"]


def test_no_connection_no_answer_no_use(tmp_path: Path, server: Server) -> None:
    server.faults = [
        Fault(headers={"Content-Type": "text/html; charset=utf-8"}),  # "please log in"
        Fault(headers={"Content-Encoding": "gzip"}),
        Fault(headers={"Content-Length": ""}),
    ]
    closed = f"http://127.0.0.1:{closed_port()}/x"
    addresses = [closed, "file:///etc/passwd", *map(server.at, "abc"), server.at("x")]
    server.files |= dict.fromkeys(("/a", "/b", "/c"), b"not this")
    with pytest.raises(InputError) as caught:
        fetch(tmp_path, *addresses[:-1], size=3)
    says = str(caught.value)
    assert all(address in says for address in addresses[:-1])
    assert "cannot be reached (Connection refused)" in says
    assert "answers with a web page" in says and "(gzip) though asked not to" in says
    assert "does not send the length of the file, so it may be" in says
    assert says.endswith(f"or place the file yourself as {tmp_path / 'x'}")
    assert fetch(tmp_path, addresses[0], addresses[-1]) == BODY


@pytest.mark.parametrize("place", ["gopher://127.0.0.1", "http://[bad/x"])
def test_a_redirect_to_nowhere_is_no_use(tmp_path: Path, server: Server, place: str) -> None:
    server.faults = [Fault(status=302, headers={"Location": place})]
    assert fetch(tmp_path, server.at("a"), server.at("x")) == BODY


def test_another_size_than_the_files_is_not_downloaded(tmp_path: Path, server: Server) -> None:
    with pytest.raises(InputError, match=r"/x has 200000 bytes, not 10;"):
        fetch(tmp_path, server.at("x"), size=10)
    assert len(server.asked) == 1


def test_redirects_keep_the_range(tmp_path: Path, server: Server) -> None:
    with servers.serving() as first:
        first.always = Fault(status=302, headers={"Location": "http://localhost:1/"})
        there = server.at("x").replace("127.0.0.1", "localhost")
        first.always = Fault(status=302, headers={"Location": there})
        server.faults = [Fault(drop=500), Fault(status=307, headers={"Location": "/x"})]
        assert fetch(tmp_path, first.at("x")) == BODY
    assert server.ranges() == [None, "bytes=500-", "bytes=500-"]
    server.always = Fault(status=301, headers={"Location": "/x"})
    with pytest.raises(InputError, match=r"redirect"):
        fetch(tmp_path / "round", server.at("x"))


def test_a_later_call_goes_on_at_the_address_it_began_at(tmp_path: Path, server: Server) -> None:
    with servers.serving(x=BODY) as first:
        first.always = Fault(status=404)
        server.faults, server.always = [Fault(drop=900)], Fault(status=500)
        with pytest.raises(InputError, match="500"):
            fetch(tmp_path, first.at("x"), server.at("x"))
        server.always, first.always = Fault(), Fault()
        assert fetch(tmp_path, first.at("x"), server.at("x")) == BODY
        assert len(first.asked) == 1 and server.ranges()[-1] == "bytes=900-"


def test_a_known_sum_lets_another_address_go_on(tmp_path: Path, server: Server) -> None:
    with servers.serving(x=BODY) as second:
        second.etag = '"other"'
        server.faults, server.always = [Fault(drop=900)], Fault(status=500)
        assert fetch(tmp_path, server.at("x"), second.at("x"), sha256=SUM.upper()) == BODY
        assert second.ranges() == ["bytes=900-"]


def test_bytes_from_a_lost_address_are_not_mixed(tmp_path: Path, server: Server) -> None:
    with servers.serving(x=BODY[::-1]) as second:
        server.faults, server.always = [Fault(drop=900)], Fault(status=404)
        assert fetch(tmp_path, server.at("x"), second.at("x")) == BODY[::-1]
        assert second.ranges() == [None]


# Files that change, servers that cannot go on


@pytest.mark.parametrize("mark", ["etag", "modified"])
@pytest.mark.parametrize("careless", [True, False])
def test_a_file_that_changed_is_begun_anew(
    tmp_path: Path, server: Server, mark: str, careless: bool
) -> None:
    server.etag = None
    setattr(server, mark, '"Mon"')
    server.faults, server.always = [Fault(drop=900)], Fault(status=500)
    with pytest.raises(InputError):
        fetch(tmp_path, server.at("x"))
    before = len(server.asked)
    setattr(server, mark, '"Tue"')
    server.files["/x"], server.always = BODY[::-1], Fault(careless=careless)
    assert fetch(tmp_path, server.at("x")) == BODY[::-1]
    assert server.ranges()[before:] == ["bytes=900-"] + [None] * careless


def test_a_file_without_marks_is_known_by_its_size(tmp_path: Path, server: Server) -> None:
    server.etag = None
    server.faults = [Fault(drop=900), Fault(status=206, headers={
        "Content-Range": "bytes 900-999/1000", "Content-Length": "100"})]  # fmt: skip
    assert fetch(tmp_path, server.at("x")) == BODY
    assert server.ranges() == [None, "bytes=900-", None]


def test_a_server_without_ranges_begins_anew_a_few_times(tmp_path: Path, server: Server) -> None:
    server.faults = [Fault(drop=5000, ranges=False)] * 3 + [Fault(ranges=False)]
    assert fetch(tmp_path / "some", server.at("x")) == BODY
    server.always = Fault(drop=5000, ranges=False)
    with pytest.raises(InputError, match="starts over whenever it is asked to resume"):
        fetch(tmp_path / "many", server.at("x"))


def test_the_rest_may_come_in_parts_that_say_little(tmp_path: Path, server: Server) -> None:
    little = {"ETag": "", "Content-Range": "bytes 900-199999/*"}
    less = {"Content-Range": "bytes 1900-1999/200000", "Content-Length": "100"}
    server.faults = [
        Fault(drop=900), Fault(drop=1000, headers=little), Fault(drop=100, headers=less),
    ]  # fmt: skip
    assert fetch(tmp_path, server.at("x")) == BODY
    assert server.ranges()[1:] == ["bytes=900-", "bytes=1900-", "bytes=2000-"]
    assert {asked.headers["If-Range"] for asked in server.asked[1:]} == {'"1"'}


def test_a_part_of_another_place_is_refused(tmp_path: Path, server: Server) -> None:
    for says in ("bytes 901-199999/200000", "900-199999/200000", ""):
        server.faults = [Fault(drop=900), Fault(status=206, headers={"Content-Range": says})]
        with pytest.raises(InputError, match="was asked for bytes 900- but sends"):
            fetch(tmp_path, server.at("x"))
        assert (tmp_path / ".x.partial").read_bytes() == BODY[:900]
        (tmp_path / ".x.partial").unlink()


@pytest.mark.parametrize("note", [None, "", "{", '{"address": 1}', "[]"])
def test_a_partial_file_of_unknown_origin_is_not_used(
    tmp_path: Path, server: Server, note: str | None
) -> None:
    (tmp_path / ".x.partial").write_bytes(b"something")
    if note is not None:
        (tmp_path / ".x.partial.json").write_text(note)
    assert fetch(tmp_path, server.at("x")) == BODY
    assert server.ranges() == [None]


# Rows of a file


CUT = Cut(first=3, last=2, row=1100)  # of 181 rows of BODY, behind 900 bytes
TAKEN = BODY[: 900 + 3300] + BODY[-2200:]


def test_a_cut_takes_its_rows_alone(tmp_path: Path, server: Server) -> None:
    server.faults = [Fault(drop=100), Fault(drop=4000), Fault(), Fault(drop=1000)]
    assert fetch(tmp_path, server.at("x"), cut=CUT, size=len(TAKEN)) == TAKEN
    assert server.ranges() == [
        "bytes=0-4399", "bytes=100-4199", "bytes=4100-4199", "bytes=197800-199999",
        "bytes=198800-199999",
    ]  # fmt: skip
    assert {asked.headers["If-Range"] for asked in server.asked[1:]} == {'"1"'}
    assert sum(sum(asked.sent) for asked in server.asked) == len(TAKEN)


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


def test_a_cut_of_a_server_without_ranges_is_refused_unread(tmp_path: Path, server: Server) -> None:
    server.always = Fault(ranges=False, trickle=0.05)
    for attempt in (fetch, plan):
        with pytest.raises(InputError, match="does not support ranges, and the whole file"):
            attempt(tmp_path, server.at("x"), cut=CUT)
    assert all(sum(asked.sent) < 50_000 for asked in server.asked)


@pytest.mark.parametrize("careless", [True, False])
@pytest.mark.parametrize("come", [100, None])
def test_the_pieces_of_a_cut_are_of_one_version(
    tmp_path: Path, server: Server, come: int | None, careless: bool
) -> None:
    server.faults, server.always = [Fault(drop=come)], Fault(status=500)
    with pytest.raises(InputError):
        fetch(tmp_path, server.at("x"), cut=CUT)
    assert (tmp_path / ".x.partial").read_bytes() == TAKEN[: come or 4200]
    server.etag, server.files["/x"] = '"2"', BODY[::-1]
    server.always = Fault(careless=careless)
    expected = BODY[::-1][:4200] + BODY[::-1][-2200:]
    assert fetch(tmp_path, server.at("x"), cut=CUT) == expected


def test_a_server_that_forgets_ranges_gives_no_end(tmp_path: Path, server: Server) -> None:
    server.faults, server.always = [Fault()], Fault(ranges=False)
    with pytest.raises(InputError, match="does not support ranges"):
        fetch(tmp_path, server.at("x"), cut=CUT)
    assert not (tmp_path / "x").exists()


def test_another_cut_is_another_file(tmp_path: Path, server: Server) -> None:
    server.faults, server.always = [Fault(drop=100)], Fault(status=500)
    with pytest.raises(InputError):
        fetch(tmp_path, server.at("x"), cut=CUT)
    server.always = Fault()
    assert fetch(tmp_path, server.at("x"), cut=CUT._replace(last=0)) == TAKEN[:4200]
    assert server.ranges()[-1] == "bytes=0-4399"


def test_a_cut_of_a_file_of_other_rows_is_refused(tmp_path: Path, server: Server) -> None:
    assert fetch(tmp_path / "some", server.at("x"), cut=CUT._replace(rows=181)) == TAKEN
    for attempt in (fetch, plan):
        with pytest.raises(InputError, match="has 181 rows, not 182"):
            attempt(tmp_path, server.at("x"), cut=CUT._replace(rows=182))


def test_the_end_of_a_file_of_unknown_length_is_refused(tmp_path: Path, server: Server) -> None:
    server.always = Fault(headers={"Content-Range": "bytes 0-4399/*"})
    with pytest.raises(InputError, match="does not send the length of the file, which ranges need"):
        fetch(tmp_path, server.at("x"), cut=CUT)


# Compressed files


@pytest.mark.parametrize("encoding", ["", "x-gzip"])
def test_a_gz_is_resumed_and_decompressed(tmp_path: Path, server: Server, encoding: str) -> None:
    packed = gzip.compress(BODY[:70_000]) + gzip.compress(BODY[70_000:])
    server.files["/x.gz"] = packed
    headers = {"Content-Encoding": encoding}
    server.faults = [Fault(drop=500, headers=headers), Fault(headers=headers)]
    address = server.at("x.gz?sig=1")
    server.files["/x.gz?sig=1"] = packed
    assert fetch(tmp_path, address, size=len(BODY), sha256=SUM) == BODY
    assert server.ranges() == [None, "bytes=500-"]
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


def _flipped(packed: bytes) -> bytes:
    return packed[:5000] + bytes([packed[5000] ^ 255]) + packed[5001:]


@pytest.mark.parametrize(
    "packed, size, says",
    [
        (gzip.compress(BODY)[:-20], None, "damaged or truncated"),
        (gzip.compress(BODY)[:-2], None, "damaged or truncated"),
        (_flipped(gzip.compress(BODY)), None, "damaged or truncated"),
        (b"no gzip", None, "damaged or truncated"),
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


# Sums, and finishing


@pytest.mark.parametrize("given", [True, False])
def test_another_sum_is_refused_and_the_next_call_begins_clean(
    tmp_path: Path, server: Server, given: bool
) -> None:
    if not given:
        (tmp_path / "x.sha256").write_text(f"{SUM}  x\n")
    wrong = BODY[::-1]
    server.files["/x"] = wrong
    with pytest.raises(InputError) as caught:
        fetch(tmp_path, server.at("x"), sha256=SUM if given else None)
    assert hashlib.sha256(wrong).hexdigest() in str(caught.value) and SUM in str(caught.value)
    assert ("remove x.sha256 first" in str(caught.value)) is not given
    assert not list(tmp_path.glob("*x")) and not list(tmp_path.glob(".*partial*"))
    server.files["/x"] = BODY
    assert fetch(tmp_path, server.at("x"), sha256=SUM if given else None) == BODY
    assert server.ranges() == [None, None]


def test_verify_finds_what_happened_to_a_file_later(tmp_path: Path, server: Server) -> None:
    remote = Remote("x", (server.at("x"),))
    with pytest.raises(InputError, match=r"there is no file .*/x; fetch it first"):
        download.verify(remote, tmp_path)
    fetch(tmp_path, server.at("x"))
    (tmp_path / "x").write_bytes(_flipped(BODY))
    with pytest.raises(InputError, match=f"instead of {SUM}; remove it, and x.sha256 if"):
        download.verify(remote, tmp_path)
    (tmp_path / "x.sha256").write_text("nonsense")
    with pytest.raises(InputError, match=r"x\.sha256 holds no SHA-256; remove it"):
        download.verify(remote, tmp_path)


def test_finish_runs_before_the_checks(tmp_path: Path, server: Server) -> None:
    def fix(path: Path) -> None:
        assert path.name == ".x.partial"
        with path.open("r+b") as file:
            file.write(b"head")

    expected = b"head" + TAKEN[4:]
    sha256 = hashlib.sha256(expected).hexdigest()
    about = {"cut": CUT, "size": len(expected), "sha256": sha256, "finish": fix}
    assert fetch(tmp_path, server.at("x"), **about) == expected


def test_what_finish_refuses_is_fetched_anew(tmp_path: Path, server: Server) -> None:
    def refuse(path: Path) -> None:
        raise InputError("no such header")

    with pytest.raises(InputError, match="no such header"):
        fetch(tmp_path, server.at("x"), finish=refuse)
    assert not list(tmp_path.glob(".*partial*")) and not (tmp_path / "x").exists()


def test_a_complete_partial_file_is_only_finished(tmp_path: Path, server: Server) -> None:
    def stop(path: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path, server.at("x"), finish=stop)
    assert fetch(tmp_path, server.at("x")) == BODY
    assert len(server.asked) == 1


# Disks


def test_what_cannot_fit_is_not_begun(tmp_path: Path, server: Server) -> None:
    petabyte = {"Content-Length": str(10**15)}
    server.always = Fault(headers=petabyte)
    for ask in (
        lambda: fetch(tmp_path / "new", server.at("x")),
        lambda: download.plan([Remote("x", (server.at("x"),))], tmp_path / "new"),
    ):
        with pytest.raises(
            InputError, match=r"needs 1,000,000,000,000,000 bytes more in .*, which has [\d,]+ free"
        ):
            ask()
    server.always, server.files["/x.gz"] = Fault(), gzip.compress(BODY)
    with pytest.raises(InputError, match="needs 1,000,000,200,0"):
        fetch(tmp_path, server.at("x.gz"), size=10**12)
    assert not (tmp_path / "x").exists()


def test_a_file_as_large_as_may_be_is_explained_and_gone_on_with(
    tmp_path: Path, server: Server
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, hard))
    try:
        with pytest.raises(InputError, match=r"110,000 bytes more than fit \(File too large; .*"):
            fetch(tmp_path, server.at("x"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert fetch(tmp_path, server.at("x")) == BODY
    assert server.ranges() == [None, "bytes=90000-"]


def _may_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return shutil.which("unshare") is not None and (
        subprocess.run(command, capture_output=True).returncode == 0
    )


def test_a_disk_that_fills_up_is_explained_and_gone_on_with(tmp_path: Path) -> None:
    if not _may_mount():
        pytest.skip("nobody but an administrator mounts a disk here")
    body = BODY * 10
    with servers.serving(x=body) as server:
        server.always = Fault(headers={"Transfer-Encoding": "chunked", "Content-Length": ""})
        command = ["unshare", "-rm", sys.executable, SCRIPT, server.at("x"), tmp_path, "1m"]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        *_, error, found = ran.stdout.splitlines()
        assert "needs more bytes than fit (No space left on device; 0 are free)" in error
        assert found == hashlib.sha256(body).hexdigest()
        assert 500_000 < int((server.ranges()[-1] or "")[6:-1]) < 2**20


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/x cannot be written \((Not a dir|File exists)"):
        download.fetch(Remote("x", (server.at("x"),)), tmp_path / "file", lambda *_: None)


# Processes


def test_killed_in_the_midst_it_asks_for_the_rest_alone(tmp_path: Path, server: Server) -> None:
    server.faults = [Fault(silent=120_000)]
    command = [sys.executable, SCRIPT, server.at("x"), tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) == 120_000:
                child.send_signal(signal.SIGKILL)
    have = (tmp_path / ".x.partial").stat().st_size
    assert 100_000 < have <= 120_000
    assert fetch(tmp_path, server.at("x")) == BODY
    assert server.ranges()[1:] == [f"bytes={have}-"]
    assert sum(server.asked[1].sent) == len(BODY) - have


def test_two_processes_download_once(tmp_path: Path, server: Server) -> None:
    server.always = Fault(trickle=0.005)
    command = [sys.executable, SCRIPT, server.at("x"), tmp_path]
    told: list[tuple[int, int | None]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        remote = Remote("x", (server.at("x"),))
        path = download.fetch(remote, tmp_path, lambda *what: told.append(what))
        assert path.read_bytes() == BODY
        assert child.stdout.read().splitlines()[-1] == SUM
    assert child.returncode == 0 and len(server.asked) == 1
    assert told and told == sorted(told)  # how far the other one is


def test_ctrl_c_leaves_what_came(tmp_path: Path, server: Server) -> None:
    server.faults = [Fault(trickle=0.001)]

    def interrupt(done: int, total: int | None) -> None:
        if done > 50_000:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        download.fetch(Remote("x", (server.at("x"),)), tmp_path, interrupt)
    assert fetch(tmp_path, server.at("x")) == BODY
    assert int((server.ranges()[1] or "")[6:-1]) > 50_000


# Proxies and certificates


def test_a_proxy_is_used_where_one_is_set(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with servers.proxying() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.address())
        monkeypatch.setenv("http_proxy", proxy.address())
        server.faults = [Fault(drop=1000)]
        assert fetch(tmp_path / "through", server.at("x")) == BODY
        assert proxy.seen == [server.at("x")] * 2
        assert server.ranges() == [None, "bytes=1000-"]
        proxy.refuses = True
        with pytest.raises(InputError, match="answers 403"):
            fetch(tmp_path / "refused", server.at("x"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert fetch(tmp_path / "past", server.at("x")) == BODY
        assert len(proxy.seen) == 3
    monkeypatch.delenv("NO_PROXY")
    with pytest.raises(InputError, match=r"cannot be reached .*place the file yourself as"):
        fetch(tmp_path / "gone", server.at("x"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", path, "-out", path.with_name("only.pem"), "-days", "2",
         "-subj", "/CN=here", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(path.read_text() + path.with_name("only.pem").read_text())
    return path


def test_https_goes_through_a_proxy_and_is_checked(
    tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with servers.serving_tls(certificate, x=BODY) as server, servers.proxying() as proxy:
        with pytest.raises(InputError, match=r"cannot be reached \(.*certificate"):
            fetch(tmp_path, server.at("x"))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        monkeypatch.setenv("HTTPS_PROXY", proxy.address())
        server.faults = [Fault(drop=1000)]
        assert fetch(tmp_path, server.at("x")) == BODY
        assert proxy.seen == [f"127.0.0.1:{server.server_port}"] * 2
        proxy.refuses = True
        with pytest.raises(InputError, match=r"cannot be reached \(.*403"):
            fetch(tmp_path / "refused", server.at("x"))


# FTP


@pytest.fixture
def ftp(tmp_path: Path) -> Iterator[servers.Ftp]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "x y").write_bytes(BODY)
    (folder / "x.gz").write_bytes(gzip.compress(BODY))
    with servers.serving_ftp(folder) as running:
        yield running


def rests(ftp: servers.Ftp) -> list[str]:
    return [line for line in ftp.commands if line.startswith(("REST", "RETR"))]


def test_ftp_goes_on_where_it_broke(tmp_path: Path, ftp: servers.Ftp) -> None:
    ftp.drops[:] = [1000, 0, 9000]
    assert fetch(tmp_path, ftp.at("x%20y"), size=len(BODY)) == BODY
    retr = "RETR /x y"
    assert rests(ftp) == [retr, "REST 1000", retr, "REST 1000", retr, "REST 10000", retr]


def test_ftp_gives_cuts_and_gz(tmp_path: Path, ftp: servers.Ftp) -> None:
    ftp.drops[:] = [500, 4000, 700]
    assert fetch(tmp_path / "cut", ftp.at("x%20y"), cut=CUT) == TAKEN
    assert plan(tmp_path, ftp.at("x%20y"), cut=CUT)[0].size == len(TAKEN)
    assert fetch(tmp_path / "gz", ftp.at("x.gz")) == BODY


def test_ftp_that_knows_little(tmp_path: Path, ftp: servers.Ftp) -> None:
    ftp.without.update({"SIZE", "MDTM"})
    ftp.drops[:] = [700]
    assert fetch(tmp_path / "some", ftp.at("x%20y")) == BODY
    assert rests(ftp)[1] == "REST 700"
    ftp.without.add("REST")
    ftp.drops[:] = [700]
    assert fetch(tmp_path / "none", ftp.at("x%20y")) == BODY
    with pytest.raises(InputError, match="does not send the length of the file, which ranges need"):
        fetch(tmp_path / "cut", ftp.at("x%20y"), cut=CUT)
    ftp.without.remove("SIZE")
    with pytest.raises(InputError, match="does not support ranges"):
        fetch(tmp_path / "cut", ftp.at("x%20y"), cut=CUT)


def test_ftp_that_has_no_such_file(tmp_path: Path, ftp: servers.Ftp, server: Server) -> None:
    nobody = f"ftp://127.0.0.1:{closed_port()}/x"
    with pytest.raises(InputError, match=r"cannot be reached .*; .* answers 550"):
        fetch(tmp_path, nobody, ftp.at("gone"))
    with pytest.raises(InputError, match="answers 530"):
        fetch(tmp_path, ftp.at("x").replace("//", "//me:wrong@"))
    assert fetch(tmp_path, ftp.at("gone"), server.at("x")) == BODY


def test_ftp_file_that_changed(tmp_path: Path, ftp: servers.Ftp) -> None:
    served = tmp_path / "served" / "x y"
    for body in (BODY[::-1], BODY[:500]):
        ftp.drops[:] = [1000] + [0] * transports.TRIES
        with pytest.raises(InputError, match="dropped the connection"):
            fetch(tmp_path, ftp.at("x%20y"))
        served.write_bytes(body)
        os.utime(served, (10**9, 10**9))
        assert fetch(tmp_path, ftp.at("x%20y")) == body
        (tmp_path / "x").unlink()
        (tmp_path / "x.sha256").unlink()
        served.write_bytes(BODY)


# Planning


def test_a_plan_says_what_is_missing(tmp_path: Path, server: Server, ftp: servers.Ftp) -> None:
    server.files["/y.gz"] = gzip.compress(BODY)
    (tmp_path / "there").write_bytes(b"1")
    remotes = {
        name: Remote(name, (server.at("gone"), address))
        for name, address in [("there", ""), ("x", server.at("x")), ("ftp", ftp.at("x%20y")),
                              ("y", server.at("y.gz"))]
    }  # fmt: skip
    remotes["cut"] = Remote("cut", (server.at("x"),), cut=CUT)
    (tmp_path / ".x.partial").write_bytes(BODY[:300])
    (tmp_path / ".x.partial.json").write_text(
        f'{{"address": "{server.at("x")}", "version": null, "total": 200000, "cut": null}}'
    )
    before = sorted(tmp_path.iterdir())
    assert download.plan(remotes.values(), tmp_path) == [
        Missing(remotes["x"], 199_700, server.at("x")),
        Missing(remotes["ftp"], 200_000, ftp.at("x%20y")),
        Missing(remotes["y"], len(server.files["/y.gz"]), server.at("y.gz")),
        Missing(remotes["cut"], len(TAKEN), server.at("x")),
    ]
    assert sorted(tmp_path.iterdir()) == before
    assert all(asked.method == "HEAD" or asked.range == "bytes=0-0" for asked in server.asked)


def test_a_plan_where_the_server_does_not_tell(tmp_path: Path, server: Server) -> None:
    known, unknown = Remote("a", (server.at("x"),), 200_000), Remote("b", (server.at("x"),))
    server.always = Fault(status=405)
    assert [each.size for each in download.plan([known, unknown], tmp_path)] == [200_000, None]
    server.always = Fault()
    with pytest.raises(InputError, match=r"a cannot be fetched: .* answers 404 .* as .*/a"):
        download.plan([Remote("a", (server.at("gone"),))], tmp_path)
    with pytest.raises(InputError, match=r"has 200000 bytes, not 7"):
        download.plan([Remote("a", (server.at("x"),), 7)], tmp_path)
