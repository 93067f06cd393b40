"""Vectors, codes and models in object storage: the same as on disk, or one sentence."""

import io
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import s3
from click.testing import CliRunner, Result

import qinco_jax as qj
from qinco_jax.cli.main import main
from qinco_jax.models import codes
from qinco_jax.remote import copies, failures
from qinco_jax.remote.paths import RemotePath
from qinco_jax.vectors.convert import convert
from qinco_jax.vectors.shards import read_rows

X = np.random.default_rng(0).normal(size=(20_000, 16)).astype(np.float32)
CONFIG = qj.QincoConfig(num_steps=2, codebook_size=8, hidden_dim=4, num_candidates=2, beam_size=2)


@pytest.fixture(scope="module")
def store() -> Iterator[s3.Store]:
    with s3.serving() as running:
        yield running


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QINCO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(failures, "PAUSE_SECONDS", 0.001)


@pytest.fixture(scope="module")
def model() -> qj.Qinco:
    return qj.train(X[:500], CONFIG, num_epochs=0)


def qinco(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def put(name: str, content: bytes, folder: Path) -> str:
    (folder / "content").write_bytes(content)
    copies.upload(folder / "content", RemotePath(f"s3://bucket/{name}"))
    return f"s3://bucket/{name}"


# Vectors


@pytest.mark.parametrize(
    "ending", [".npy", ".fvecs", ".fbin", ".hdf5", ".parquet", ".safetensors", ".npz"]
)
def test_rows_are_those_of_the_local_file_and_come_in_parts(
    ending: str, store: s3.Store, tmp_path: Path
) -> None:
    if ending == ".npz":
        np.savez(tmp_path / "x.npz", x=X)
        url = put("all/x.npz", (tmp_path / "x.npz").read_bytes(), tmp_path)
    else:
        np.save(tmp_path / "x.npy", X)
        url = f"s3://bucket/all/x{ending}"
        convert(tmp_path / "x.npy", url)
    store.sent.clear()
    rows = pickle.loads(pickle.dumps(read_rows(url))) if ending == ".npy" else read_rows(url)
    assert (rows.shape, rows.dtype) == (X.shape, X.dtype)
    np.testing.assert_array_equal(rows[700:800], X[700:800])
    if ending != ".parquet":  # one row group
        assert sum(store.sent) < 500_000
    for begin in range(0, len(X), 3000):
        np.testing.assert_array_equal(rows[begin : begin + 3000], X[begin : begin + 3000])
    assert sum(store.sent) < (3 if ending == ".parquet" else 1.2) * X.nbytes + 300_000


def test_chunks_folders_patterns_and_sets(store: s3.Store, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file.create_dataset("a", data=X, chunks=(1000, 16), compression="gzip")
        file["b"] = X[:5]
    chunked = put("more/x.hdf5", (tmp_path / "x.hdf5").read_bytes(), tmp_path)
    np.testing.assert_array_equal(read_rows(f"{chunked}::a")[1500:7500], X[1500:7500])
    for number, part in enumerate(np.split(X, 10)):
        buffer = io.BytesIO()
        np.save(buffer, part)
        put(f"set/train-{number}.npy", buffer.getvalue(), tmp_path)
        if number == 0:
            put("set/queries.npy", buffer.getvalue(), tmp_path)
    np.testing.assert_array_equal(read_rows("s3://bucket/set/train-*.npy"), X)
    data = qj.datasets.load("s3://bucket/set")
    np.testing.assert_array_equal(data.train, X)
    assert data.queries is not None and len(data.queries) == 2000
    rows = np.random.default_rng(1).integers(0, len(X), 300)
    np.testing.assert_array_equal(data.train[rows], X[rows])


def test_a_damaged_row_is_named_when_it_is_read(store: s3.Store, tmp_path: Path) -> None:
    records = np.zeros(50, [("dim", "<i4"), ("row", "<f4", 4)])
    records["dim"] = 4
    records["dim"][30] = 3
    rows = read_rows(put("bad.fvecs", records.tobytes(), tmp_path))
    assert len(rows[:30]) == 30
    with pytest.raises(qj.InputError, match=r"row 30 of s3://bucket/bad.fvecs has dimension 3"):
        np.asarray(rows[20:40])
    np.save(tmp_path / "x.npy", np.asfortranarray(X[:50]))
    with pytest.raises(qj.InputError, match="is in Fortran order"):
        read_rows(put("fortran.npy", (tmp_path / "x.npy").read_bytes(), tmp_path))


def test_a_file_that_changes_is_noticed(
    store: s3.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", X)
    url = put("changing.npy", (tmp_path / "x.npy").read_bytes(), tmp_path)
    rows = read_rows(url)
    np.testing.assert_array_equal(rows[:10], X[:10])
    np.save(tmp_path / "x.npy", -X)
    put("changing.npy", (tmp_path / "x.npy").read_bytes(), tmp_path)
    for fresh in (rows, pickle.loads(pickle.dumps(rows))):
        with pytest.raises(qj.InputError, match=f"{url} has changed since it was opened; start"):
            np.asarray(fresh[10_000:10_010])
    np.testing.assert_array_equal(read_rows(url)[:10], -X[:10])


# Models and codes


@pytest.mark.parametrize("name", ["model", "model.safetensors"])
def test_a_model_is_saved_and_loaded(
    name: str, store: s3.Store, model: qj.Qinco, tmp_path: Path
) -> None:
    url = f"s3://bucket/models/{name}"
    qj.save(model, url)
    with pytest.raises(qj.InputError, match=f"{url} exists"):
        qj.save(model, url)
    found = qj.load(url)
    np.testing.assert_array_equal(qj.encode(found, X[:50]), qj.encode(model, X[:50]))
    store.sent.clear()
    qj.load(url)
    assert sum(store.sent) < 10_000  # lists and no files: the copy is of this version
    other = model.replace(mean=model.mean + 1)
    qj.save(other, tmp_path / name)
    copies.upload(tmp_path / name, RemotePath(url))
    np.testing.assert_array_equal(qj.load(url).mean, other.mean)
    with pytest.raises(qj.InputError, match="s3://bucket/none does not exist; check the bucket"):
        qj.load("s3://bucket/none")


def test_encode_and_decode_from_bucket_to_bucket(
    store: s3.Store, model: qj.Qinco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", X[:500])
    x = put("x.npy", (tmp_path / "x.npy").read_bytes(), tmp_path)
    qj.save(model, "s3://bucket/m")

    def fails(*_: object) -> None:
        raise qj.InputError("no upload now")

    with monkeypatch.context() as patch:
        patch.setattr(copies, "upload", fails)
        with pytest.raises(qj.InputError, match="no upload now"):
            codes.write("s3://bucket/codes.npy", model, read_rows(x))
    with monkeypatch.context() as patch:
        patch.setattr(codes, "_write", fails)  # the codes wait
        ran = qinco("encode", "s3://bucket/m", x, "s3://bucket/codes.npy")
        assert ran.exit_code == 0, ran.output
    assert not list((tmp_path / "cache").rglob("codes.npy*"))
    beside = json.loads(RemotePath("s3://bucket/codes.npy.json").read_bytes())
    assert beside["vectors"]["shape"] == [500, 16]
    again = qinco("encode", "s3://bucket/m", x, "s3://bucket/codes.npy")
    assert again.exit_code == 2 and "codes.npy exists" in again.output
    ran = qinco("decode", "s3://bucket/m", "s3://bucket/codes.npy", "s3://bucket/again.npy")
    assert ran.exit_code == 0, ran.output
    expected = qj.decode(model, qj.encode(model, X[:500]))
    np.testing.assert_allclose(read_rows("s3://bucket/again.npy"), expected, atol=1e-6)


# What goes wrong


@pytest.mark.parametrize(
    "url, says",
    [
        ("s3://bucket/none.npy", "there is no file s3://bucket/none.npy; check its name and buck"),
        ("s3://nowhere/x.npy", "there is no file s3://nowhere/x.npy; check its name and bucket"),
        ("s3://bucket/none-*.npy", "no file matches the pattern s3://bucket/none-"),
        ("gs://b/x.npy", r"gs://b/x.npy needs a package.*; pip install 'qinco_jax\[gcs\]'"),
        ("hf://datasets/a/b/x.npy", r"needs a package.*; pip install 'qinco_jax\[hf\]'"),
        ("nothing://x.npy", "nothing://x.npy has the unknown scheme 'nothing'; use s3"),
    ],
)
def test_what_is_not_there_is_one_sentence(
    url: str, says: str, store: s3.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("gcsfs", "huggingface_hub"):  # if a machine has them
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(qj.InputError, match=says):
        read_rows(url)


def test_writing_to_no_bucket_and_to_the_web(
    store: s3.Store, model: qj.Qinco, tmp_path: Path
) -> None:
    with pytest.raises(qj.InputError, match=r"s3://nowhere/m.* does not exist; check the bucket"):
        qj.save(model, "s3://nowhere/m")
    with pytest.raises(qj.InputError, match=r"http://127.0.0.1:1/m can only be read"):
        qj.save(model, "http://127.0.0.1:1/m")
    with pytest.raises(qj.InputError, match="must be on this machine here; give a local path"):
        qj.train(X[:100], CONFIG, run_dir="s3://bucket/run")


def test_no_credentials_and_no_host(store: s3.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("HOME", "/nonexistent")
    for name in s3.USER:
        if "KEY" in name:
            monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(qj.InputError, match="needs credentials, but there are none; set AWS_ACC"):
        read_rows("s3://bucket/x.npy")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(qj.InputError, match=r"s3://bucket/x.npy cannot be reached \(.*; check the"):
        read_rows("s3://bucket/x.npy")
    s3fs.S3FileSystem.clear_instance_cache()
