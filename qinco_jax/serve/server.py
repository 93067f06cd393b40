"""The server's process: its address, how it starts, and how it stops after its last answer."""

import contextlib
import ipaddress
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from qinco_jax.errors import InputError

STOP_SECONDS = 30  # that requests in flight have, once the server is told to stop


def listen_at(host: str, port: int) -> socket.socket:
    """A socket at an address; of port 0, at a free one.

    Raises:
      InputError: the address is taken, or not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with contextlib.ExitStack() as failed:
            bound = failed.enter_context(socket.socket(family, kind, protocol))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            failed.pop_all()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot listen at {host}, port {port} ({reason}); choose another --host or --port"
        ) from error
    return bound


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine reaches a socket."""
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback


def url(bound: socket.socket) -> str:
    """A socket's address, as clients write it."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: Starlette, bound: socket.socket, started: Callable[[], None]) -> None:
    """Serves an application until SIGTERM or SIGINT; requests in flight are answered.

    Args:
      app: whose start ends before the first request is taken.
      bound: a socket of `listen_at`.
      started: called when requests are taken.
    """
    config = uvicorn.Config(
        app, lifespan="on", ws="none", log_level="warning", access_log=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )  # fmt: skip
    Server(config, started).run([bound])


class Server(uvicorn.Server):
    """Tells when it has started, and returns after a signal; Uvicorn's would raise it again."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self.announce = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to take requests."""
        await super().startup(sockets)
        self.announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stops after the last answer, or at the second signal at once."""
        self.force_exit = self.should_exit
        self.should_exit = True
