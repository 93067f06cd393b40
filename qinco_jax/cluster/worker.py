"""A worker of a large encoding: an actor of Ray that holds the model and its compiled programs."""

import contextlib
import os
import platform
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qinco_jax.cluster.encoder import Encoder, Task
from qinco_jax.errors import InputError
from qinco_jax.quantizers import precision
from qinco_jax.quantizers.coding import Model
from qinco_jax.version import __version__

TURN_SECONDS = 2.0  # after which a worker says how far it is


def versions() -> dict[str, str]:
    """What must be the same in all processes for codes to be the same."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"qinco_jax": __version__, "jax": jax.__version__, "Python": python}


class Failed(Exception):
    """What went wrong in a worker, as any process can read it; `errno` as of `OSError`."""

    errno: int | None = None


class Start(NamedTuple):
    """What a worker begins with.

    Attributes:
      versions: of the driver.
      num_cores: that it keeps to; `None` where it works on an accelerator.
      compiled: where JAX keeps compiled programs, if anywhere.
    """

    versions: dict[str, str]
    num_cores: int | None
    compiled: str | None


class Worker:
    """Encodes shards in turns of some seconds, so that one call after another shows progress."""

    def __init__(self, start: Start) -> None:
        """Takes cores of its own before JAX starts as many threads as there are cores."""
        self._cores = [] if start.num_cores is None else own_cores(start.num_cores)
        if start.compiled is not None:
            jax.config.update("jax_compilation_cache_dir", start.compiled)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        self._start = start
        self._encoder: tuple[Task, Encoder] | None = None
        self._shard: tuple[int, Iterator[int]] | None = None

    def compute_dtype(self, asked: str | None) -> str:
        """What `precision.resolve` gives on this worker.

        Raises:
          InputError: it has other versions than the driver.
        """
        self._check_versions()
        return precision.resolve(asked)

    def open(self, task: Task, held: tuple[Any]) -> None:
        """Opens the vectors of a task, unless they are open.

        Args:
          task: the same in all calls.
          held: a reference of Ray to the model, with arrays of NumPy; JAX's would start its
            threads.

        Raises:
          Failed: they are not there, or others, or this worker has other versions.
        """
        with _readable():
            self._open(task, held)

    def _open(self, task: Task, held: tuple[Any]) -> None:
        if self._encoder is None or self._encoder[0] != task:
            self._check_versions()
            import ray

            model: Model = jax.tree.map(jnp.asarray, ray.get(held[0]))
            self._encoder = task, Encoder(task, model)

    def work(self, task: Task, held: tuple[Any], shard: int, following: int | None) -> int | None:
        """Works on a shard for a turn; one that another call left is begun anew.

        Args:
          task: as of `open`.
          held: as of `open`.
          shard: its number.
          following: the shard that is likely to be next.

        Returns:
          The rows done, or `None` when the shard is stored.

        Raises:
          Failed: a row is invalid, or the shard cannot be written.
        """
        begun = time.monotonic()
        with _readable():
            self._open(task, held)
            assert self._encoder is not None
            at, self._shard = self._shard, None
            if at is None or at[0] != shard:
                at = shard, self._encoder[1].encode(shard, following)
            for done in at[1]:
                if time.monotonic() - begun > TURN_SECONDS:
                    self._shard = at
                    return done
        return None

    def _check_versions(self) -> None:
        here, there = versions(), self._start.versions
        other = [name for name in here if here[name] != there[name]]
        if other:
            differences = ", ".join(f"{name} {here[name]}, not {there[name]}" for name in other)
            raise InputError(
                f"the worker on {socket.gethostname()} has {differences} as the command has; "
                "install the same versions on all machines"
            )


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Raises exceptions, some of which cannot be sent, as `Failed`."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        failed = Failed(kind + str(error))
        failed.errno = getattr(error, "errno", None)
        raise failed from error


def own_cores(count: int) -> list[Any]:
    """Keeps this process to cores that no other worker of this machine has, if there are enough.

    Returns:
      Locks that say whose the cores are; they end with this process, or when they are dropped.
    """
    from filelock import FileLock, Timeout  # not at the top: slow to import

    if not hasattr(os, "sched_setaffinity"):  # on macOS
        return []
    folder = Path(tempfile.gettempdir()) / f"qinco_jax-cores-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    locks: dict[int, Any] = {}
    for core in sorted(os.sched_getaffinity(0)):
        if len(locks) < count:
            with contextlib.suppress(Timeout):
                lock = FileLock(folder / str(core))
                lock.acquire(timeout=0)
                locks[core] = lock
    if len(locks) < count:
        return []
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has ended
            os.sched_setaffinity(int(thread), locks)
    return list(locks.values())
