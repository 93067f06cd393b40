"""The batches of training, read and brought to the devices before they are asked for.

A set that fits a pool (see `batches`) is indexed where it is. Of a larger one, a pool at a time is
read into memory, run by run of neighbouring rows, while batches are drawn from the pool before it;
so a file of any size is read in large pieces and at most two pools are held.
"""

import contextlib
import functools
import itertools
import threading
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.training import shuffle
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Segment, prefetch

T = TypeVar("T")

BLOCK_BYTES = 2**15
POOL_BYTES = 2**26
POOL_BLOCKS = 4  # at least, where the storage has large blocks of its own
BATCHES_AHEAD = 2
STEPS_AT_ONCE = 64  # whose rows are found together, where no pool is read for them
RUNS_AHEAD = 128  # of neighbouring rows, that a disk may read at once


def blocks_for(x: Segment, batch_size: int) -> shuffle.Blocks:
    """Blocks of about `BLOCK_BYTES` in pools of about `POOL_BYTES` or at least two batches.

    Args:
      x: [N, D] rows; they may say their storage's `block_rows`, as `Stored` does.
      batch_size: rows of a batch.
    """
    row_bytes, unit = x.dtype.itemsize * x.shape[1], getattr(x, "block_rows", 1)
    block = unit * max(1, BLOCK_BYTES // (unit * row_bytes))
    pool = max(POOL_BYTES // row_bytes, 2 * batch_size, POOL_BLOCKS * block)
    return shuffle.Blocks(unit, block, pool)


class Feed:
    """The batches of steps in turn, on the devices: an iterator, for a `with` block.

    Two threads stay ahead of who takes them, one of them reading the next pool. What they raise is
    raised where the batch is asked for; the end of the block ends them.

    Attributes:
      waited: seconds that were spent waiting for batches that were not yet on the devices.
    """

    def __init__(
        self,
        x: Segment,
        seed: int,
        steps: range,
        batch_size: int,
        sharding: jax.sharding.Sharding,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Nothing is read before the first batch is asked for.

        Args:
          x: [N, D] an array, a memory map or `Stored`.
          seed: of the order.
          steps: whose batches are given; it begins anywhere as fast.
          batch_size: rows of a batch over all processes.
          sharding: of a batch over the devices of all processes.
          share: this process's number from 0 and the number of processes.
        """
        self.waited = 0.0
        closing = threading.Event()
        parts = _read(x, seed, steps, batch_size, share, closing)
        self._batches = _ahead(_placed(parts, sharding), BATCHES_AHEAD, closing)

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: object) -> None:
        self._batches.close()

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> jax.Array:
        """The next batch [batch_size, D], of which each process holds its share.

        Raises:
          InputError: a row of it holds NaN or Inf.
        """
        begin = time.monotonic()
        try:
            return next(self._batches)
        finally:
            self.waited += time.monotonic() - begin


def _ahead(source: Generator[T], count: int, closing: threading.Event) -> Generator[T]:
    """What `source` gives, made by a thread that is at most `count` ahead of who takes it."""
    thread = ThreadPoolExecutor(1)
    make = functools.partial(thread.submit, next, source, None)
    try:
        made = deque(make() for _ in range(count))
        while (item := made.popleft().result()) is not None:
            made.append(make())
            yield item
    finally:
        closing.set()
        thread.shutdown(cancel_futures=True)
        source.close()


def _placed(parts: Generator[np.ndarray], sharding: jax.sharding.Sharding) -> Generator[jax.Array]:
    with contextlib.closing(parts):
        for part in parts:
            batch = jax.make_array_from_process_local_data(sharding, part)
            yield jax.block_until_ready(batch)


def _read(
    x: Segment,
    seed: int,
    steps: range,
    batch_size: int,
    share: tuple[int, int],
    closing: threading.Event,
) -> Generator[np.ndarray]:
    """The share [R, D] of the batch of each step, in the dtype that goes to the devices."""
    pools = _ahead(_pools(x, seed, steps, batch_size, share, closing), 1, closing)
    with contextlib.closing(pools):
        for pool in pools:
            for rows, places in zip(pool.rows, pool.places, strict=True):
                yield _finite(pool.vectors[places], rows)


class _Pool(NamedTuple):
    """Vectors of some steps, all of one pool.

    Attributes:
      vectors: [R, D] in memory, or the whole set where it is.
      rows: [S, B], of the set, for each step.
      places: [S, B], where they are in `vectors`.
    """

    vectors: np.ndarray
    rows: np.ndarray
    places: np.ndarray


def _pools(
    x: Segment,
    seed: int,
    steps: range,
    batch_size: int,
    share: tuple[int, int],
    closing: threading.Event,
) -> Generator[_Pool]:
    num_rows, blocks = x.shape[0], blocks_for(x, batch_size)
    whole = np.asarray(x) if num_rows <= blocks.pool else None
    while steps:
        end = shuffle.pool_steps(steps[0], batch_size, num_rows, blocks).stop
        count = end - steps.start if whole is None else min(end - steps.start, STEPS_AT_ONCE)
        now, steps = steps[:count], steps[count:]
        rows = shuffle.pool_rows(seed, now, batch_size, num_rows, blocks=blocks, share=share)
        if whole is None:
            yield _loaded(x, rows, blocks.block, closing)
        else:
            yield _Pool(whole, rows, rows)


def _loaded(x: Segment, rows: np.ndarray, gap: int, closing: threading.Event) -> _Pool:
    """Reads `rows` in runs; a run ends where more than `gap` unneeded rows would follow."""
    every = np.sort(rows, axis=None)
    cuts = np.flatnonzero(np.diff(every) > gap)
    begins, ends = every[np.append(0, cuts + 1)], every[np.append(cuts, -1)] + 1
    starts = np.cumsum(ends - begins) - (ends - begins)
    vectors = np.empty((int(np.sum(ends - begins)), x.shape[1]), x.dtype)
    runs = np.stack([begins, ends, starts], axis=1).tolist()
    for begin, end, _ in runs[:RUNS_AHEAD]:
        prefetch(x, begin, end)
    for (begin, end, start), later in itertools.zip_longest(runs, runs[RUNS_AHEAD:]):
        if later is not None:
            prefetch(x, *later[:2])
        if closing.is_set():
            raise RuntimeError("the feed was closed while it was reading")
        vectors[start : start + end - begin] = x[begin:end]
    run = np.searchsorted(begins, rows, side="right") - 1
    return _Pool(vectors, rows, rows + (starts - begins)[run])


def _finite(part: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`checks.finite`, whose message names the row of the set."""
    try:
        return checks.finite(part)
    except InputError:
        for row, vector in zip(rows.tolist(), part, strict=True):
            checks.finite(vector[None], row)
        raise
