"""Rows in segments are indexed as one array, and only requested rows are read."""

from pathlib import Path

import h5py
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qinco_jax as qj
from qinco_jax.codecs.ours import of_rq
from qinco_jax.errors import InputError
from qinco_jax.evaluate.metrics import measure
from qinco_jax.evaluate.neighbours import queries_of
from qinco_jax.training import run_folder
from qinco_jax.training import train as train_module
from qinco_jax.vectors import stored
from qinco_jax.vectors.shards import read_rows
from qinco_jax.vectors.stored import Stored, derived, mapped, prefetch

CONFIG = qj.QincoConfig(num_steps=2, codebook_size=16, hidden_dim=8, num_candidates=4, beam_size=2)


class Slow:
    """Rows that can be read by slices alone; counts what was read, and the most at once."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, self.shape, self.dtype = rows, rows.shape, rows.dtype
        self.read = self.most = 0

    def __getitem__(self, rows: slice) -> np.ndarray:
        assert isinstance(rows, slice) and 0 <= rows.start <= rows.stop <= len(self.rows)
        self.read += rows.stop - rows.start
        self.most = max(self.most, rows.stop - rows.start)
        return self.rows[rows]


@given(data=st.data(), sizes=st.lists(st.integers(0, 12), min_size=1, max_size=5))
def test_it_is_indexed_as_the_whole_is(data: st.DataObject, sizes: list[int]) -> None:
    whole = np.arange(3 * sum(sizes), dtype=np.int16).reshape(-1, 3)
    pieces = np.split(whole, np.cumsum(sizes)[:-1])
    segments = [Slow(x) if data.draw(st.booleans()) else x for x in pieces]
    stored = Stored(segments, block_rows=data.draw(st.integers(1, 6)))
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


def test_a_memory_map_is_prefetched_where_its_rows_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", np.arange(8000, dtype=np.uint16).reshape(-1, 4))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    for view in (x, np.asarray(x)[100:], x[::-1], x[:, 1:]):
        mapping, first, last = mapped(view, 3, 500)
        assert mapping is not None and last - first <= 497 * 8
        inside = np.frombuffer(mapping[first:last], np.uint16)
        assert set(view[3:500].flat) <= set(inside)
        prefetch(Stored([view, view]), 300, 1950)
    assert mapped(np.array(x), 3, 500)[0] is mapped(x, 3, 3)[0] is None
    columns = x.reshape(4, 2000).T  # rows that lie all over the file, which is not read for a few
    assert mapped(columns, 3, 500)[0] is None
    asked = []
    monkeypatch.setattr(stored, "mapped", lambda *at: asked.append(at) or (None, 0, 0))
    prefetch(derived(x, np.negative)[100:], 3, 500)
    assert [at[1:] for at in asked] == [(103, 600)] and asked[0][0] is x
    monkeypatch.undo()
    prefetch(Slow(np.array(x)), 3, 500)


def test_segments_of_different_kinds_are_refused() -> None:
    with pytest.raises(
        InputError, match="float32 of 3 dimensions and uint8 of 3 dimensions; they must"
    ):
        Stored([np.zeros((2, 3), np.float32), np.zeros((2, 3), np.uint8)])
    with pytest.raises(IndexError, match="out of range"):
        Stored([np.zeros((2, 3))])[[2]]


def test_a_model_is_the_same_from_files_of_any_kind(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    for i, part in enumerate(np.split(x, 3)):
        lists = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), 8)
        file = tmp_path / f"x-{i}.parquet"
        pq.write_table(pa.table({"emb": lists}), file, row_group_size=70)
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file.create_dataset("emb", data=x, chunks=(50, 8), compression="gzip")
    models, codes = [], []
    for name in ("x.npy", "x-*.parquet", "x.hdf5"):
        rows = read_rows(tmp_path / name)
        assert isinstance(rows, np.memmap) == (name == "x.npy")
        models.append(qj.train(rows, CONFIG, num_epochs=1, batch_size=64, run_dir=tmp_path / "run"
                               if name == "x.npy" else None))  # fmt: skip
        codes.append(np.asarray(qj.encode(models[0], rows)))
        again = qj.train(rows, CONFIG, num_epochs=1, batch_size=64, run_dir=tmp_path / "run")
        jax.tree.map(np.testing.assert_array_equal, again, models[0])  # the run knows its vectors
    for model, code in zip(models[1:], codes[1:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, model, models[0])
        np.testing.assert_array_equal(code, codes[0])


def test_what_is_read_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "CHECKED_ROWS", 5000)
    x = np.random.default_rng(0).normal(size=(60_000, 2)).astype(np.float32)
    slow = Slow(x)
    rows = Stored([x[:1], slow], block_rows=1000)
    x = np.concatenate([x[:1], x])
    model = qj.train(rows, CONFIG, num_epochs=0, num_val=10)
    codes = qj.encode(model, rows)
    assert run_folder.fingerprint(rows) == run_folder.fingerprint(x)
    assert 0 < slow.most <= 5000
    np.testing.assert_array_equal(codes, qj.encode(model, x))


def test_a_database_in_segments_scores_as_the_whole() -> None:
    x = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
    rows = Stored([Slow(x[:300]), x[300:]], block_rows=100)
    codec = of_rq(qj.rq.train(rows, 2, 16), 2, 4.0)
    scores = []
    near = x[:50] + np.float32(0.1)
    truth = np.argsort(np.square(near[:, None] - x[None]).sum(-1), axis=1)[:, :100]
    for database, queries in ((rows, Stored([near])), (x, near)):
        asked = queries_of(queries, database, groundtruth=truth)
        scores.append(measure(codec, database, [asked, queries_of(queries, database, "ip")]))
    assert scores[0] == scores[1]
