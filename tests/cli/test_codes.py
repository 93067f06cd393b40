"""`qinco encode`, `decode` and `evaluate`: files to files, and what they measure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_run import SMALL, qinco

import qinco_jax as qj
from qinco_jax import datasets
from qinco_jax.quantizers.packing import from_rows, unpack
from qinco_jax.vectors import formats


def test_files_go_through_encode_and_decode(folder: Path) -> None:
    model, codes, vectors = folder / "run" / "model", folder / "codes.npy", folder / "x.fvecs"
    assert qinco("encode", model, folder / "database.npy", codes).exit_code == 0
    assert qinco("decode", model, codes, vectors).exit_code == 0
    x = np.load(folder / "database.npy")
    expected = np.asarray(qj.encode(qj.load(model), x))
    packed = np.load(codes, mmap_mode="r")
    assert packed.shape == (300, 2)
    np.testing.assert_array_equal(unpack(packed, 4, 16), expected)
    np.testing.assert_allclose(
        formats.read(vectors), qj.decode(qj.load(model), expected), rtol=1e-5, atol=1e-5
    )
    prefix = folder / "prefix.npy"
    np.save(prefix, packed[:, :1])
    assert qinco("decode", model, prefix, folder / "prefix.fbin").exit_code == 2  # 1 or 2 steps


def test_vectors_in_shards_are_encoded_as_in_one_file(folder: Path, tmp_path: Path) -> None:
    model, codes = folder / "run" / "model", tmp_path / "codes.npy"
    for i, part in enumerate(np.split(np.load(folder / "database.npy"), 3)):
        lists = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), 8)
        pq.write_table(pa.table({"emb": lists}), tmp_path / f"x{i}.parquet", row_group_size=30)
    assert qinco("encode", model, tmp_path / "x*.parquet", codes).exit_code == 0
    expected = np.asarray(qj.encode(qj.load(model), np.load(folder / "database.npy")))
    np.testing.assert_array_equal(unpack(np.load(codes), 4, 16), expected)


def test_codes_of_any_codebook_size_are_kept(folder: Path) -> None:
    model = qj.train(np.load(folder / "train.npy"), qj.QincoConfig(
        num_steps=2, codebook_size=12, hidden_dim=4, num_candidates=3, beam_size=2), num_epochs=0,
    )  # fmt: skip
    qj.save(model, folder / "twelve")
    codes = folder / "twelve.npy"
    assert qinco("encode", folder / "twelve", folder / "queries.npy", codes).exit_code == 0
    assert qinco("decode", folder / "twelve", codes, folder / "twelve.fbin").exit_code == 0
    np.save(folder / "beyond.npy", np.load(codes) + np.uint8(12))
    ran = qinco("decode", folder / "twelve", folder / "beyond.npy", folder / "beyond.fbin")
    assert ran.exit_code == 2 and "row 0, column 0 is outside 0..11" in ran.output
    assert not (folder / "beyond.fbin").exists()


def test_evaluate_prints_and_writes_the_table(folder: Path) -> None:
    out = folder / "results.jsonl"
    ran = qinco(
        "evaluate", folder / "run" / "model", "--dataset", folder, "--beam-size", 4,
        "--num-candidates", 16, "--eval-rows", 200, "--out", out,
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert "first 200 of 300" in ran.output and "| QINCo2 A=16 B=4 |" in ran.output
    assert len(out.read_text().splitlines()) == 4


def test_a_set_is_searched_by_its_own_metric(tmp_path: Path) -> None:
    """Directions and lengths are independent, so the metrics disagree on who is nearest."""
    rng = np.random.default_rng(0)
    x, queries = (rng.normal(size=(n, 8)) * rng.lognormal(size=(n, 1)) for n in (6000, 30))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    truth = (-queries @ unit.T).argsort(axis=1)[:, :200].astype(np.int32)
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        for name, rows in (("train", x), ("test", queries)):
            file[name] = rows.astype(np.float32)
        file["neighbors"] = truth
        file.attrs["distance"] = "angular"
    out = tmp_path / "run"
    ran = qinco("train", "--dataset", tmp_path / "x.hdf5", "--out", out, *SMALL)
    assert ran.exit_code == 0 and "30 queries by cosine" in ran.output, ran.output
    shown = qinco("evaluate", out / "model", "--dataset", tmp_path / "x.hdf5")
    assert shown.exit_code == 0 and "30 queries by cosine" in shown.output, shown.output
    rows = qj.compare(datasets.load(tmp_path / "x.hdf5"), ["rq"], [1], tmp_path / "all")
    assert [row["queries"] for row in rows] == ["cosine"]


def test_64_bit_mode_changes_no_codes(folder: Path, tmp_path: Path) -> None:
    for bits in ("0", "1"):
        codes = tmp_path / f"{bits}.npy"
        arguments = "encode", folder / "run" / "model", folder / "database.npy", codes
        env = {**os.environ, "JAX_ENABLE_X64": bits}
        subprocess.run([sys.executable, "-m", "qinco_jax", *arguments], check=True, env=env)
    assert (tmp_path / "0.npy").read_bytes() == (tmp_path / "1.npy").read_bytes()


@pytest.mark.parametrize(("joint", "dtype"), [(True, "float32"), (False, "bfloat16")])
def test_encode_searches_as_asked(folder: Path, tmp_path: Path, joint: bool, dtype: str) -> None:
    model, x = qj.load(folder / "run" / "model"), np.load(folder / "database.npy")
    codes = tmp_path / "codes.npy"
    ran = qinco(
        "encode", folder / "run" / "model", folder / "database.npy", codes,
        "--num-candidates", 3, "--beam-size", 4, "--joint" if joint else "--each",
        "--compute-dtype", dtype,
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    expected = qj.encode(model, x, num_candidates=3, beam_size=4, joint=joint, compute_dtype=dtype)
    np.testing.assert_array_equal(from_rows(np.load(codes), model.config), expected)


def test_a_second_process_compiles_nothing(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "cache" / "qinco_jax"
    every = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # how long it takes varies
    env = {**os.environ, **every, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    del env["JAX_COMPILATION_CACHE_DIR"]

    def encode() -> tuple[set[str], bytes]:
        codes = tmp_path / "codes.npy"
        codes.unlink(missing_ok=True)
        arguments = "encode", folder / "run" / "model", folder / "database.npy", codes
        subprocess.run([sys.executable, "-m", "qinco_jax", *arguments], env=env, check=True)
        return {path.name for path in kept.glob("*-cache")}, codes.read_bytes()

    first, codes = encode()
    assert any("chunk" in name for name in first)
    assert encode() == (first, codes)
    for entry in kept.glob("*-cache"):
        entry.write_bytes(entry.read_bytes()[:100])
    assert encode()[1] == codes  # damage costs a compilation, no more


def test_given_codes_are_measured_as_they_are(folder: Path, tmp_path: Path) -> None:
    """Here greedy ones; codes of other vectors or of another model are refused."""
    codes, out = tmp_path / "codes.npy", tmp_path / "results.jsonl"
    encode = ("encode", folder / "run", folder / "database.npy", codes, "--beam-size", 1)
    assert qinco(*encode).exit_code == 0
    ran = qinco("evaluate", folder / "run", "--dataset", folder, "--codes", codes, "--out", out)
    assert ran.exit_code == 0, ran.output
    (row,) = map(json.loads, out.read_text().splitlines())
    model, x = qj.load(folder / "run"), np.load(folder / "database.npy")
    found = qj.decode(model, unpack(np.load(codes), 4, 16))
    assert row["codec"] == "codes of codes.npy"
    assert row["mse"] == pytest.approx(qj.mse(x, found), rel=1e-5)
    assert row["reading_bytes"] - 2 == (row["reading"] != "reconstruction")
    assert (
        0 < row["reading_recall@1"] <= row["reading_recall@10"] and "| R@1* | R@10* |" in ran.output
    )
    again = ("evaluate", folder / "run", "--dataset", folder, "--codes", codes)
    ran = qinco(*again, "--database", folder / "queries.npy")
    assert ran.exit_code == 2 and "holds 300 codes of 40 vectors" in ran.output
    database = folder / "database.npy"
    ran = qinco("evaluate", folder / "run", "--dataset", database, "--codes", codes)
    assert ran.exit_code == 2 and f"use --database {database} to name" in ran.output
    np.save(tmp_path / "reversed.npy", x[::-1])
    ran = qinco(*again, "--database", tmp_path / "reversed.npy")
    assert ran.exit_code == 2 and "or of these in another order" in ran.output
    other = qj.train(np.load(folder / "train.npy"), qj.load(folder / "run").config, num_epochs=0)
    qj.save(other, tmp_path / "other")
    for command in (
        ["evaluate", tmp_path / "other", "--dataset", folder, "--codes", codes],
        ["decode", tmp_path / "other", codes, tmp_path / "x.fbin"],
    ):
        ran = qinco(*command)
        assert ran.exit_code == 2 and "codes of another model" in ran.output
