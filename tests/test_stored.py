"""Rows in parts are indexed as one array, and only what is asked for is read."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qinco_jax.data.stored import Stored, expect, mapped
from qinco_jax.errors import InputError


class Slow:
    """Rows that can be read by slices alone; counts what was read."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, self.shape, self.dtype, self.read = rows, rows.shape, rows.dtype, 0

    def __getitem__(self, rows: slice) -> np.ndarray:
        assert isinstance(rows, slice) and 0 <= rows.start <= rows.stop <= len(self.rows)
        self.read += rows.stop - rows.start
        return self.rows[rows]


@given(data=st.data(), sizes=st.lists(st.integers(0, 12), min_size=1, max_size=5))
def test_it_is_indexed_as_the_whole_is(data: st.DataObject, sizes: list[int]) -> None:
    whole = np.arange(3 * sum(sizes), dtype=np.int16).reshape(-1, 3)
    pieces = np.split(whole, np.cumsum(sizes)[:-1])
    parts = [Slow(x) if data.draw(st.booleans()) else x for x in pieces]
    stored = Stored(parts, block_rows=data.draw(st.integers(1, 6)))
    for _ in range(2):  # the whole, and a window of it
        count = len(whole)
        assert stored.shape == whole.shape and stored.dtype == whole.dtype
        np.testing.assert_array_equal(stored, whole)
        rows = data.draw(st.lists(st.integers(-count, count - 1), max_size=9)) if count else []
        np.testing.assert_array_equal(stored[np.int64(rows)], whole[np.int64(rows)])
        np.testing.assert_array_equal(stored[whole[:, 0] % 2 == 0], whole[whole[:, 0] % 2 == 0])
        np.testing.assert_array_equal(stored[::-2], whole[::-2])
        if count:
            np.testing.assert_array_equal(stored[-1], whole[-1])
        window = data.draw(st.slices(count)).indices(count)[:2]
        stored, whole = stored[slice(*window)], whole[slice(*window)]


def test_only_the_blocks_of_the_rows_are_read() -> None:
    slow = Slow(np.zeros((10_000, 2), np.float32))
    stored = Stored([slow], block_rows=100)
    stored[5000:][np.array([3, 7, 250])]
    assert slow.read <= 3 * 100


def test_what_is_expected_of_a_memory_map_is_where_its_rows_are(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(8000, dtype=np.uint16).reshape(-1, 4))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    for view in (x, np.asarray(x)[100:], x[::-1], x[:, 1:]):
        mapping, first, last = mapped(view, 3, 500)
        assert mapping is not None and last - first <= 497 * 8
        inside = np.frombuffer(mapping[first:last], np.uint16)
        assert set(view[3:500].flat) <= set(inside)
        expect(Stored([view, view]), 300, 1950)
    assert mapped(np.array(x), 3, 500)[0] is mapped(x, 3, 3)[0] is None
    expect(Slow(np.array(x)), 3, 500)


def test_parts_of_different_kinds_are_refused() -> None:
    with pytest.raises(InputError, match="float32 of 3 dimensions and uint8 of 3 dimensions"):
        Stored([np.zeros((2, 3), np.float32), np.zeros((2, 3), np.uint8)])
    with pytest.raises(IndexError, match="out of range"):
        Stored([np.zeros((2, 3))])[[2]]
