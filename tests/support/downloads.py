"""A file to download, and downloads of it."""

import hashlib
import random
import socket
from pathlib import Path

import pytest
from hypothesis import strategies as st
from servers import Fault, Server

from qinco_jax import InputError
from qinco_jax.datasets import download
from qinco_jax.datasets.download import Missing, Remote
from qinco_jax.datasets.transfers import Cut

PART = 10_000  # bytes that are asked for at once
BODY = random.Random(0).randbytes(200_000)
SUM = hashlib.sha256(BODY).hexdigest()
CUT = Cut(first=30, last=20, row=1100)  # of 181 rows of BODY, behind 900 bytes
TAKEN = BODY[: 900 + 33_000] + BODY[-22_000:]
DROPS = st.tuples(st.integers(0, 300), st.booleans(), st.booleans())
FAULTS = st.one_of(
    DROPS.map(lambda drawn: Fault(drop=drawn[0], reset=drawn[1], ranges=drawn[2])),
    st.sampled_from([429, 500, 503]).map(lambda status: Fault(status=status)),
    st.just(Fault(hangs_up=True)),
)


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


def flipped(data: bytes) -> bytes:
    return data[:5000] + bytes([data[5000] ^ 255]) + data[5001:]
