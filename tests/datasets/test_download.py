"""Downloads from servers that fail in every way: the bytes are right, or refused."""

import gzip
import hashlib
import resource
import signal
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import pytest
import servers
from downloads import (
    BODY,
    CUT,
    FAULTS,
    PART,
    SUM,
    TAKEN,
    begun,
    closed_port,
    fetch,
    flipped,
    plan,
    sent,
)
from hypothesis import given
from hypothesis import strategies as st
from servers import Fault, Server

from qinco_jax import InputError
from qinco_jax.datasets import download
from qinco_jax.datasets.download import Remote
from qinco_jax.remote import failures
from qinco_jax.remote import servers as file_systems

pytestmark = pytest.mark.usefixtures("quick")

SCRIPT = Path(servers.__file__).with_name("fetching.py")


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
    (tmp_path / "x").write_bytes(flipped(BODY))
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
