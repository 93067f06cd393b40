"""Downloads from servers that fail in every way: the bytes are right, or refused."""

import gzip
import hashlib
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
from qinco_jax.datasets import download, transfers
from qinco_jax.datasets.download import Missing, Remote
from qinco_jax.datasets.transfers import Cut
from qinco_jax.remote import failures, ranges
from qinco_jax.remote import servers as file_systems

PART = 10_000
BODY = random.Random(0).randbytes(200_000)
SUM = hashlib.sha256(BODY).hexdigest()
SCRIPT = Path(servers.__file__).with_name("fetching.py")


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Small parts, no pauses to speak of, and no proxy of this machine's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failures, "PAUSE_SECONDS", 0.001)
        patch.setattr(ranges, "PART_BYTES", PART)
        patch.setattr(ranges, "AHEAD_BYTES", PART)
        patch.setattr(download, "WAIT_SECONDS", 0.01)
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        yield


@pytest.fixture
def server() -> Iterator[Server]:
    with servers.serving(x=BODY) as running:
        yield running


def fetch(folder: Path, *addresses: str, **about: object) -> bytes:
    remote = Remote("x", addresses, **about)  # type: ignore[arg-type]
    path = download.fetch(remote, folder, lambda done, total: None)
    assert path == folder / "x"
    assert not list(folder.glob(".*partial*"))
    return path.read_bytes()


def plan(folder: Path, *addresses: str, **about: object) -> list[Missing]:
    return download.plan([Remote("x", addresses, **about)], folder)  # type: ignore[arg-type]


def begun(folder: Path, server: Server, **about: object) -> None:
    """Leaves the partial file of a download from a server that broke down after 50,000 bytes."""
    server.faults, server.always = [Fault()] * 6, Fault(status=500)
    with pytest.raises(InputError):
        fetch(folder, server.at("x"), **about)
    assert (folder / ".x.partial").stat().st_size > 0
    server.always = Fault()
    server.asked.clear()


def sent(server: Server) -> int:
    """The bytes of the file that were sent, without those that tell its size."""
    return sum(sum(asked.sent) for asked in server.asked if asked.range != "bytes=0-0")


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
    asked = len(server.asked)
    assert download.fetch(remote, tmp_path / "new", lambda *_: None) == path
    assert len(server.asked) == asked and sent(server) == len(BODY)
    assert {each.headers["Accept-Encoding"] for each in server.asked} == {"identity"}
    server.files["/empty"] = b""
    assert fetch(tmp_path, server.at("empty")) == b""


def test_a_file_placed_by_hand_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(BODY)
    assert fetch(tmp_path, "http://127.0.0.1:1/x", size=len(BODY), sha256=SUM) == BODY
    assert download.plan([Remote("x", ())], tmp_path) == []
    with pytest.raises(InputError, match=r"/x has 200000 bytes instead of 7; remove it and"):
        fetch(tmp_path, size=7)
    (tmp_path / "y").mkdir()
    with pytest.raises(InputError, match=r"/y is a directory"):
        download.plan([Remote("y", ())], tmp_path)


# Connections that break


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


def test_what_came_is_not_asked_for_again(tmp_path: Path, server: Server) -> None:
    server.faults = [
        Fault(), Fault(drop=1000), Fault(drop=9000, reset=True), Fault(hangs_up=True),
        Fault(status=503), Fault(drop=0),
    ]  # fmt: skip
    assert fetch(tmp_path, server.at("x")) == BODY
    assert sent(server) == len(BODY) + 10_000
    begun(tmp_path / "later", server)
    have = (tmp_path / "later" / ".x.partial").stat().st_size
    assert fetch(tmp_path / "later", server.at("x")) == BODY
    assert sent(server) <= len(BODY) - have + PART  # one may have been under way


def test_slow_bytes_are_waited_for_and_silence_is_not(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_systems, "SILENT_SECONDS", 0.4)
    file_systems._options.cache_clear()
    server.faults = [Fault(), Fault(trickle=0.06), Fault(silent=5000)]
    assert fetch(tmp_path, server.at("x")) == BODY
    assert sent(server) == len(BODY) + 5000
    file_systems._options.cache_clear()


def test_without_progress_it_gives_up(tmp_path: Path, server: Server) -> None:
    server.faults, server.always = [Fault()] * 4, Fault(drop=0)
    with pytest.raises(InputError) as caught:
        fetch(tmp_path, server.at("x"), f"http://127.0.0.1:{closed_port()}/other")
    assert f"x cannot be fetched: {server.at('x')} dropped the connection (" in str(caught.value)
    assert f"to start over from another address, remove {tmp_path / '.x.partial'}" in str(
        caught.value
    )
    assert "/other" not in str(caught.value)


def test_a_busy_server_says_how_long_to_wait(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    clock = types.SimpleNamespace(sleep=asked.append, time=time.time)
    monkeypatch.setattr(failures, "PAUSE_SECONDS", 1.0)
    monkeypatch.setattr(failures, "time", clock)
    server.faults = [
        Fault(status=429, headers={"Retry-After": wait}) for wait in ("7", "86400", "soon")
    ]
    assert fetch(tmp_path, server.at("x")) == BODY
    assert asked == [7, failures.LONGEST_PAUSE_SECONDS, 4]


# Other addresses


def test_what_is_not_there_is_taken_from_elsewhere(tmp_path: Path, server: Server) -> None:
    server.faults = [
        Fault(status=401), Fault(status=410),
        Fault(headers={"Content-Type": "text/html; charset=utf-8"}),  # "please log in"
        Fault(headers={"Content-Encoding": "gzip"}),
        Fault(status=302, headers={"Location": "gopher://127.0.0.1"}),
    ]  # fmt: skip
    server.files |= dict.fromkeys(map("/{}".format, "abcde"), b"not this")
    closed = f"http://127.0.0.1:{closed_port()}/x"
    addresses = [closed, "nothing://x", *map(server.at, "abcde"), server.at("none")]
    faults = list(server.faults)
    with pytest.raises(InputError) as caught:
        fetch(tmp_path, *addresses)
    says = str(caught.value)
    assert all(address in says for address in addresses)
    assert "cannot be reached (Connect" in says and "unknown scheme" in says
    assert "answers 401" in says and "answers 410" in says and "none does not exist" in says
    assert "answers with a web page" in says and "(gzip) though asked not to" in says
    assert says.endswith(f"or place the file yourself as {tmp_path / 'x'}")
    server.faults = faults
    assert fetch(tmp_path, *addresses, server.at("x")) == BODY


def test_another_size_than_the_files_is_not_downloaded(tmp_path: Path, server: Server) -> None:
    with pytest.raises(InputError, match=r"/x has 200000 bytes, not 10;"):
        fetch(tmp_path, server.at("x"), size=10)
    assert len(server.asked) == 1


def test_redirects_keep_the_range(tmp_path: Path, server: Server) -> None:
    with servers.serving() as first:
        there = server.at("x").replace("127.0.0.1", "localhost")
        first.always = Fault(status=302, headers={"Location": there})
        assert fetch(tmp_path, first.at("x")) == BODY
    assert sent(server) == len(BODY)


@pytest.mark.parametrize("known", [True, False])
def test_a_later_call_joins_nothing_but_the_same_file(
    tmp_path: Path, server: Server, known: bool
) -> None:
    begun(tmp_path, server, sha256=SUM if known else None)
    with servers.serving(x=BODY if known else BODY[::-1]) as second:
        second.etag, server.always = '"other"', Fault(status=404)
        found = fetch(
            tmp_path, server.at("x"), second.at("x"), sha256=SUM.upper() if known else None
        )
        assert found == second.files["/x"]
        assert (sent(second) < len(BODY)) is known


def test_a_later_call_goes_on_at_the_address_it_began_at(tmp_path: Path, server: Server) -> None:
    begun(tmp_path, server)
    with servers.serving(x=BODY) as first:
        assert fetch(tmp_path, first.at("x"), server.at("x")) == BODY
        assert not first.asked and sent(server) < len(BODY)


# Files that change, servers that cannot go on


@pytest.mark.parametrize("mark", ["etag", "modified"])
def test_a_file_that_changed_is_begun_anew(tmp_path: Path, server: Server, mark: str) -> None:
    server.etag = None
    setattr(server, mark, '"Mon"')
    begun(tmp_path, server)
    setattr(server, mark, '"Tue"')
    server.files["/x"] = BODY[::-1]
    assert fetch(tmp_path, server.at("x")) == BODY[::-1]


def test_a_server_without_ranges_begins_anew_a_few_times(tmp_path: Path, server: Server) -> None:
    server.faults = [Fault(drop=5000, ranges=False)] * 4 + [Fault(ranges=False)] * 2
    assert fetch(tmp_path / "some", server.at("x")) == BODY
    server.always = Fault(drop=5000, ranges=False)
    with pytest.raises(InputError, match="dropped the connection"):
        fetch(tmp_path / "many", server.at("x"))
    server.always = Fault(ranges=False, headers={"Content-Length": ""})
    with pytest.raises(InputError, match="does not send the length of the file, so it may be"):
        fetch(tmp_path / "many", server.at("x"))


def test_a_part_of_another_place_is_refused(tmp_path: Path, server: Server) -> None:
    server.always = Fault(headers={"Content-Range": "bytes 1-10000/200000"})
    with pytest.raises(InputError, match="sends 0 bytes for bytes 0 to 10000"):
        fetch(tmp_path, server.at("x"))


@pytest.mark.parametrize("note", [None, "", '{"address": 1}', "[]"])
def test_a_partial_file_of_unknown_origin_is_not_used(
    tmp_path: Path, server: Server, note: str | None
) -> None:
    (tmp_path / ".x.partial").write_bytes(b"something")
    if note is not None:
        (tmp_path / ".x.partial.json").write_text(note)
    assert fetch(tmp_path, server.at("x")) == BODY


# Rows of a file


CUT = Cut(first=30, last=20, row=1100)  # of 181 rows of BODY, behind 900 bytes
TAKEN = BODY[: 900 + 33_000] + BODY[-22_000:]


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


def _flipped(packed: bytes) -> bytes:
    return packed[:5000] + bytes([packed[5000] ^ 255]) + packed[5001:]


@pytest.mark.parametrize(
    "packed, size, says",
    [
        (gzip.compress(BODY)[:-2], None, "damaged or truncated"),
        (_flipped(gzip.compress(BODY)), None, "damaged or truncated"),
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


def test_a_file_is_finished_before_the_checks(tmp_path: Path, server: Server) -> None:
    def stop(path: Path) -> None:
        raise KeyboardInterrupt

    def refuse(path: Path) -> None:
        raise InputError("no such header")

    def fix(path: Path) -> None:
        with path.open("r+b") as file:
            file.write(b"head")

    expected = b"head" + TAKEN[4:]
    about = {"cut": CUT, "size": len(expected), "sha256": hashlib.sha256(expected).hexdigest()}
    with pytest.raises(InputError, match="no such header"):
        fetch(tmp_path, server.at("x"), finish=refuse, **about)
    assert not list(tmp_path.glob(".*partial*")) and not (tmp_path / "x").exists()
    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path, server.at("x"), finish=stop, **about)
    server.asked.clear()
    assert fetch(tmp_path, server.at("x"), finish=fix, **about) == expected
    assert not server.asked


# Disks


def test_what_cannot_fit_is_not_begun(tmp_path: Path, server: Server) -> None:
    server.always = Fault(headers={"Content-Range": f"bytes 0-0/{10**15}"})
    for attempt in (fetch, plan):
        with pytest.raises(
            InputError, match=r"needs 1,000,000,000,000,000 bytes more in .*, which has [\d,]+ free"
        ):
            attempt(tmp_path / "new", server.at("x"))
    server.always, server.files["/x.gz"] = Fault(), gzip.compress(BODY)
    with pytest.raises(InputError, match="needs 1,000,000,200,0"):
        fetch(tmp_path, server.at("x.gz"), size=10**12)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/x cannot be written \((Not a dir|File exists)"):
        fetch(tmp_path / "file", server.at("x"))


def test_a_full_disk_is_explained_and_gone_on_with(tmp_path: Path, server: Server) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, hard))
    try:
        with pytest.raises(InputError, match=r"110,000 bytes more than fit \(File too large; .*"):
            fetch(tmp_path, server.at("x"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert fetch(tmp_path, server.at("x")) == BODY
    assert sent(server) < 2 * len(BODY) - 50_000


# Processes


def test_killed_in_the_midst_it_asks_for_the_rest_alone(tmp_path: Path, server: Server) -> None:
    server.always = Fault(trickle=0.01)
    command = [sys.executable, SCRIPT, server.at("x"), tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= 50_000:
                child.send_signal(signal.SIGKILL)
                break
    have = (tmp_path / ".x.partial").stat().st_size
    assert have >= 50_000
    server.asked.clear()
    server.always = Fault()
    assert fetch(tmp_path, server.at("x")) == BODY
    assert sent(server) <= len(BODY) - have + PART  # one may have been under way


def test_two_processes_download_once(tmp_path: Path, server: Server) -> None:
    server.always = Fault(trickle=0.01)
    command = [sys.executable, SCRIPT, server.at("x"), tmp_path]
    told: list[tuple[int, int | None]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        remote = Remote("x", (server.at("x"),))
        path = download.fetch(remote, tmp_path, lambda *what: told.append(what))
        assert path.read_bytes() == BODY
        assert child.stdout.read().splitlines()[-1] == SUM
    assert child.returncode == 0 and sent(server) == len(BODY)
    assert told and told == sorted(told)  # how far the other one is


# Proxies and certificates


def test_a_proxy_is_used_where_one_is_set(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with servers.proxying() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.address())
        monkeypatch.setenv("http_proxy", proxy.address())
        assert fetch(tmp_path / "through", server.at("x")) == BODY
        assert set(proxy.seen) == {server.at("x")}
        proxy.refuses = True
        with pytest.raises(InputError, match="answers 403"):
            fetch(tmp_path / "refused", server.at("x"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert fetch(tmp_path / "past", server.at("x")) == BODY


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
        assert fetch(tmp_path, server.at("x")) == BODY
        assert set(proxy.seen) == {f"127.0.0.1:{server.server_port}"}


# FTP


@pytest.fixture
def ftp(tmp_path: Path) -> Iterator[servers.Ftp]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "x y").write_bytes(BODY)
    (folder / "x.gz").write_bytes(gzip.compress(BODY))
    with servers.serving_ftp(folder) as running:
        yield running


def test_ftp_goes_on_where_it_broke(tmp_path: Path, ftp: servers.Ftp) -> None:
    ftp.drops[:] = [1000, 0, 9000]
    assert fetch(tmp_path, ftp.at("x%20y"), size=len(BODY)) == BODY
    rests = [line for line in ftp.commands if line.startswith("REST") and line != "REST 1"]
    assert rests == ["REST 1000", "REST 1000", "REST 10000"]
    ftp.drops[:] = [500, 4000, 700]
    assert fetch(tmp_path / "cut", ftp.at("x%20y"), cut=CUT) == TAKEN
    assert plan(tmp_path / "new", ftp.at("x%20y"), cut=CUT)[0].size == len(TAKEN)
    assert fetch(tmp_path / "gz", ftp.at("x.gz")) == BODY


def test_ftp_that_knows_little(tmp_path: Path, ftp: servers.Ftp) -> None:
    ftp.without.update({"SIZE", "MDTM"})
    ftp.drops[:] = [700]
    assert fetch(tmp_path / "some", ftp.at("x%20y")) == BODY
    assert "REST 700" in ftp.commands
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
    with pytest.raises(InputError, match=r"cannot be reached .*; .*gone does not exist"):
        fetch(tmp_path, nobody, ftp.at("gone"))
    with pytest.raises(InputError, match="530"):
        fetch(tmp_path, ftp.at("x").replace("//", "//me:wrong@"))
    assert fetch(tmp_path, ftp.at("gone"), server.at("x")) == BODY


def test_ftp_file_that_changed(tmp_path: Path, ftp: servers.Ftp) -> None:
    ftp.drops[:] = [1000] + [0] * transfers.TRIES
    with pytest.raises(InputError, match="dropped the connection"):
        fetch(tmp_path, ftp.at("x%20y"))
    (tmp_path / "served" / "x y").write_bytes(BODY[:500])
    assert fetch(tmp_path, ftp.at("x%20y")) == BODY[:500]


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
    assert all(asked.range == "bytes=0-0" for asked in server.asked)
    server.always = Fault(ranges=False, headers={"Content-Length": ""})
    known, unknown = Remote("a", (server.at("x"),), 200_000), Remote("b", (server.at("x"),))
    assert [each.size for each in download.plan([known, unknown], tmp_path)] == [200_000, None]
