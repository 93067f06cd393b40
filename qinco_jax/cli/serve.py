"""`qinco serve`: an index, searched over HTTP."""

import contextlib
import os
import signal
import threading
from typing import Any

import click

from qinco_jax.cli.models import reranking_dtype_option
from qinco_jax.cli.numbers import Integer, Number
from qinco_jax.cluster import connect
from qinco_jax.errors import InputError
from qinco_jax.quantizers.chunks import num_cores
from qinco_jax.search import manifest
from qinco_jax.search.searcher import Searcher
from qinco_jax.search.sharded import opened
from qinco_jax.serve.batches import WAIT_MS
from qinco_jax.serve.requests import Limits


@click.command()
@click.argument("index")
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen at")
@click.option(
    "--port", default=8000, show_default=True, type=Integer(0, 65_535), help="0 takes a free one"
)
@click.option(
    "--mmap", is_flag=True, help="leave the lists in their file, read as they are searched"
)
@click.option(
    "--wait-ms", default=WAIT_MS, show_default=True, type=Number(0, 60_000),
    help="time that a request waits at most for others to be searched with",
)  # fmt: skip
@click.option(
    "--max-bytes",
    default=Limits.max_bytes,
    show_default=True,
    type=Integer(1),
    help="of a request's body",
)
@click.option(
    "--max-rows",
    default=Limits.max_rows,
    show_default=True,
    type=Integer(1),
    help="vectors of a request",
)
@click.option(
    "--max-k",
    default=Limits.max_k,
    show_default=True,
    type=Integer(1),
    help="neighbours of a vector",
)
@click.option(
    "--max-queue",
    default=Limits.max_queue,
    show_default=True,
    type=Integer(1),
    help="vectors that wait",
)
@click.option(
    "--ray", is_flag=True,
    help="have the shards of INDEX run by Ray Serve, on the cluster that RAY_ADDRESS names or, "
    "without one, on this machine",
)  # fmt: skip
@click.option(
    "--replicas", default=1, show_default=True, type=Integer(1),
    help="with --ray: processes of each shard, which take each other's place",
)  # fmt: skip
@click.option(
    "--shard-seconds", default=10.0, show_default=True, type=Number(0.1, 86_400),
    help="with --ray: time that a shard has for an answer",
)  # fmt: skip
@reranking_dtype_option
def serve(
    index: str, host: str, port: int, mmap: bool, wait_ms: float, ray: bool, replicas: int,
    shard_seconds: float, compute_dtype: str | None, **limits: int,
) -> None:  # fmt: skip
    """Searches the index in the folder INDEX for whoever asks over HTTP.

    POST /search takes {"vectors": [[...]], "k": 10, "num_probes": ..., "num_reranked": ...,
    "filter": [ids]} and answers {"ids": ..., "distances": ...}; GET /health and GET /metrics
    (Prometheus) tell how it is. Ctrl-C or SIGTERM stops it after the requests in flight.

    With --ray, SIGHUP replaces the processes of the shards one after the other. A shard that no
    process answers for makes requests fail with status 503, but for those with "partial": true,
    whose answers say what is "missing".

    For example:

        qinco serve my-index --port 8000
    """
    try:
        from qinco_jax.serve import server, shards
        from qinco_jax.serve.app import application
    except ImportError as error:
        raise InputError(
            f"qinco serve needs {error.name}; pip install 'qinco_jax[serve]'"
        ) from error
    checked = Limits(**limits)
    with contextlib.ExitStack() as stack:
        bound = stack.enter_context(server.listen_at(host, port))
        opening: dict[str, Any] = {"mmap": mmap, "compute_dtype": compute_dtype}
        loaded: Searcher
        if ray:
            known = manifest.read(index)
            cluster = os.environ.get("RAY_ADDRESS", num_cores())  # or one of this machine's own
            engine = stack.enter_context(connect.connected(cluster))
            loaded = shards.Deployed(engine, known, replicas, seconds=shard_seconds, **opening)
            stack.callback(loaded.stop)
            _restart_at_hangup(loaded)
        else:
            loaded = opened(index, **opening)
        app = application(loaded, checked, wait_ms=wait_ms)
        address = server.url(bound)
        if not server.is_loopback(bound):
            click.echo(
                f"warning: whoever reaches {address} can search the index, since nobody is asked "
                "for a password",
                err=True,
            )
        server.run(app, bound, lambda: click.echo(f"serving {index} at {address}"))


def _restart_at_hangup(deployed: Any) -> None:
    """SIGHUP replaces the processes of the shards, while they serve."""

    def restart() -> None:
        try:
            deployed.restart()
            click.echo("all shards run anew", err=True)
        except InputError as error:
            click.echo(f"warning: {error}", err=True)

    if hasattr(signal, "SIGHUP"):  # not on Windows
        signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=restart).start())
