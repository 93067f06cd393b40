"""The queue by itself, in front of an index that can fail."""

import asyncio
from typing import Any, cast

import numpy as np

from qinco_jax.search.index import Index
from qinco_jax.serve.batches import Batches
from qinco_jax.serve.requests import Settings


class Fails:
    """An index whose searches for two neighbours fail."""

    def search(self, x: np.ndarray, k: int, **_: Any) -> tuple[np.ndarray, np.ndarray]:
        if k == 2:
            raise MemoryError("no room")
        return x, x.astype(np.int64)


def test_a_failed_search_fails_its_requests_and_no_others() -> None:
    sizes = []

    async def run() -> list[Any]:
        batches = Batches(
            cast(Index, Fails()), 100, wait_ms=0, block_rows=4,
            searched=lambda *size: sizes.append(size),
        )  # fmt: skip
        task = asyncio.create_task(batches.run())
        asked = [(3, 1), (3, 1), (1, 2), (1, 1), (9, 1), (1, 2)]  # vectors and neighbours
        found = await asyncio.gather(
            *(
                batches.search(np.full((rows, 1), n, np.float32), Settings(k=k))
                for n, (rows, k) in enumerate(asked)
            ),
            return_exceptions=True,
        )
        assert batches.queue_rows == 0 and not batches.queues
        task.cancel()
        batches.thread.shutdown()
        return found

    found = asyncio.run(run())
    assert [type(found[n]) for n in (2, 5)] == [MemoryError] * 2
    for n, rows in ((0, 3), (1, 3), (3, 1), (4, 9)):
        np.testing.assert_array_equal(found[n][0], np.full((rows, 1), n))
    assert sorted(sizes) == [(1, 3), (1, 9), (2, 2), (2, 4)]  # of 4 vectors, larger ones alone
