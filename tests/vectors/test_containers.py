"""Vectors in containers and shards read like one array, and any damage is named."""

import gc
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from qinco_jax import InputError, datasets
from qinco_jax.cli import main as cli
from qinco_jax.datasets.holdout import cut_training
from qinco_jax.vectors import containers, formats, npy, parquet
from qinco_jax.vectors.convert import ENDINGS, convert
from qinco_jax.vectors.shards import read_rows
from qinco_jax.vectors.stored import Rows, Stored

X = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)


def lists_of(x: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])


def write_parquet(path: Path, group: int = 100, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def write_hdf5(path: Path, chunks: tuple[int, int] | None = None, **datasets: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, x in datasets.items():
            file.create_dataset(name, data=x, chunks=chunks, compression=chunks and "gzip")
    return path


def every_kind(folder: Path, x: np.ndarray) -> dict[str, Path]:
    """The same vectors in each way that containers hold them."""
    save_file({"emb": x}, folder / "x.safetensors")
    np.savez(folder / "x.npz", emb=x)
    np.savez_compressed(folder / "y.npz", emb=x)
    found = {
        "tensor": folder / "x.safetensors", "member": folder / "x.npz",
        "compressed member": folder / "y.npz",
    }  # fmt: skip
    if x.dtype != npy.BFLOAT16:
        found["contiguous"] = write_hdf5(folder / "x.hdf5", emb=x)
        found["chunked"] = write_hdf5(folder / "y.h5", chunks=(32, x.shape[1]), emb=x)
        found["fixed lists"] = write_parquet(folder / "x.parquet", emb=lists_of(x))
        found["lists"] = write_parquet(folder / "y.parquet", emb=lists_of(x).cast(
            pa.list_(pa.from_numpy_dtype(x.dtype))))  # fmt: skip
    return found


def same(stored: Rows, x: np.ndarray) -> None:
    assert (stored.shape, stored.dtype, stored.ndim) == (x.shape, x.dtype, 2)
    np.testing.assert_array_equal(stored, x)
    rows = np.random.default_rng(1).integers(-len(x), len(x), 50)
    np.testing.assert_array_equal(stored[rows], x[rows])
    np.testing.assert_array_equal(stored[7:50][3:9], x[10:16])


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


# Conversion


NUMBERS = {  # numbers that each format takes
    ".fvecs": "f4", ".fbin": "f4", ".ivecs": "i4", ".ibin": "i4", ".bvecs": "u1", ".u8bin": "u1",
    ".i8bin": "i1",
}  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", ["f2", "f4", "u1", "bfloat16"])
def test_conversion_keeps_every_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, dtype: str
) -> None:
    monkeypatch.setattr("qinco_jax.vectors.convert.BLOCK_BYTES", 2000)
    x = np.random.default_rng(0).integers(0, 100, (300, 8)).astype(np.dtype(dtype))
    np.save(tmp_path / "x.npy", x)
    done: list[tuple[int, int]] = []
    target = tmp_path / f"y{ending}"
    if dtype == "bfloat16" and ending in (".hdf5", ".h5", ".parquet"):
        with pytest.raises(InputError, match="cannot hold bfloat16"):
            convert(tmp_path / "x.npy", target)
        assert len(list(tmp_path.iterdir())) == 1
        return
    convert(tmp_path / "x.npy", target, progress=lambda *at: done.append(at))
    assert len(done) >= 2 and done[-1] == (300, 300)
    same(read_rows(target), x.astype(NUMBERS.get(ending, x.dtype)))
    convert(target, tmp_path / "back.npy", np.dtype(dtype))
    same(read_rows(tmp_path / "back.npy"), x)
    with pytest.raises(InputError, match="exists"):
        convert(tmp_path / "x.npy", target)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("x", "target", "dtype", "bad"),
    [
        ([[1.0], [2.5]], "y.bvecs", None, "row 1 .* 2.5"),
        ([[0.0], [np.nan]], "y.u8bin", None, "row 1 .* nan"),
        ([[255.0], [256.0]], "y.npy", "uint8", "row 1 .* 256"),
        ([[-1.0], [2.0]], "y.npy", "uint8", "row 0 .* -1"),
        (np.array([[1], [2**63]], np.uint64), "y.npy", "int64", "row 1"),
        (np.array([[1], [2**24 + 1]], np.int32), "y.fvecs", None, "row 1"),
        (np.array([[1], [2**63 - 1]]), "y.npy", "float64", "row 1"),
        (np.array([[2.0**63], [1]]), "y.npy", "int64", "row 0"),
        (np.array([[0.1], [1]]), "y.fvecs", None, "row 0 .* 0.1"),
        (np.array([[0.1], [1e6]]), "y.npy", "float16", "row 1 .* 1000000"),
    ],
)
def test_what_would_change_is_refused(
    tmp_path: Path, x: object, target: str, dtype: str | None, bad: str
) -> None:
    np.save(tmp_path / "x.npy", np.asarray(x))
    with pytest.raises(InputError, match=bad):
        convert(tmp_path / "x.npy", tmp_path / target, dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_floats_are_rounded_where_that_is_asked_for(tmp_path: Path) -> None:
    x = np.array([[0.1, np.nan], [np.inf, -0.0]])
    np.save(tmp_path / "x.npy", x)
    for dtype in ("float16", "bfloat16", "float32"):
        convert(tmp_path / "x.npy", tmp_path / f"{dtype}.safetensors", dtype)
        found = read_rows(tmp_path / f"{dtype}.safetensors")
        expected = x.astype(np.dtype(dtype))
        np.testing.assert_array_equal(np.float32(found), np.float32(expected))


def test_the_command_converts(tmp_path: Path) -> None:
    for i, part in enumerate(np.split(X, 3)):
        write_parquet(tmp_path / f"x-{i}.parquet", emb=lists_of(part), ids=np.arange(100))
    source, target = f"{tmp_path}/x-*.parquet::emb", tmp_path / "y.safetensors"

    def command(*options: str) -> Result:
        return CliRunner().invoke(cli.main, ["data", "convert", source, str(target), *options])

    assert command("--dtype", "bfloat16").exit_code == 0
    same(read_rows(target), X.astype(npy.BFLOAT16))
    ran = command()
    assert ran.exit_code == 2 and ran.output.strip().endswith("remove it first")


# Damage


def read_all(path: Path) -> int:
    """Reads what the file claims to hold, as far as 2^22 numbers; 0 if it was refused."""
    try:
        rows = read_rows(path)
        assert rows.ndim == 2 and len(rows) >= 1
        step = max(1, 2**20 // rows.shape[1])
        for begin in range(0, min(len(rows), 4 * step), step):
            np.asarray(rows[begin : begin + step])
        np.asarray(rows[-1:])
    except InputError as error:
        assert "x." in str(error) and len(str(error)) < 2000, error
        return 0
    return len(rows)


def sound(folder: Path) -> dict[str, list[bytes]]:
    """Small files of each ending, without damage."""
    x = X[:40]
    np.save(folder / "x.npy", x)
    found: dict[str, list[bytes]] = {}
    for ending in formats.NEW_ENDINGS:
        path = folder / f"sound{ending}"
        with formats.create(path, x.shape, NUMBERS.get(ending, "f4")) as rows:
            rows[:] = (9 * np.abs(x)).astype(rows.dtype)
        found[ending] = [path.read_bytes()]
    for path in every_kind(folder, x).values():
        found.setdefault(path.suffix, []).append(path.read_bytes())
    with h5py.File(folder / "latest.hdf5", "w", libver="latest") as file:
        file.create_dataset("emb", data=x, chunks=(16, 8), shuffle=True, compression="gzip")
    pieces = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
    for number, kind in enumerate(pieces):  # beside other members
        with zipfile.ZipFile(folder / f"{number}.npz", "w", kind) as archive:
            archive.write(folder / "x.npy", "emb.npy")
            archive.writestr("about.txt", "vectors")
        found[".npz"].append((folder / f"{number}.npz").read_bytes())
    found[".hdf5"] += [(folder / "latest.hdf5").read_bytes(), *found.pop(".h5")]
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    return sound(tmp_path_factory.mktemp("sound"))


WORDS = [b"\xff", b"\0", b"\x80", b"\x7f", b"\xff" * 4, b"\0" * 4, b"\xff" * 8, b"[" * 8, b"9" * 8]
WORDS += [b"\xff\xff\xff\x7f", b"\xff" * 7 + b"\x7f", b"\0\0\0\0\1\0\0\0"]
FUZZED = [*formats.NEW_ENDINGS, ".hdf5", ".parquet", ".safetensors", ".npz"]


@pytest.mark.parametrize("ending", FUZZED)
@settings(max_examples=150)
@given(data=st.data())
def test_damage_anywhere_is_refused_or_read(
    files: dict[str, list[bytes]], ending: str, data: st.DataObject
) -> None:
    content = bytearray(data.draw(st.sampled_from(files[ending])))
    size = len(content)
    ends = st.one_of(
        st.integers(0, size - 1), st.integers(0, min(150, size - 1)),
        st.integers(max(0, size - 1200), size - 1),
    )  # fmt: skip
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(ends)
        if data.draw(st.booleans()):
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        else:
            word = data.draw(st.one_of(st.sampled_from(WORDS), st.binary(min_size=1, max_size=8)))
            content[place : place + len(word)] = word
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x{ending}")
        path.write_bytes(content)
        read_all(path)
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize("ending", FUZZED)
@settings(max_examples=60)
@given(data=st.data())
def test_every_cut_is_refused(
    files: dict[str, list[bytes]], ending: str, data: st.DataObject
) -> None:
    content = data.draw(st.sampled_from(files[ending]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x{ending}")
        path.write_bytes(content)
        whole = read_all(path)
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        assert whole == 40 and (read_all(path) == 0 or ending.endswith("vecs"))


@pytest.mark.parametrize("ending", FUZZED)
@settings(max_examples=60)
@given(content=st.binary(max_size=400), after=st.booleans())
def test_random_bytes_are_refused(
    files: dict[str, list[bytes]], ending: str, content: bytes, after: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x{ending}")
        path.write_bytes(files[ending][0][:16] * after + content)
        read_all(path)


def array_of(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64)


def tensors(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(64)


HOSTILE = {
    "rows.npy": array_of("(1000000000000000000, 8)"),
    "product.npy": array_of("(4611686018427387904, 4)"),
    "negative.npy": array_of("(-1, -4)"),
    "digits.npy": array_of("(" + "9" * 5000 + ", 4)"),
    "deep.npy": array_of("(" * 9000),
    "header.npy": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(64),
    "rows.fbin": struct.pack("<II", 2**32 - 1, 10**6) + bytes(64),
    "dim.fvecs": struct.pack("<i", 2**31 - 1) + bytes(64),
    "length.safetensors": tensors(b"{}", 2**63),
    "last.safetensors": tensors(b"{}", 2**64 - 1),
    "deep.safetensors": tensors(b'{"a":' * 10**6),
    "lists.safetensors": tensors(b"[" * 10**6),
    "digits.safetensors": tensors(
        b'{"a":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64],"b":' + b"9" * 10**6 + b"}}"
    ),
    "shape.safetensors": tensors(
        b'{"a":{"dtype":"F32","shape":[4611686018427387904,16],"data_offsets":[0,64]}}'
    ),
    "offsets.safetensors": tensors(
        b'{"a":{"dtype":"F32","shape":[4,4],"data_offsets":[18446744073709551552,0]}}'
    ),
    "twice.safetensors": tensors(
        b'{"a":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64]},'
        b'"a":{"dtype":"F32","shape":[1000,1000],"data_offsets":[0,4000000]}}'
    ),
    "more.safetensors": tensors(
        b'{"a":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64],"more":[{}]}}'
    ),
    "names.safetensors": tensors(
        b"{" + b",".join(
            b'"%d":{"dtype":"F32","shape":[0,1],"data_offsets":[0,0]}' % i for i in range(20_000)
        ) + b',"a":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64]}}'
    ),
    "footer.parquet": b"PAR1" + bytes(64) + b"\xff\xff\xff\xffPAR1",
    "thrift.parquet": b"PAR1" + b"\x19\xfc\xff\xff\xff\xff\x0f" * 100 + struct.pack("<I", 700)
    + b"PAR1",
}  # fmt: skip


def write_hostile(folder: Path) -> None:
    """Files that claim the most for the fewest bytes."""
    for name, content in HOSTILE.items():
        (folder / name).write_bytes(content)
    for name in ("rows", "product", "digits"):
        for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            with zipfile.ZipFile(folder / f"{name}-{kind}.npz", "w", kind) as archive:
                archive.writestr("a.npy", HOSTILE[f"{name}.npy"])
    long = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**29) + bytes(2**29)
    with zipfile.ZipFile(folder / "header.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", long)
    claim = bytearray((folder / "rows-8.npz").read_bytes())
    place = claim.index(b"PK\x01\x02") + 24  # the size in the directory
    claim[place : place + 4] = struct.pack("<I", 2**32 - 2)
    (folder / "claim.npz").write_bytes(claim)
    with h5py.File(folder / "sparse.hdf5", "w") as file:
        file.create_dataset("a", (10**15, 100), "f4", chunks=(10**4, 100))
    with h5py.File(folder / "unwritten.hdf5", "w") as file:
        file.create_dataset("a", (10**15, 100), "f4")
    with h5py.File(folder / "bomb.hdf5", "w") as file:
        bomb = np.zeros((2 * 10**6, 16), np.float32)
        file.create_dataset("a", data=bomb, chunks=bomb.shape, compression="gzip")
    with h5py.File(folder / "chunk.hdf5", "w") as file:
        options = {"chunks": (2**26, 15), "compression": "gzip", "maxshape": (None, 15)}
        file.create_dataset("a", (1000, 15), "f4", **options)
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(bomb.reshape(-1)), 16)
    pq.write_table(pa.table({"a": zeros}), folder / "bomb.parquet", compression="zstd")


def test_hostile_files_take_little_memory_and_time(tmp_path: Path) -> None:
    """In a process of its own, which would be killed, or would run into its limit of memory."""
    write_hostile(tmp_path)
    ran = subprocess.run(
        [sys.executable, __file__, tmp_path], capture_output=True, text=True, timeout=500,
        check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr


def main(folder: Path) -> None:
    np.asarray(read_rows(folder / "bomb.parquet")[:10])  # what is imported is there
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**30, size + 2**30))
    for path in sorted(folder.iterdir()):
        begin = time.process_time()
        try:
            rows = read_rows(path)
            found = f"{len(rows)} rows"
            np.asarray(rows[:1000])
            np.asarray(rows[-1:])
        except InputError as error:
            found = str(error)[:150]
        seconds = time.process_time() - begin
        print(path.name, found, f"{seconds:.2f} s")
        assert seconds < 20
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used
    print(f"{grown / 1024:.0f} MiB more")
    assert grown < 400 * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
