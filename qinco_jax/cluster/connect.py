"""Ray: the cluster that runs, or one of this machine for as long as the work lasts."""

import contextlib
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from qinco_jax import optional
from qinco_jax.errors import InputError
from qinco_jax.quantizers.chunks import num_cores

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
STORE_BYTES = 2**28  # of a local Ray's shared memory, where the model is
ANSWER_SECONDS = 5.0


def parsed(workers: int | str) -> int | str:
    """How many workers on this machine, or the address of a cluster, or "auto".

    Raises:
      InputError: it is none of these.
    """
    text = str(workers)
    if text.isdecimal() and int(text) > 0:
        return int(text)
    if text == "auto" or (_host(text)[0] and _host(text)[1]):
        return text
    raise InputError(
        f"workers must be auto, a number from 1 on, or the address of a Ray cluster such as "
        f"ray://HOST:10001, got {text!r}"
    )


@contextlib.contextmanager
def connected(workers: int | str) -> Iterator[Any]:
    """The module `ray`, connected to a cluster; what is started here ends with the block.

    A program that is connected already stays so.

    Args:
      workers: a number starts Ray on this machine; "auto" is the cluster that RAY_ADDRESS names or
        `ray start` began here, or else this machine; or an address.

    Raises:
      InputError: Ray is not installed, or there is no cluster at the address.
    """
    ray = optional.ray("workers")
    if ray.is_initialized():
        yield ray
        return
    place = "/tmp" if os.name == "posix" else None  # Ray's sockets take no long path
    folder = tempfile.mkdtemp(prefix="qinco-ray-", dir=place)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called")  # another program follows
            _connect(ray, workers, folder)
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def raylet_of(ray: Any) -> tuple[str, int] | None:
    """Where the process of Ray listens that this one needs; `None` for a client of a cluster."""
    if ray.util.client.ray.is_connected():
        return None
    own = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == own)
    return node["NodeManagerAddress"], node["NodeManagerPort"]


def answers(place: tuple[str, int] | None) -> bool:
    """Whether a process still listens; Ray itself notices after ten seconds, and ends this one."""
    try:
        if place is not None:
            socket.create_connection(place, ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def _connect(ray: Any, workers: int | str, folder: str) -> None:
    address = os.environ.get("RAY_ADDRESS", workers) if workers == "auto" else workers
    if isinstance(address, int) or not _join(ray, address):
        ray.init(
            address="local", num_cpus=num_cores(), include_dashboard=False, _temp_dir=folder,
            object_store_memory=STORE_BYTES, **QUIET,
        )  # fmt: skip


def _join(ray: Any, address: str) -> bool:
    """Connects to a cluster; False if "auto" finds none."""
    try:
        if address != "auto":
            socket.create_connection(_host(address), ANSWER_SECONDS).close()
        ray.init(address=address, **QUIET)
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        if address == "auto":
            return False
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise InputError(
            f"there is no Ray cluster at {address} ({reason}); check the address, that the cluster "
            "runs, and that it has the same versions of Ray and Python"
        ) from error
    return True


def _host(address: str) -> tuple[str, int]:
    """Host and port of an address, "" and 0 if it has none."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        return parts.hostname or "", parts.port or 0
    except ValueError:
        return "", 0
