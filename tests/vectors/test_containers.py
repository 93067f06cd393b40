"""Vectors in containers and shards read like one array, and any damage is named."""

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from vector_files import X, every_kind, lists_of, same, write_hdf5, write_parquet

from qinco_jax import InputError, datasets
from qinco_jax.datasets.holdout import cut_training
from qinco_jax.vectors import containers, formats, npy, parquet
from qinco_jax.vectors.shards import read_rows
from qinco_jax.vectors.stored import Stored

DTYPES = ("f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "bfloat16")


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_kind_of_file_holds_the_same(tmp_path: Path, dtype: str) -> None:
    x = (30 * np.abs(X)).astype(np.dtype(dtype))
    for kind, path in every_kind(tmp_path, x).items():
        rows = read_rows(path)
        assert isinstance(rows, np.memmap) == (kind in ("tensor", "contiguous", "member"))
        if isinstance(rows, np.memmap):
            assert rows.mode == "r"
        assert isinstance(rows, Stored) or not rows.flags.writeable
        same(rows, x)
        same(read_rows(f"{path}::emb"), x)


def test_bfloat16_in_npy_is_what_numpy_writes(tmp_path: Path) -> None:
    x = X.astype(npy.BFLOAT16)
    np.save(tmp_path / "x.npy", x)
    same(formats.read(tmp_path / "x.npy"), x)


@pytest.mark.parametrize("kind", ["hdf5", "parquet", "safetensors", "npz"])
def test_one_of_several_is_named(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / f"x.{kind}", X[:, :3]
    if kind == "hdf5":
        write_hdf5(path, emb=X, other=other, ids=np.arange(300))
    elif kind == "parquet":
        write_parquet(path, emb=lists_of(X), other=lists_of(other), ids=np.arange(300))
    elif kind == "npz":
        np.savez(path, emb=X, other=other, ids=np.arange(300))
    else:
        save_file({"emb": X, "other": other.copy(), "ids": np.arange(300)}, path)
    same(read_rows(f"{path}::other"), other)
    for source in (path, f"{path}::ids", f"{path}::nothing"):
        with pytest.raises(InputError, match=r"x\.\w+, which holds .*ids.*::emb"):
            read_rows(source)


@pytest.mark.parametrize("ending", [*containers.ENDINGS, ".npy"])
def test_places_without_vectors_are_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x{ending}"
    with pytest.raises(InputError, match=r"there is no file .*x\."):
        read_rows(path)
    path.touch()
    with pytest.raises(InputError, match="is empty"):
        read_rows(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="is a directory"):
        read_rows(path)
    (tmp_path / f"link{ending}").symlink_to("nowhere")
    with pytest.raises(InputError, match="is a link to nowhere, which is not there"):
        read_rows(tmp_path / f"link{ending}")
    (tmp_path / "x.txt").write_text("1 2 3")
    with pytest.raises(InputError, match=r"unknown ending.*\.fvecs.*\.parquet"):
        read_rows(tmp_path / "x.txt")
    np.save(tmp_path / "one.npy", X)
    with pytest.raises(InputError, match="holds a single array"):
        read_rows(f"{tmp_path}/one.npy::emb")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 2], [3, 4], None], "row 2 of .* no vector, but other rows have 2"),
        ([[1, 2], [3], [5, 6]], "row 1 of .* 1 numbers, but other rows have 2"),
        ([[1, 2], [3, 4], [5, None]], "row 2 of .* lacks a number"),
        ([None, [3, 4]], "row 0 of .* no vector"),
        ([[], []], "2 rows of 0 columns"),
        ([], "no rows"),
    ],
)
@pytest.mark.parametrize("fixed", [False, True])
def test_rows_of_parquet_that_are_not_vectors(
    tmp_path: Path, rows: list[list[float] | None], message: str, fixed: bool
) -> None:
    lengths = {len(row) for row in rows if row is not None}
    if fixed and lengths != {2}:
        return  # such a column cannot hold them
    kind = pa.list_(pa.float32(), 2) if fixed else pa.list_(pa.float32())
    path = write_parquet(tmp_path / "x.parquet", group=1000, e=pa.array(rows, kind))
    with pytest.raises(InputError, match=message):
        np.asarray(read_rows(path))


def test_datasets_of_hdf5_that_are_not_vectors(tmp_path: Path) -> None:
    path = tmp_path / "x.hdf5"
    with h5py.File(path, "w", userblock_size=1024) as file:
        file["moved"] = X
        file.create_dataset("never", (30, 8), "f4")
        file.create_dataset("cut", (300, 8), "f4", chunks=(50, 8))[:100] = X[:100]
        file.create_dataset("outside", X.shape, "f4", external=[("x.raw", 0, X.nbytes)])
        layout = h5py.VirtualLayout(X.shape, "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "y.hdf5"), "y", X.shape)
        file.create_virtual_dataset("virtual", layout)
        file["deep/inside"] = X[:, :4]
        file.create_dataset("none", (0, 8), "f4")
    same(read_rows(f"{path}::moved"), X)
    same(read_rows(f"{path}::deep/inside"), X[:, :4])
    for name, message in (
        ("never", "never filled"), ("cut", "2 of 6 chunks"),
        ("outside", "other files"), ("virtual", "other files"), ("none", "no rows"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            read_rows(f"{path}::{name}")


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int32"])
def test_a_parquet_file_of_one_column_per_dimension_says_how_to_combine_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.chdir(tmp_path)
    x = (30 * X).astype(dtype)
    ids = pa.array(map(str, range(300)))
    write_parquet(Path("x.parquet"), ids=ids, **{f"d{i}": x[:, i] for i in range(8)})
    with pytest.raises(InputError, match="no column of lists, but 8 columns of one") as found:
        read_rows("x.parquet")
    _, code = str(found.value).split("numpy as np: ")
    exec(code, {"pa": pa, "pq": pq, "np": np})
    same(read_rows("vectors.parquet"), x)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_files_close_when_the_rows_are_dropped(tmp_path: Path) -> None:
    paths = every_kind(tmp_path, X)
    gc.collect()
    before = open_files()
    rows = {kind: read_rows(path)[20:] for kind, path in paths.items()}
    read = {kind: np.array(x[5:7]) for kind, x in rows.items()}
    for x in read.values():
        np.testing.assert_array_equal(x, X[25:27])
    del rows  # without waiting for the garbage collector
    assert open_files() == before


def test_threads_read_what_one_thread_reads(tmp_path: Path) -> None:
    for path in every_kind(tmp_path, X).values():
        rows = read_rows(path)
        chosen = [np.random.default_rng(i).integers(0, 300, 20) for i in range(40)]
        with ThreadPoolExecutor(8) as pool:
            for numbers, found in zip(chosen, pool.map(rows.__getitem__, chosen), strict=True):
                np.testing.assert_array_equal(found, X[numbers])


def test_a_row_group_closes_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BLOCK_BYTES", 32 * 8 * 4)
    x = X.copy()
    lists = pa.array([*map(list, x[:150]), None, *map(list, x[151:])], pa.list_(pa.float32(), 8))
    path = write_parquet(tmp_path / "x.parquet", group=1000, e=lists)
    before = open_files()
    rows = read_rows(path)
    for _ in range(2):  # the same after a failure
        np.testing.assert_array_equal(rows[30:40], X[30:40])
        with pytest.raises(InputError, match="row 150 of"):
            np.asarray(rows[149:152])
    np.testing.assert_array_equal(rows[30:40], X[30:40])
    del rows
    assert open_files() == before


def test_a_large_row_group_is_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "BLOCK_BYTES", 32 * 8 * 4)
    decoded = []
    as_rows = parquet._as_rows
    monkeypatch.setattr(
        parquet, "_as_rows", lambda *given: decoded.append(len(given[1])) or as_rows(*given)
    )
    rows = read_rows(write_parquet(tmp_path / "x.parquet", group=200, e=lists_of(X)))
    assert isinstance(rows, Stored) and rows.block_rows == 32
    for begin in range(0, 300, 10):
        np.testing.assert_array_equal(rows[begin : begin + 10], X[begin : begin + 10])
    assert sum(decoded) == 300 and max(decoded) == 32  # in order, nothing is decoded twice
    same(rows, X)


def test_shards_are_joined_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for i, part in enumerate(np.split(X, 12)):
        np.save(tmp_path / f"x-{i}.npy", part)
        write_parquet(tmp_path / f"y-{i}.parquet", e=lists_of(part))
    for pattern in ("x-*.npy", "y-*.parquet", "y-*.parquet::e"):
        same(read_rows(tmp_path / pattern), X)
    same(read_rows(tmp_path / "x-1?.npy"), X[250:])
    same(read_rows(tmp_path / "[x]-3.npy"), X[75:100])
    np.save(tmp_path / "a[b]*.npy", X)
    same(read_rows(tmp_path / "a[b]*.npy"), X)  # a file of that very name
    with pytest.raises(InputError, match="no file matches"):
        read_rows(tmp_path / "z*.npy")
    np.save(tmp_path / "x-12.npy", X[:, :3])
    with pytest.raises(
        InputError, match=r"x-12\.npy holds float32 of 3 .*x-0\.npy holds float32 of 8"
    ):
        read_rows(tmp_path / "x-*.npy")
    np.save(tmp_path / "x-12.npy", X.astype(np.float16))
    with pytest.raises(InputError, match=r"x-12\.npy holds float16 of 8"):
        read_rows(tmp_path / "x-*.npy")


def test_a_folder_of_shards_is_a_set(tmp_path: Path) -> None:
    for i, part in enumerate(np.split(X, 3)):
        write_parquet(tmp_path / f"train-{i:05}-of-00003.parquet", e=lists_of(part))
        np.save(tmp_path / f"base.{i}.npy", part)
    (tmp_path / "queries").mkdir()
    np.save(tmp_path / "queries" / "any.npy", X[:5])
    np.save(tmp_path / "queries" / "more.npy", X[5:9])
    (tmp_path / "queries" / "README.md").write_text("about")
    np.save(tmp_path / "train_labels.npy", X)  # no number behind the stem
    data = datasets.load(tmp_path)
    same(data.train, X)
    assert data.database is not None and data.queries is not None
    same(data.database, X)
    np.testing.assert_array_equal(data.queries, X[:9])
    np.save(tmp_path / "queries.npy", X)
    with pytest.raises(InputError, match=r"both queries/any\.npy and queries\.npy"):
        datasets.load(tmp_path)
    (tmp_path / "queries.npy").unlink()
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(InputError, match=r"2 files like train-00000-of-00003.*, not 3"):
        datasets.load(tmp_path)


def test_patterns_and_names_are_sets(tmp_path: Path) -> None:
    for i, part in enumerate(np.split(X, 3)):
        write_hdf5(tmp_path / f"part{i}.hdf5", a=part, b=part)
    data = datasets.load(f"{tmp_path}/part*.hdf5::b", database=f"{tmp_path}/part[01].hdf5::a")
    same(data.train, X)
    assert data.database is not None and len(data.database) == 200
    assert not set(data.name) & set("*?[]:")
    with pytest.raises(InputError, match="no file matches"):
        datasets.load(f"{tmp_path}/*.fvecs")


@given(data=st.data(), count=st.integers(10, 200), every=st.integers(2, 10))
def test_training_rows_are_cut_off(data: st.DataObject, count: int, every: int) -> None:
    x = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    rows = data.draw(st.sampled_from([x, Stored([x[:7], x[7:]], block_rows=3)]))
    truth = np.random.default_rng(count).permuted(np.tile(np.arange(count), (3, 1)), axis=1)[:, :9]
    train, database, found = cut_training(rows, truth, every)
    same_rows = np.arange(count) % every == every - 1
    np.testing.assert_array_equal(train, x[same_rows])
    np.testing.assert_array_equal(database, x[~same_rows])
    np.testing.assert_array_equal(database[::-3], x[~same_rows][::-3])
    kept = [[i for i in ids if i % every != every - 1] for ids in truth]
    width = min(map(len, kept))
    if width == 0:
        assert found is None
    else:
        assert found is not None and found.dtype == truth.dtype
        expected = x[np.array([ids[:width] for ids in kept])]
        np.testing.assert_array_equal(np.asarray(database)[found], expected)


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("kind", ["hdf5", "npz"])
def test_a_file_of_ann_benchmarks_is_a_set(tmp_path: Path, kind: str) -> None:
    near = np.square(X[:20, None] + 0.01 - X[None]).sum(-1).argsort(axis=1)[:, :30]
    write = write_hdf5 if kind == "hdf5" else write_npz
    path = write(
        tmp_path / f"x.{kind}", train=X, test=X[:20] + 0.01, neighbors=near.astype(np.int32),
        distances=np.zeros((20, 30), np.float32),
    )  # fmt: skip
    data = datasets.load(path)
    np.testing.assert_array_equal(data.train, X[9::10])
    assert data.database is not None and data.queries is not None and data.groundtruth is not None
    assert (data.database.shape, data.queries.shape) == ((270, 8), (20, 8))
    database = np.asarray(data.database)
    exact = np.square(data.queries[:][:, None] - database[None]).sum(-1).argsort(axis=1)
    np.testing.assert_array_equal(data.groundtruth, exact[:, : data.groundtruth.shape[1]])
    same(datasets.load(f"{path}::train").train, X)
    assert data.metric is None
    with pytest.raises(InputError, match="only 9"):
        cut_training(X[:9], None)


@pytest.mark.parametrize("kind", ["hdf5", "npz"])
def test_a_file_with_several_parts_is_a_set(tmp_path: Path, kind: str) -> None:
    write = write_hdf5 if kind == "hdf5" else write_npz
    near = np.tile(np.arange(5), (20, 1))
    path = write(
        tmp_path / f"x.{kind}", train=X[:200], base=X[200:], queries=X[:20], groundtruth=near,
        label=np.arange(200), val=np.arange(3),
    )  # fmt: skip
    data = datasets.load(path)
    assert data.database is not None and data.queries is not None and data.validation is None
    for part, x in ((data.train, X[:200]), (data.database, X[200:]), (data.queries, X[:20])):
        same(part, x)
    np.testing.assert_array_equal(data.groundtruth, near)
    same(datasets.load(f"{path}::base").train, X[200:])
    write(path, train=X, base=X, database=X)
    with pytest.raises(InputError, match="holds database and base, which are names of the same"):
        datasets.load(path)
    write(path, train=X, label=np.arange(300))
    assert datasets.load(path).queries is None


@pytest.mark.parametrize(
    ("distance", "metric"),
    [("euclidean", "l2"), ("Angular", "cosine"), (b"angular", "cosine"), ([b"angular"], "cosine")],
)
def test_a_file_of_ann_benchmarks_names_its_metric(
    distance: str | bytes | list[bytes], metric: str, tmp_path: Path
) -> None:
    neighbors = np.tile(np.arange(30, dtype=np.int32), (20, 1))
    path = write_hdf5(tmp_path / "x.hdf5", train=X, test=X[:20], neighbors=neighbors)
    with h5py.File(path, "a") as file:
        file.attrs["distance"] = distance
    assert datasets.load(path).metric == metric
    with h5py.File(path, "a") as file:
        file.attrs["distance"] = "jaccard"
    with pytest.raises(InputError, match="'jaccard', and files of ann-benchmarks are"):
        datasets.load(path)
    same(datasets.load(f"{path}::train").train, X)
