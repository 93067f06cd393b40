"""Workers on Ray: each encodes shard after shard, and another repeats what a lost one began."""

import contextlib
import errno
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qinco_jax.cluster import connect
from qinco_jax.cluster.encoder import Task
from qinco_jax.cluster.worker import Start, Worker, versions
from qinco_jax.errors import InputError
from qinco_jax.interrupts import Interrupted
from qinco_jax.quantizers.coding import Model
from qinco_jax.vectors.folders import listed

WORKER_CORES = 8  # at most, unless a number of workers is given
START_SECONDS = 300.0  # in which a cluster should start a worker
TRIES = 3  # of a shard
WAIT_SECONDS = 0.5  # after which Ctrl-C is noticed
ASK_SECONDS = 1.0  # between questions whether Ray is there
PERMANENT = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
AGAIN = "what is finished is kept, and the same command again goes on"


class Unfinished(Exception):
    """Some shards could not be encoded, or the cluster was lost; the message says what to do."""


class Team:
    """Workers that hold a model, one for each accelerator of a cluster or for some of its cores."""

    def __init__(
        self,
        ray: Any,
        model: Model,
        asked: int | None,
        num_shards: int,
        interrupted: threading.Event,
    ) -> None:
        """Starts workers, no more than there are shards.

        Args:
          ray: the module, connected.
          model: that they encode with.
          asked: how many are wanted, `None` for as many as the cluster has room for.
          num_shards: to be encoded.
          interrupted: ends the work when it is set.

        Raises:
          InputError: the cluster has no room for so many.
        """
        self._ray, self._raylet = ray, connect.raylet_of(ray)
        self._interrupted, self._asked = interrupted, time.monotonic()
        count, num_cores, options = _room(ray, asked)
        host = jax.tree.map(np.asarray, model)
        self._held = (ray.put(host),)  # Ray keeps it for workers that are restarted
        actor = ray.remote(Worker).options(max_restarts=-1, **options)
        start = Start(versions(), num_cores, _compiled())
        self._workers = [actor.remote(start) for _ in range(min(count, num_shards))]

    def compute_dtype(self, asked: str | None) -> str:
        """The dtype that the first worker to be ready computes in.

        Raises:
          InputError: it has other versions, or none starts.
          Unfinished: the cluster is lost.
          Interrupted: `interrupted` was set.
        """
        calls = [_surely(worker.compute_dtype).remote(asked) for worker in self._workers]
        found: list[Any] = []
        end = time.monotonic() + START_SECONDS
        while not found:
            self._check()
            found, _ = self._ray.wait(calls, timeout=WAIT_SECONDS)
            if not found and time.monotonic() > end:
                raise InputError(
                    f"no worker started in {START_SECONDS:g} seconds; see by `ray status` whether "
                    "the cluster has free cores or accelerators"
                )
        try:
            return str(self._ray.get(found[0]))
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayError as error:
            raise InputError(
                f"no worker can start ({_described(error)}); install qinco_jax "
                f"{versions()['qinco_jax']} on all machines of the cluster"
            ) from error

    def stop(self) -> None:
        """Ends the workers; what they have begun is lost."""
        for worker in self._workers:
            with contextlib.suppress(ConnectionError, self._ray.exceptions.RayError):
                self._ray.kill(worker)

    def encode(self, task: Task, numbers: Sequence[int], advance: Callable[[int], Any]) -> None:
        """Encodes shards.

        Args:
          task: what they are of.
          numbers: of the shards.
          advance: called with the rows done of these shards.

        Raises:
          Unfinished: some shards failed three times, no worker is left, or the folder is full.
          Interrupted: `interrupted` was set.
        """
        course = _Course(self._ray, self._workers, (task, self._held), numbers, advance)
        try:
            for _ in course.run():
                self._check()
        except ConnectionError as error:
            raise Unfinished(f"the connection to Ray is lost ({_described(error)}); {AGAIN}") from (
                error
            )

    def _check(self) -> None:
        if self._interrupted.is_set():
            raise Interrupted(f"stopped; {AGAIN}")
        if time.monotonic() - self._asked > ASK_SECONDS:
            self._asked = time.monotonic()
            if not connect.answers(self._raylet):
                raise Unfinished(f"Ray has stopped on this machine; {AGAIN}")


class _Course:
    """Which worker is at which shard, what waits, and what has failed. Workers go by numbers."""

    def __init__(
        self,
        ray: Any,
        workers: Sequence[Any],
        given: tuple[Task, tuple[Any]],
        shards: Sequence[int],
        advance: Callable[[int], Any],
    ) -> None:
        self._ray, self._workers, self._given, self._advance = ray, workers, given, advance
        self._shards = given[0].shards
        self._waiting = deque(shards)
        self._next: dict[int, int] = {}  # the shard whose vectors a worker reads ahead
        self._calls: dict[Any, tuple[int, int | None]] = {}  # the worker, and the shard it is at
        self._idle: list[int] = []
        self._done = 0  # rows of stored shards
        self._rows: dict[int, int] = {}  # done of shards that are being encoded
        self._failures, self._failed = Counter[int](), dict[int, str]()
        self._dismissed = dict[int, str]()  # workers that are lost or cannot begin, and why

    def run(self) -> Iterator[None]:
        """Encodes all shards that can be; yields after each step, and while it waits."""
        self._advance(0)
        for worker in range(len(self._workers)):
            self._open(worker)
        while self._calls and (self._waiting or self._next or self._rows):
            ready, _ = self._ray.wait(list(self._calls), timeout=WAIT_SECONDS)
            yield
            for call in ready:
                self._answer(call, *self._calls.pop(call))
            self._occupy()
            self._advance(self._done + sum(self._rows.values()))
        self._report()

    def _report(self) -> None:
        reason = next(iter(self._dismissed.values()), "")
        if self._waiting:
            raise Unfinished(f"no worker is left ({reason}); {AGAIN}")
        if self._dismissed:
            warnings.warn(f"{len(self._dismissed)} workers could not work: {reason}", stacklevel=2)
        if self._failed:
            names = listed([Path(self._shards.name(shard)) for shard in self._failed])
            raise Unfinished(
                f"{len(self._failed)} of {self._shards.count} shards failed, {names}: "
                f"{next(iter(self._failed.values()))}; the others are kept, and the same command "
                "again tries these"
            )

    def _open(self, worker: int) -> None:
        """Lets a worker open its vectors, when it is started or restarted."""
        call = _surely(self._workers[worker].open).remote(*self._given)
        self._calls[call] = worker, None

    def _occupy(self) -> None:
        """Gives idle workers shards while there are some."""
        while self._idle and (self._waiting or self._next):
            worker = self._idle.pop()
            if worker in self._next:
                shard = self._next.pop(worker)
            elif self._waiting:
                shard = self._waiting.popleft()
            else:  # one that another worker reads ahead, and is not at yet
                shard = self._next.popitem()[1]
            if self._waiting:
                self._next[worker] = self._waiting.popleft()
            self._rows[shard] = 0
            self._go_on(worker, shard)

    def _go_on(self, worker: int, shard: int) -> None:
        call = self._workers[worker].work.remote(*self._given, shard, self._next.get(worker))
        self._calls[call] = worker, shard

    def _answer(self, call: Any, worker: int, shard: int | None) -> None:
        errors = self._ray.exceptions
        try:
            found = self._ray.get(call)
        except errors.ActorDiedError as error:  # for good: it would be restarted if that could be
            self._dismiss(worker, shard, f"Ray has stopped: {_described(error)}")
        except errors.RayTaskError as error:
            self._refuse(worker, shard, error.cause)
        except errors.RayError:
            self._fail(shard, "its worker was lost, by a crash or for want of memory")
            self._open(worker)  # answers when it is restarted
        else:
            if shard is not None and found is not None:
                self._rows[shard] = found
                self._go_on(worker, shard)
                return
            if shard is not None:
                del self._rows[shard]
                self._done += self._shards.num_rows_of(shard)
            self._idle.append(worker)

    def _refuse(self, worker: int, shard: int | None, cause: BaseException) -> None:
        """What a worker raised: the target is at fault, or the worker itself, or the shard."""
        reason = _described(cause)
        if getattr(cause, "errno", None) in PERMANENT:
            raise Unfinished(f"{reason}; {AGAIN}")
        if shard is None:
            self._dismiss(worker, shard, reason)
        else:
            self._fail(shard, reason)
            self._idle.append(worker)

    def _fail(self, shard: int | None, reason: str) -> None:
        """A shard is tried again, after the others, or given up."""
        if shard is not None:
            del self._rows[shard]
            self._failures[shard] += 1
            if self._failures[shard] < TRIES:
                self._waiting.append(shard)
            else:
                self._failed[shard] = reason

    def _dismiss(self, worker: int, shard: int | None, reason: str) -> None:
        """Others take the shards of a worker."""
        self._dismissed[worker] = reason
        for other in (shard, self._next.pop(worker, None)):
            if other is not None:
                self._rows.pop(other, None)
                self._waiting.appendleft(other)


def _surely(method: Any) -> Any:
    """A method of a worker that is called again where the worker is lost."""
    return method.options(max_task_retries=-1)


def _compiled() -> str | None:
    """Where this process keeps compiled programs, if anywhere."""
    return getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009  unknown to mypy


def _room(ray: Any, asked: int | None) -> tuple[int, int | None, dict[str, Any]]:
    """How many workers there are to be, the cores of each, and what each takes of the cluster."""
    held = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = [int(node["CPU"]) for node in held if node.get("CPU", 0) >= 1]
    most = sum(int(node.get("GPU", 0)) for node in held)
    num_cores, options = None, {"num_gpus": 1, "num_cpus": 1}
    if not most and cores:
        wanted = WORKER_CORES if asked is None else max(1, sum(cores) // asked)
        num_cores = min(wanted, *cores)
        most, options = sum(node // num_cores for node in cores), {"num_cpus": num_cores}
    if not most or (asked or 0) > most:
        raise InputError(
            f"{asked or 1} workers are too many: there is room for {most} on these cores or "
            "accelerators; ask for fewer, or for auto"
        )
    return asked or most, num_cores, options


def _described(error: BaseException) -> str:
    """An exception in a line; of a trace, the last."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()[:300]
