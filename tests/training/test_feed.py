"""The order of training vectors, and the reading of them: the same batches from any source."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qinco_jax.errors import InputError
from qinco_jax.training import feed
from qinco_jax.training.feed import Feed
from qinco_jax.training.shuffle import Blocks, batch_rows, pool_rows, pool_steps
from qinco_jax.vectors.stored import Segment, Stored

SHARDING = jax.sharding.SingleDeviceSharding(jax.devices()[0])
NUM_ROWS, DIM, BATCH = 3000, 4, 10
BLOCKS = Blocks(unit=1, block=8, pool=256)


@st.composite
def orders(draw: st.DrawFn) -> tuple[int, int, Blocks]:
    """Rows of a batch, rows of the set, and its blocks."""
    batch_size, unit = draw(st.integers(1, 30)), draw(st.integers(1, 5))
    block = unit * draw(st.integers(1, 8))
    pool = draw(st.integers(2 * batch_size, 300))
    return batch_size, draw(st.integers(batch_size, 1500)), Blocks(unit, block, pool)


@given(order=orders(), seed=st.integers(0, 2**40), epoch=st.integers(0, 99))
def test_an_epoch_visits_every_row_once_but_what_fills_no_batch(
    order: tuple[int, int, Blocks], seed: int, epoch: int
) -> None:
    batch_size, num_rows, blocks = order
    first = epoch * (num_rows // batch_size)
    steps = range(first, first + num_rows // batch_size)
    seen = [batch_rows(seed, step, batch_size, num_rows, blocks=blocks) for step in steps]
    assert all((np.diff(rows) > 0).all() for rows in seen)
    every = np.concatenate(seen)
    assert len(np.unique(every)) == len(every) == num_rows - num_rows % batch_size
    assert every.min() >= 0 and every.max() < num_rows


@given(order=orders(), step=st.integers(0, 10**6), count=st.integers(1, 40))
def test_a_batch_is_the_shares_of_all_processes_one_after_another(
    order: tuple[int, int, Blocks], step: int, count: int
) -> None:
    batch_size, num_rows, blocks = order
    shares = [
        batch_rows(3, step, batch_size, num_rows, blocks=blocks, share=(index, count))
        for index in range(count)
    ]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    whole = batch_rows(3, step, batch_size, num_rows, blocks=blocks)
    np.testing.assert_array_equal(np.concatenate(shares), whole)


@given(order=orders(), step=st.integers(0, 10**6))
def test_a_pool_is_as_large_as_said_and_of_few_runs(
    order: tuple[int, int, Blocks], step: int
) -> None:
    batch_size, num_rows, blocks = order
    steps = pool_steps(step, batch_size, num_rows, blocks)
    assert step in steps and steps == pool_steps(steps[-1], batch_size, num_rows, blocks)
    assert len(steps) * batch_size <= blocks.pool + batch_size
    rows = pool_rows(3, steps, batch_size, num_rows, blocks=blocks)
    alone = batch_rows(3, step, batch_size, num_rows, blocks=blocks)
    np.testing.assert_array_equal(rows[step - steps.start], alone)
    runs = 1 + np.count_nonzero(np.diff(np.sort(rows, axis=None)) > blocks.block)
    assert runs <= rows.size / blocks.block + 4  # cut at either end, and around the whole blocks


@pytest.mark.parametrize("blocks", [None, Blocks(1, 512, 100_000)])
def test_the_order_of_a_set_in_one_pool_stays_as_it_was(blocks: Blocks | None) -> None:
    for arguments, rows in (
        ((0, 0, 4, 10), [1, 2, 4, 6]),
        ((7, 5, 3, 11), [2, 3, 10]),
        ((1, 1000, 8, 100_000), [1237, 50039, 50102, 56952, 57231, 74252, 74951, 77266]),
    ):
        assert batch_rows(*arguments, blocks=blocks).tolist() == rows


def variance_ratio(blocks: Blocks | None, num_rows: int, batch_size: int, seed: int) -> float:
    """Variance of the batch means of sorted numbers, by that of batches of independent rows."""
    order = (batch_size, num_rows)
    means = [
        batch_rows(seed, step, *order, blocks=blocks).mean()
        for step in range(2 * num_rows // batch_size)
    ]
    return float(np.var(means) * batch_size / ((num_rows**2 - 1) / 12))


@pytest.mark.parametrize("seed", range(3))
def test_batches_of_a_sorted_set_vary_like_independent_rows(seed: int) -> None:
    assert 0.85 < variance_ratio(None, 2**15, 64, seed) < 1.15
    assert 0.85 < variance_ratio(Blocks(1, 8, 2**12), 2**15, 64, seed) < 1.15 + 64 / 512
    assert variance_ratio(Blocks(1, 256, 2**12), 2**15, 64, seed) > 2  # 16 blocks are too few


def test_neighbours_are_parted_otherwise_in_every_epoch() -> None:
    steps = [pool_steps(epoch * (NUM_ROWS // BATCH), BATCH, NUM_ROWS, BLOCKS) for epoch in range(9)]
    pools = [pool_rows(0, part, BATCH, NUM_ROWS, blocks=BLOCKS) for part in steps]
    cuts = [np.flatnonzero(np.diff(np.sort(rows, axis=None)) > 1) for rows in pools]
    begins = [np.sort(rows, axis=None)[cut + 1] % 8 for rows, cut in zip(pools, cuts, strict=True)]
    assert len({np.bincount(begin).argmax() for begin in begins}) > 3


@pytest.fixture
def in_pools(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of 8 rows of `vectors`, in 12 pools; no thread outlives the test."""
    monkeypatch.setattr(feed, "BLOCK_BYTES", BLOCKS.block * DIM * 4)
    monkeypatch.setattr(feed, "POOL_BYTES", BLOCKS.pool * DIM * 4)
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def vectors() -> np.ndarray:
    return np.arange(NUM_ROWS * DIM, dtype=np.float32).reshape(-1, DIM)


class Slow:
    """Rows that can be read by slices alone; keeps what was asked for, and may do more."""

    def __init__(self, rows: np.ndarray, on_read: object = None) -> None:
        self.rows, self.shape, self.dtype = rows, rows.shape, rows.dtype
        self.on_read, self.reads = on_read, []

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.reads.append((rows.start, rows.stop))
        if callable(self.on_read):
            self.on_read(len(self.reads))
        return self.rows[rows]


def sources(folder: Path) -> dict[str, Segment]:
    np.save(folder / "x.npy", vectors())
    stored = Stored([Slow(vectors()[:1000]), vectors()[1000:1003], Slow(vectors()[1003:])])
    mapped = np.load(folder / "x.npy", mmap_mode="r")
    return {"array": vectors(), "map": mapped, "stored": stored, "reversed": mapped[::-1]}


@pytest.mark.parametrize("source", ["array", "map", "stored", "reversed"])
@pytest.mark.parametrize("start", [0, 17, 299, 300, 431])
@pytest.mark.parametrize("share", [(0, 1), (1, 3)])
def test_the_feed_gives_the_rows_of_its_steps(
    source: str, start: int, share: tuple[int, int], tmp_path: Path, in_pools: None
) -> None:
    x, steps = sources(tmp_path)[source], range(start, start + 60)
    assert feed.blocks_for(x, BATCH) == BLOCKS
    with Feed(x, 5, steps, BATCH, SHARDING, share) as given:
        for step, batch in zip(steps, given, strict=True):
            rows = batch_rows(5, step, BATCH, NUM_ROWS, blocks=BLOCKS, share=share)
            np.testing.assert_array_equal(batch, np.asarray(x)[rows])
    assert given.waited > 0


def test_a_small_set_is_read_once_and_shuffled_whole() -> None:
    slow = Slow(vectors())
    with Feed(Stored([slow]), 5, range(900), BATCH, SHARDING) as given:
        for step, batch in enumerate(given):
            np.testing.assert_array_equal(batch, vectors()[batch_rows(5, step, BATCH, NUM_ROWS)])
    assert slow.reads == [(0, NUM_ROWS)]


def test_an_epoch_reads_whole_blocks_and_every_row_once(in_pools: None) -> None:
    slow = Slow(vectors())
    with Feed(Stored([slow]), 5, range(NUM_ROWS // BATCH), BATCH, SHARDING) as given:
        assert len(list(given)) == 300
    begins, ends = np.transpose(slow.reads)
    assert len(slow.reads) < NUM_ROWS / BLOCKS.block + 4 * 12
    assert NUM_ROWS <= np.sum(ends - begins) < NUM_ROWS + 12 * BLOCKS.block


def test_what_the_storage_reads_at_once_is_never_cut(in_pools: None) -> None:
    slow = Slow(vectors())
    with Feed(Stored([slow], block_rows=24), 5, range(50), BATCH, SHARDING) as given:
        assert len(list(given)) == 50  # two pools
    begins, ends = np.transpose(slow.reads)
    inside = np.count_nonzero(begins % 24) + np.count_nonzero(ends % 24)
    assert inside <= 2 * 2  # where pools begin and end


def test_processes_read_little_more_than_their_shares(in_pools: None) -> None:
    slow = Slow(vectors())
    with Feed(Stored([slow]), 5, range(300), BATCH, SHARDING, share=(0, 5)) as given:
        assert len(list(given)) == 300
    begins, ends = np.transpose(slow.reads)
    assert np.sum(ends - begins) < 0.6 * NUM_ROWS


def test_numbers_go_to_the_device_as_the_model_takes_them() -> None:
    for dtype, taken in ((np.uint8, np.uint8), (np.float64, np.float32), (">f4", np.float32)):
        with Feed(vectors().astype(dtype), 0, range(1), BATCH, SHARDING) as given:
            assert next(given).dtype == taken


def fails(_: int) -> None:
    raise OSError("the disk is gone")


def test_what_goes_wrong_while_reading_is_raised(in_pools: None) -> None:
    with (
        pytest.raises(OSError, match="the disk is gone"),
        Feed(Stored([Slow(vectors(), fails)]), 5, range(9), BATCH, SHARDING) as given,
    ):
        next(given)
    bad = np.where(np.arange(NUM_ROWS)[:, None] == 1234, np.nan, vectors())
    with (
        pytest.raises(InputError, match=r"row 1234 .* NaN"),
        Feed(bad, 5, range(300), BATCH, SHARDING) as given,
    ):
        list(given)


def test_closing_does_not_wait_for_a_pool(in_pools: None) -> None:
    slow = Slow(vectors(), lambda count: time.sleep(0.1 if count > 40 else 0))
    with Feed(Stored([slow]), 5, range(300), BATCH, SHARDING) as given:
        next(given)
    assert len(slow.reads) < 60
    with Feed(slow, 5, range(300), BATCH, SHARDING):
        pass  # nothing was asked for


def test_ctrl_c_ends_the_reading(in_pools: None) -> None:
    def interrupt(count: int) -> None:
        if count == 3:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

    slow = Slow(vectors(), interrupt)
    with (
        pytest.raises(KeyboardInterrupt),
        Feed(Stored([slow]), 5, range(300), BATCH, SHARDING) as given,
    ):
        next(given)
    assert len(slow.reads) < 25
