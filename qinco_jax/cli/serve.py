"""`qinco serve`: an index, searched over HTTP."""

import click

from qinco_jax import search
from qinco_jax.cli.models import reranking_dtype_option
from qinco_jax.errors import InputError
from qinco_jax.serve.batches import WAIT_MS
from qinco_jax.serve.requests import Limits


@click.command()
@click.argument("index")
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen at")
@click.option("--port", default=8000, show_default=True, help="0 takes a free one")
@click.option(
    "--mmap", is_flag=True, help="leave the lists in their file, read as they are searched"
)
@click.option(
    "--wait-ms", default=WAIT_MS, show_default=True, type=click.FloatRange(0),
    help="time that a request waits at most for others to be searched with",
)  # fmt: skip
@click.option(
    "--max-bytes", default=Limits.max_bytes, show_default=True, help="of a request's body"
)
@click.option("--max-rows", default=Limits.max_rows, show_default=True, help="vectors of a request")
@click.option("--max-k", default=Limits.max_k, show_default=True, help="neighbours of a vector")
@click.option("--max-queue", default=Limits.max_queue, show_default=True, help="vectors that wait")
@reranking_dtype_option
def serve(
    index: str, host: str, port: int, mmap: bool, wait_ms: float, compute_dtype: str | None,
    **limits: int,
) -> None:  # fmt: skip
    """Searches the index in the folder INDEX for whoever asks over HTTP.

    POST /search takes {"vectors": [[...]], "k": 10, "num_probes": ..., "num_reranked": ...,
    "filter": [ids]} and answers {"ids": ..., "distances": ...}; GET /health and GET /metrics
    (Prometheus) tell how it is. Ctrl-C or SIGTERM stops it after the requests in flight.
    """
    try:
        from qinco_jax.serve import server
        from qinco_jax.serve.app import application
    except ImportError as error:
        raise InputError(
            f"qinco serve needs {error.name}; pip install 'qinco_jax[serve]'"
        ) from error
    checked = Limits(**limits)
    with server.listen_at(host, port) as bound:
        loaded = search.load(index, mmap=mmap, compute_dtype=compute_dtype)
        app = application(loaded, checked, wait_ms=wait_ms)
        address = server.url(bound)
        if not server.is_loopback(bound):
            click.echo(
                f"warning: whoever reaches {address} can search the index, since nobody is asked "
                "for a password",
                err=True,
            )
        server.run(app, bound, lambda: click.echo(f"serving {index} at {address}"))
