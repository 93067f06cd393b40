"""`qinco serve`, where it cannot start."""

import socket
import sys

import pytest
from click.testing import CliRunner

import qinco_jax.serve
from qinco_jax.cli import main as cli


def test_serve_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*options: object) -> str:
        ran = CliRunner().invoke(cli.main, ["serve", "nowhere", *map(str, options)])
        assert ran.exit_code == 2
        return ran.output

    with socket.create_server(("127.0.0.1", 0)) as taken:
        text = refused("--port", taken.getsockname()[1])
    assert text.startswith("qinco: cannot listen at 127.0.0.1, port")
    assert "(Address already in use); choose another --host or --port" in text
    assert "nowhere is not an index" in refused("--port", 0)
    assert "nowhere is not an index in shards" in refused("--port", 0, "--ray")
    for option, wrong, words in (
        ("--wait-ms", "nan", "must be a finite number, got nan"),
        ("--shard-seconds", "inf", "must be a finite number, got inf"),
        ("--port", "70000", "must be 0 to 65,535, got 70000"),
        ("--max-k", "1.5", "must be an integer, got 1.5"),
    ):
        assert refused(option, wrong) == f"qinco: {option} {words}\n"
    assert "a queue of 5 vectors cannot take a request of 1024" in refused("--max-queue", 5)
    monkeypatch.delattr(qinco_jax.serve, "server")
    monkeypatch.delitem(sys.modules, "qinco_jax.serve.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert refused() == "qinco: qinco serve needs uvicorn; pip install 'qinco_jax[serve]'\n"
