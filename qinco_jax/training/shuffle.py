"""Which rows form a batch: a pure function of (seed, step), so that resuming needs one integer.

A set that is small is shuffled whole. A larger one is cut into blocks of neighbouring rows, from a
random row on; an epoch takes the blocks in random order, and the rows of as many blocks as make a
pool are shuffled with each other. So a disk reads blocks and memory holds pools. A batch's mean
varies as if it were independent rows where rows in a block are unlike; where they are all alike,
its variance is (1 + batch_size / blocks of a pool) times as large.
"""

from typing import NamedTuple

import numpy as np

CACHED = 2**15  # numbers that are permuted at once and fit a core's cache


class Blocks(NamedTuple):
    """How a set is cut, in rows.

    Attributes:
      unit: a block begins at a multiple of it, as what the storage reads at once does.
      block: rows of a block, a multiple of `unit`.
      pool: rows of a pool, about; a set of at most so many is shuffled whole.
    """

    unit: int
    block: int
    pool: int


def batch_rows(
    seed: int,
    step: int,
    batch_size: int,
    num_rows: int,
    *,
    blocks: Blocks | None = None,
    share: tuple[int, int] = (0, 1),
) -> np.ndarray:
    """The rows of the batch of training step `step`.

    Every epoch visits each row at most once, in an order of its own; the num_rows % batch_size
    rows that are left over differ from epoch to epoch. Nothing of the size of the data is made: a
    Feistel network permutes the numbers 0..num_rows - 1 and is evaluated at the batch's places.

    Args:
      seed: of the order.
      step: training step from 0, over all epochs.
      batch_size: rows of a batch, at most `num_rows`.
      num_rows: rows of the training set, less than 2^62.
      blocks: how the set is cut; `None` shuffles it whole.
      share: a process's number from 0 and the number of processes. The batch is that of all of
        them, their shares one after another.

    Returns:
      [batch_size] int64 where there is one process, sorted, so that a memory-mapped file is read
      forwards.
    """
    steps = range(step, step + 1)
    return pool_rows(seed, steps, batch_size, num_rows, blocks=blocks, share=share)[0]


def pool_rows(
    seed: int,
    steps: range,
    batch_size: int,
    num_rows: int,
    *,
    blocks: Blocks | None = None,
    share: tuple[int, int] = (0, 1),
) -> np.ndarray:
    """`batch_rows` [S, batch_size] of S steps of one pool; all at once takes a tenth of the time.

    Args:
      seed: of the order.
      steps: some of one `pool_steps`.
      batch_size: rows of a batch, at most `num_rows`.
      num_rows: rows of the training set, less than 2^62.
      blocks: how the set is cut; `None` shuffles it whole.
      share: a process's number from 0 and the number of processes.
    """
    num_batches = num_rows // batch_size
    epoch, first = divmod(steps.start, num_batches)
    number, num_pools, batches = _pool(first, batch_size, num_rows, blocks)
    begin = batches.start * batch_size
    end = num_rows if batches.stop == num_batches else batches.stop * batch_size
    rng = np.random.default_rng([seed, epoch])
    places = np.arange(first * batch_size, (first + len(steps)) * batch_size, dtype=np.int64)
    if blocks is None or num_pools == 1:
        rows = _permuted(places, num_rows, rng)
    else:
        inner = np.random.default_rng([seed, epoch, 1 + number])
        places = begin + _permuted(places - begin, end - begin, inner)
        rows = _in_blocks(places, num_rows, blocks, rng)
    rows = np.sort(rows.reshape(len(steps), batch_size), axis=1)
    index, count = share
    return rows[:, batch_size * index // count : batch_size * (index + 1) // count]


def pool_steps(step: int, batch_size: int, num_rows: int, blocks: Blocks | None = None) -> range:
    """The steps whose rows are of the same pool as those of `step`."""
    num_batches = num_rows // batch_size
    place = step % num_batches
    *_, batches = _pool(place, batch_size, num_rows, blocks)
    return range(step - place + batches.start, step - place + batches.stop)


def _pool(
    place: int, batch_size: int, num_rows: int, blocks: Blocks | None
) -> tuple[int, int, range]:
    """The pool of an epoch's batch `place`: its number, of how many, and its batches.

    All pools of an epoch are of about one size, and no batch is of two.
    """
    num_batches = num_rows // batch_size
    num_pools = 1 if blocks is None else -(-num_rows // blocks.pool)
    number = ((place + 1) * num_pools - 1) // num_batches
    begin, end = (i * num_batches // num_pools for i in (number, number + 1))
    return number, num_pools, range(begin, end)


def _in_blocks(
    places: np.ndarray, num_rows: int, blocks: Blocks, rng: np.random.Generator
) -> np.ndarray:
    """The rows at places of an epoch's order of blocks.

    What is before the first whole block and after the last comes at the end.
    """
    offset = blocks.unit * int(rng.integers(blocks.block // blocks.unit))
    num_blocks = max(0, num_rows - offset) // blocks.block
    block, inside = np.divmod(places, blocks.block)
    whole = block < num_blocks
    rows = places.copy()
    moved = _permuted(block[whole], num_blocks, rng)
    rows[whole] = offset + moved * blocks.block + inside[whole]
    before = ~whole & (places < num_blocks * blocks.block + offset)
    rows[before] -= num_blocks * blocks.block
    return rows


def _permuted(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Where a random permutation of 0..count - 1 takes `values`, int64."""
    keys = rng.integers(0, 2**64, size=6, dtype=np.uint64)
    half_bits = max(1, (int(count - 1).bit_length() + 1) // 2)
    moved = values.astype(np.uint64)
    for begin in range(0, len(moved), CACHED):
        part = moved[begin : begin + CACHED]
        part[:] = _feistel(part, keys, half_bits)
        while (outside := np.flatnonzero(part >= count)).size:  # walk the cycle until it is inside
            part[outside] = _feistel(part[outside], keys, half_bits)
    return moved.astype(np.int64)


def random_bits(seed: int, numbers: np.ndarray) -> np.ndarray:
    """64 random bits for each of some numbers from 0, a function of it and the seed, uint64."""
    keys = np.random.default_rng(seed).integers(0, 2**64, size=6, dtype=np.uint64)
    return _feistel(numbers.astype(np.uint64), keys, 32)


def _feistel(values: np.ndarray, keys: np.ndarray, half_bits: int) -> np.ndarray:
    """A permutation of the numbers below 4^half_bits, chosen by `keys`."""
    mask = np.uint64((1 << half_bits) - 1)
    left, right = values >> np.uint64(half_bits), values & mask
    for key in keys:
        mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)  # wraps around, as it should
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
    return (left << np.uint64(half_bits)) | right
