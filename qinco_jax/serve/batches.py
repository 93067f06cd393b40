"""Requests with the same settings are searched together, one batch after another."""

import asyncio
import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from qinco_jax.search.searcher import Searcher
from qinco_jax.serve.requests import Refused, Settings

WAIT_MS = 2.0

Found = tuple[np.ndarray, np.ndarray, Sequence[str]]


@dataclasses.dataclass
class Waiting:
    """A request's vectors [Q, D] in the queue since `since`, and where its answer goes."""

    x: np.ndarray
    since: float
    found: "asyncio.Future[Found]"


class Batches:
    """A queue in front of `Index.search`, which runs in a thread of its own.

    The batch of the request that has waited longest is next. It starts once it is full or that
    request has waited `wait_ms`; while a batch is searched, the next ones gather.

    Args:
      index: that is searched.
      max_queue: vectors that may wait.
      wait_ms: for how long at most an idle server waits for further requests.
      block_rows: vectors of a full batch. A larger request is a batch of its own.
      searched: called with the number of requests and of vectors of each batch.
    """

    def __init__(
        self,
        index: Searcher,
        max_queue: int,
        wait_ms: float,
        block_rows: int,
        searched: Callable[[int, int], None],
    ) -> None:
        self.index, self.max_queue, self.wait_ms = index, max_queue, wait_ms
        self.block_rows, self.searched = block_rows, searched
        self.queues: dict[Settings, deque[Waiting]] = {}
        self.queue_rows = 0
        self.arrived = asyncio.Event()
        self.thread = ThreadPoolExecutor(1, "search")

    async def search(self, x: np.ndarray, settings: Settings) -> Found:
        """Distances [Q, k] and ids [Q, k] of checked vectors [Q, D], and which parts are missing.

        Raises:
          Refused: the queue is full.
        """
        if self.queue_rows + len(x) > self.max_queue:
            raise Refused(
                503, f"{self.queue_rows} vectors wait already; send the request again later"
            )
        loop = asyncio.get_running_loop()
        waiting = Waiting(x, loop.time(), loop.create_future())
        self.queues.setdefault(settings, deque()).append(waiting)
        self.queue_rows += len(x)
        self.arrived.set()
        return await waiting.found

    async def run(self) -> None:
        """Searches batch after batch, until it is cancelled."""
        while True:
            self.arrived.clear()
            if not self.queues:
                await self.arrived.wait()
            settings = min(self.queues, key=lambda settings: self.queues[settings][0].since)
            await self._filled(self.queues[settings])
            await self._searched(settings, self._taken(settings))

    async def _filled(self, queue: deque[Waiting]) -> None:
        """Returns when a batch of the queue is full or its first request has waited enough."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(queue[0].since + self.wait_ms / 1000):
                while sum(len(waiting.x) for waiting in queue) < self.block_rows:
                    self.arrived.clear()
                    await self.arrived.wait()

    def _taken(self, settings: Settings) -> list[Waiting]:
        """The first requests of a queue that fit into a batch, taken out of it."""
        queue = self.queues[settings]
        taken = [queue.popleft()]
        num_rows = len(taken[0].x)
        while queue and num_rows + len(queue[0].x) <= self.block_rows:
            taken.append(queue.popleft())
            num_rows += len(taken[-1].x)
        if not queue:
            del self.queues[settings]
        self.queue_rows -= num_rows
        return taken

    async def _searched(self, settings: Settings, taken: list[Waiting]) -> None:
        """Searches a batch; each request gets its rows, or all the error."""
        loop = asyncio.get_running_loop()
        try:
            x = np.concatenate([waiting.x for waiting in taken])
            self.searched(len(taken), len(x))
            distances, ids, missing = await loop.run_in_executor(
                self.thread, settings.search, self.index, x
            )
        except Exception as error:  # the queue goes on, whatever it is
            for waiting in taken:
                if not waiting.found.done():
                    waiting.found.set_exception(error)
            return
        begin = 0
        for waiting in taken:
            rows = slice(begin, begin := begin + len(waiting.x))
            if not waiting.found.done():  # cancelled, if the client has gone
                waiting.found.set_result((distances[rows], ids[rows], missing))
