"""Downloads through proxies, by HTTPS and by FTP, and what is left to download."""

import gzip
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from downloads import BODY, CUT, TAKEN, closed_port, fetch, plan
from servers import Fault, Server

from qinco_jax import InputError
from qinco_jax.datasets import download, transfers
from qinco_jax.datasets.download import Missing, Remote

pytestmark = pytest.mark.usefixtures("quick")

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
