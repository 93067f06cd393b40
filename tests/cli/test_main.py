"""The command line as a user meets it: a small run from files to table, and bad input."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import qinco_jax as qj
from qinco_jax import datasets
from qinco_jax.cli import main as cli
from qinco_jax.cli import measure
from qinco_jax.cli import train as train_command
from qinco_jax.files import locked
from qinco_jax.quantizers.packing import from_rows, unpack
from qinco_jax.training import loop, run_folder
from qinco_jax.training.estimate import Costs
from qinco_jax.vectors import formats
from qinco_jax.vectors.stored import fingerprint

SMALL = [
    "--bytes",
    "2",
    "--set",
    "codebook_size=16",
    "--set",
    "hidden_dim=16",
    "--set",
    "num_epochs=2",
]


def qinco(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of vectors and a finished run on them."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    for name, num_rows in (("train", 1000), ("database", 300), ("queries", 40)):
        rows = rng.normal(size=(num_rows, 8)) * np.linspace(1, 3, 8)
        np.save(folder / f"{name}.npy", np.float16(rows))
    ran = qinco("train", "--dataset", folder, "--out", folder / "run", *SMALL)
    assert ran.exit_code == 0, ran.output
    return folder


def test_train_leaves_a_model_a_table_and_a_plot(folder: Path) -> None:
    run = folder / "run"
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    names = ["RQ B=32", "QINCo2 A=2 B=32 joint, before training", "QINCo2 A=2 B=32 joint"]
    assert [(row["codec"], row["bytes"]) for row in rows] == [
        *((names[0], rate) for rate in (0.5, 1, 1.5, 2)), (names[1], 2),
        *((names[2], rate) for rate in (0.5, 1, 1.5, 2)),
    ]  # fmt: skip
    for row in rows:
        assert 0 <= row["recall@1"] <= row["recall@10"] <= row["recall@100"] <= 1
    assert (run / "results.png").read_bytes().startswith(b"\x89PNG")
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in metrics if "val_mse" in record] == [0, 1, 2]
    assert list((run / "tensorboard").glob("events*"))
    assert qj.load(run / "model").config.num_steps == 4


def test_a_model_that_was_not_trained_further_is_measured_once(
    folder: Path, tmp_path: Path
) -> None:
    ran = qinco("train", "--dataset", folder, "--out", tmp_path, *SMALL, "--set", "num_epochs=0")
    assert ran.exit_code == 0 and "before training" not in ran.output


@pytest.mark.parametrize("variant", ["centroids", "num_parts=2"])
def test_a_variant_goes_from_files_to_files(folder: Path, tmp_path: Path, variant: str) -> None:
    settings = ["--set", variant, *SMALL]
    if variant == "centroids":
        lists = tmp_path / "lists.npy"
        assert qinco("centroids", lists, "--dataset", folder, "--num", 20).exit_code == 0
        assert np.load(lists).shape == (20, 8)
        settings = ["--centroids", lists, *SMALL]
    run, codes, vectors = tmp_path / "run", tmp_path / "codes.npy", tmp_path / "x.npy"
    ran = qinco("train", "--dataset", folder, "--out", run, "--bytes", 2, *settings)
    assert ran.exit_code == 0, ran.output
    model = qj.load(run / "model")
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    own = sorted(row["bytes"] for row in rows if re.search("QINCo2.* joint$", row["codec"]))
    assert own == ([1.5, 2] if variant == "centroids" else [1, 2])
    assert qinco("encode", run / "model", folder / "database.npy", codes).exit_code == 0
    assert np.load(codes).shape == (300, 2)
    assert qinco("decode", run / "model", codes, vectors).exit_code == 0
    x = np.load(folder / "database.npy")
    np.testing.assert_array_equal(np.load(vectors), qj.decode(model, qj.encode(model, x)))


def test_the_same_command_again_only_measures(folder: Path) -> None:
    before = (folder / "run" / "metrics.jsonl").read_bytes()
    ran = qinco("train", "--dataset", folder, "--out", folder / "run", *SMALL)
    assert ran.exit_code == 0 and "is a finished run" in ran.output
    assert (folder / "run" / "metrics.jsonl").read_bytes() == before
    shown = re.findall(r"^measuring (.*): 100%.*$", ran.output, flags=re.MULTILINE)
    assert len(shown) == len(set(shown)) == 9  # a line for each, once
    before, after = ran.output.split("val_mse of training is the error on the 100 validation ")
    assert "training RQ on 900 vectors: 100%" in before and "measured on" in after
    assert after.startswith("vectors, searched with A=4 B=2; MSE in the table is the error on ")


def test_minutes_are_a_schedule_that_an_interrupted_run_keeps(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decided by the speed that is measured when it begins, not by that of a slower day."""
    command = ["train", "--dataset", folder, *SMALL[:-2]]

    def measured(speed: float) -> None:
        found = Costs(5.0, 5.0, 1 / speed, 0.01, 0, 0)
        monkeypatch.setattr(train_command, "costs", lambda *_: found)

    def killed(*_: object) -> None:
        raise RuntimeError("killed")

    measured(speed=1.0)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "SAVE_SECONDS", 0.0)
        patch.setattr(loop.training, "end_epoch", killed)
        patch.setattr(loop, "LOG_STEPS", 1)
        begun = qinco(*command, "--out", run, "--minutes", 0.6)
    ((epochs, rows),) = re.findall(r"0\.6 minutes: (\d+) epochs? of (\d+) rows", begun.output)
    assert isinstance(begun.exception, RuntimeError) and (run / "schedule.json").exists()
    measured(speed=0.5)
    resumed = qinco(*command, "--out", run, "--minutes", 0.6)
    assert resumed.exit_code == 0 and "0.6 minutes: " not in resumed.output, resumed.output
    lengths = [f"num_epochs={epochs}", f"epoch_rows={rows}"]
    sets = [part for setting in lengths for part in ("--set", setting)]
    assert qinco(*command, "--out", tmp_path / "other", *sets).exit_code == 0
    one, other = (qj.load(path) for path in (run, tmp_path / "other"))
    np.testing.assert_array_equal(one.steps.codebook, other.steps.codebook)
    for more, words in (
        (["--minutes", 0.7], "trains for 0.6 minutes, not 0.7"),
        (["--minutes", 0.6, *sets], "sets num_epochs and epoch_rows"),
        (["--minutes", 0.6, "--preset", "qinco1"], "add --set schedule=cosine"),
        (["--minutes", 0.1, "--dry-run"], "0.1 min is too short"),
    ):
        ran = qinco(*command, "--out", run, *more)
        assert ran.exit_code == 2 and words in ran.output, ran.output


def test_a_file_that_is_the_database_has_two_errors(folder: Path, tmp_path: Path) -> None:
    """On vectors that were held back, and on all; with --train-on-all only the latter is known."""
    x, out = np.load(folder / "train.npy"), tmp_path / "some"
    command = ["train", "--dataset", folder / "train.npy", *SMALL, "--eval-rows", 1000]
    ran = qinco(*command, "--out", out)
    assert ran.exit_code == 0, ran.output
    held_back = re.search(
        r"on 100 validation vectors.* MSE of (\S+) and RQ.* of (\S+):", ran.output
    )
    whole = re.search(r"all 1,000 vectors .* 900 of which were .* MSE is (\S+):", ran.output)
    assert held_back and whole
    model = qj.load(out)
    for rows, found in ((x[900:], held_back[1]), (x, whole[1])):
        assert float(found) == pytest.approx(
            qj.mse(rows, qj.decode(model, qj.encode(model, rows))), rel=1e-4
        )
    assert ("RQ is as good here" in ran.output) == (float(held_back[1]) >= float(held_back[2]))

    out = tmp_path / "all"
    ran = qinco(*command, "--out", out, "--train-on-all")
    assert ran.exit_code == 0 and "nobody knows by how much" in ran.output, ran.output
    run = json.loads((out / "run.json").read_text())
    assert run["recipe"]["weight_decay"] == 0.1 and run["data"]["shape"] == [1000, 8]
    measured = "measured on 900 vectors with 100 queries"
    assert "best epoch is chosen by 100 of those" in ran.output and measured in ran.output
    assert "reading" not in (out / "results.jsonl").read_text()
    np.save(tmp_path / "val.npy", x[:9])
    (tmp_path / "train.npy").symlink_to(folder / "train.npy")
    ran = qinco("train", "--dataset", tmp_path, "--train-on-all", *SMALL)
    assert ran.exit_code == 2 and "the set has validation vectors" in ran.output


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


def test_a_folder_named_like_a_known_set_is_another_set(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sift-photos").symlink_to(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sift-photos").mkdir()
    np.save(tmp_path / "other" / "sift-photos" / "train.npy", np.load(folder / "train.npy"))
    places = ("sift-photos", tmp_path / "sift-photos", tmp_path / "other" / "sift-photos")
    assert len({qj.datasets.load(place).name for place in places}) == 3


def test_evaluate_prints_and_writes_the_table(folder: Path) -> None:
    out = folder / "results.jsonl"
    ran = qinco(
        "evaluate", folder / "run" / "model", "--dataset", folder, "--beam-size", 4,
        "--num-candidates", 16, "--eval-rows", 200, "--out", out,
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert "first 200 of 300" in ran.output and "| QINCo2 A=16 B=4 |" in ran.output
    assert len(out.read_text().splitlines()) == 4


def test_without_a_database_it_says_which_rows_are_measured(folder: Path, tmp_path: Path) -> None:
    ran = qinco("evaluate", folder / "run" / "model", "--dataset", folder / "train.npy")
    held_back = "last 100 of the 1,000 training vectors, which its training held back to choose"
    assert held_back in ran.output
    np.save(tmp_path / "val.npy", np.load(folder / "database.npy"))
    (tmp_path / "train.npy").symlink_to(folder / "train.npy")
    ran = qinco("evaluate", folder / "run" / "model", "--dataset", tmp_path)
    assert "300 validation vectors, by which training chooses" in ran.output


@pytest.mark.parametrize(
    ("trained", "words"),
    [(slice(900), "its training held back"), (slice(1000), "errors are too low"),
     (slice(1, 901), "was trained on others"), (None, "training holds back by default")],
    ids=["most", "all", "others", "unknown"],
)  # fmt: skip
def test_a_run_tells_what_part_rows_had_in_training(
    trained: slice | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.random.default_rng(0).normal(size=(1000, 4))
    (tmp_path / "model").mkdir()
    if trained is not None:
        run = {"data": fingerprint(x[trained])}
        (tmp_path / "run.json").write_text(json.dumps(run))
    data = datasets.Dataset("set", x, database=x)
    for model in (tmp_path, tmp_path / "model")[trained is None :]:
        assert words in measure.role_of(str(model), data, x[900:])
    known = trained in (slice(900), slice(1000))
    assert ("of the 1,000 vectors of the database" in capsys.readouterr().out) == known


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


def test_a_foreign_ground_truth_is_found_before_training(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "truth.npy", np.tile(np.arange(100), (40, 1)))
    ran = qinco(
        "train", "--dataset", folder, "--groundtruth", tmp_path / "truth.npy",
        "--out", tmp_path / "run", *SMALL,
    )  # fmt: skip
    assert ran.exit_code == 2 and "ground truth" in ran.output, ran.output
    for more in (["train", "--dry-run"], ["evaluate", folder / "run"]):
        ran = qinco(
            *more, "--dataset", folder, "--groundtruth", tmp_path / "truth.npy",
            "--eval-rows", 200,
        )  # fmt: skip
        assert ran.exit_code == 2 and "row 0 is nearest to query" in ran.output, ran.output
    assert not (tmp_path / "run").exists()


def test_settings_are_listed_with_their_meaning() -> None:
    text = qinco("settings").output
    for kind in (qj.QincoConfig, qj.Recipe):
        for field in dataclasses.fields(kind):
            assert re.search(rf"^  {field.name} +\S", text, re.MULTILINE), field.name
    decay = "decoupled; 0 makes AdamW plain Adam. `None` is 0.5 with `mix`, else 0.1. [None]"
    assert re.search(rf"weight_decay +{re.escape(decay)}", text)


def test_a_platform_that_is_not_there_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qinco_jax", "encode", folder / "run" / "model",
               folder / "database.npy", tmp_path / "codes.npy"]  # fmt: skip
    for name in ("cuda", "nonsense"):
        env = {**os.environ, "JAX_PLATFORMS": name}
        ran = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        assert ran.returncode == 2 and ran.stderr == (
            f"qinco: JAX finds no device for JAX_PLATFORMS={name}; set it to what this machine "
            "has, such as cpu, or leave it out\n"
        )
    assert not (tmp_path / "codes.npy").exists()


def test_64_bit_mode_changes_no_codes(folder: Path, tmp_path: Path) -> None:
    for bits in ("0", "1"):
        codes = tmp_path / f"{bits}.npy"
        arguments = "encode", folder / "run" / "model", folder / "database.npy", codes
        env = {**os.environ, "JAX_ENABLE_X64": bits}
        subprocess.run([sys.executable, "-m", "qinco_jax", *arguments], check=True, env=env)
    assert (tmp_path / "0.npy").read_bytes() == (tmp_path / "1.npy").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train --minutes nan", "--minutes must be a finite number, got nan"),
        ("train --minutes 1e9", "--minutes must be above 0 and at most 1,000,000, got 1000000000"),
        ("train --set num_epochs=1e12", "num_epochs must be 0 to 2,147,483,647, got 1000000000000"),
        ("train --set num_epochs=2e9 --dry-run", "at most 2,147,483,647 are possible; lower num_e"),
        ("train --set embed_dim=1e12 --dry-run", "embed_dim must be 1 to 1,048,576"),
        ("train --eval-rows 1.5", "--eval-rows must be an integer, got 1.5"),
        ("encode m x c --beam-size 1e12", "--beam-size must be 1 to 16,384, got 1000000000000"),
        ("plan --rows 100 --dim 1000000000000", "--dim must be 2 to 1,048,576"),
        ("plan --rows nan --dim 8", "--rows must be an integer, got nan"),
        ("index search i q o -k x", "-k must be an integer, got 'x'"),
    ],
)
def test_a_number_out_of_bounds_is_one_sentence(arguments: str, words: str) -> None:
    ran = qinco(*arguments.split())
    assert ran.exit_code == 2 and ran.output.startswith("qinco: ") and words in ran.output
    assert ran.output.count("\n") == 1


def test_too_little_memory_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 30 GiB")

    monkeypatch.setattr(train_command.measure, "load", full)
    ran = qinco("train")
    assert ran.exit_code == 2
    assert ran.output.startswith("qinco: out of memory (Unable to allocate 30 GiB); choose smaller")


def damaged(folder: Path, name: str, change: object) -> Path:
    """A copy of the model with one of its files changed, or removed where `change` is None."""
    model = folder / name
    subprocess.run(["cp", "-r", folder / "run" / "model", model], check=True)
    files = (model / "arrays" / "d").iterdir()  # Orbax writes others that it never reads
    target = (
        model / "model.json" if name == "config" else max(files, key=lambda f: f.stat().st_size)
    )
    if change is None:
        target.unlink()
    else:
        assert callable(change)
        target.write_bytes(change(target.read_bytes()))
    return model


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("missing", None),
        ("truncated", lambda content: content[:-50]),
        ("empty", lambda content: b""),
        ("flipped", lambda content: content[:900] + bytes([content[900] ^ 64]) + content[901:]),
        ("config", lambda content: content[:40]),
    ],
)
def test_a_damaged_model_is_named(folder: Path, name: str, change: object) -> None:
    model = damaged(folder, name, change)
    ran = qinco("encode", model, folder / "database.npy", folder / "never.npy")
    assert ran.exit_code == 2
    assert str(model) in ran.output
    assert ("missing" if change is None else "damaged") in ran.output
    assert not (folder / "never.npy").exists()


def bad_files(folder: Path) -> dict[str, Path]:
    x = np.load(folder / "database.npy").astype(np.float32)
    path = {name: folder / f"bad-{name}.npy" for name in ("dim", "nan", "empty", "text", "codes")}
    np.save(path["dim"], x[:, :5])
    np.save(path["nan"], np.where(np.arange(300)[:, None] == 250, np.nan, x))
    np.save(path["empty"], x[:0])
    np.save(path["text"], np.array([["a", "b"]]))
    np.save(path["codes"], np.full((3, 2), 255, np.uint8)[:, :1].repeat(3, axis=1))
    path["truncated"] = folder / "bad.fvecs"
    words = np.column_stack([np.full(300, 8, np.int32), x.view(np.int32)])
    path["truncated"].write_bytes(words.tobytes()[:-6])
    path["header"] = folder / "bad.fbin"
    path["header"].write_bytes(np.array([301, 8], np.uint32).tobytes() + x.tobytes())
    path["absent"] = folder / "absent.npy"
    path["ending"] = folder / "x.txt"
    path["ending"].write_text("1 2 3")
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dim", "5 dimensions a vector, but the model has 8"),
        ("nan", "bad-nan.npy holds NaN or Inf"),
        ("empty", "no rows|has 0 rows|empty"),
        ("text", "dtype"),
        ("truncated", "cut off|truncated"),
        ("header", "9608 bytes, but 301 rows of 8 columns take 9640"),
        ("absent", "no file"),
        ("ending", "ending"),
    ],
)
def test_bad_vectors_leave_no_codes(folder: Path, name: str, message: str) -> None:
    path, out = bad_files(folder)[name], folder / "out.npy"
    before = sorted(os.listdir(folder))
    ran = qinco("encode", folder / "run" / "model", path, out)
    assert ran.exit_code == 2, ran.output
    assert len(ran.output.strip().split("qinco: ")) == 2, "one sentence"
    assert any(part in ran.output for part in message.split("|")), ran.output
    assert sorted(os.listdir(folder)) == before


def test_bad_codes_are_refused(folder: Path) -> None:
    model, out = folder / "run" / "model", folder / "out.npy"
    wide = bad_files(folder)["codes"]
    ran = qinco("decode", model, wide, out)
    assert ran.exit_code == 2 and "3 bytes a vector are not the model's" in ran.output
    assert not out.exists()


def test_bad_arguments_are_refused_before_anything_is_made(folder: Path, tmp_path: Path) -> None:
    model, x = folder / "run" / "model", folder / "database.npy"
    out = tmp_path / "out"
    for arguments, message in (
        (["encode", model, x, model], "name the output"),
        (["encode", model, x, folder / "train.npy"], "exists"),
        (["encode", model, x, tmp_path / "no" / "codes.npy"], "there is no directory"),
        (["encode", model, x, tmp_path / "codes.txt"], "name the output"),
        (["encode", model, x, out, "--shard", "5/2"], "there is no shard 5/2"),
        (["encode", tmp_path, x, tmp_path / "codes.npy"], "is not a saved model"),
        (["encode", model, x, tmp_path / "c.npy", "--num-candidates", 99], "1 to 16, got 99"),
        (["encode", model, x, tmp_path / "c.npy", "--compute-dtype", "half"], "float32, bfloat16"),
        (["decode", model, x, out, "--compute-dtype", "half"], "float32, bfloat16"),
        (["evaluate", model, "--compute-dtype", "half"], "float32, bfloat16"),
        (["train", "--dataset", x, "--out", out, "--compute-dtype", "half"], "float32, bfloat16"),
        (["train", "--dataset", "deep2m", "--out", out], "known: sift-photos, bigann1m"),
        (["train", "--dataset", tmp_path, "--out", out], "without files of vectors in it"),
        (["train", "--dataset", x, "--out", out, "--init", x], "it is a file, not a folder; give"),
        (["train", "--dataset", x, "--out", out, "--preset", "larg"], "small, qinco1"),
        (["train", "--dataset", x, "--out", out, "--recipe", "larg"], "small, accelerator"),
        (["train", "--dataset", x, "--out", out, "--set", "hiden_dim=3"], "'hidden_dim'"),
        *((["train", "--dataset", x, "--out", out, "--bytes", rate], "not a whole number")
          for rate in ("0.3", "nan", "inf")),
        (["train", "--dataset", x, "--out", out, "--set", "foo=3"], "known: batch_size, beam_size"),
        (["train", "--dataset", x, "--out", out, "--set", "codebook_size=512", "--bytes", "9"],
         "270 training vectors for 512 codewords"),
        (["train", "--dataset", x, "--out", "/proc/no/run", *SMALL], "/proc/no"),
    ):  # fmt: skip
        ran = qinco(*arguments)
        assert ran.exit_code == 2, (arguments, ran.output, ran.exception)
        assert message in ran.output, (arguments, ran.output)
        if arguments[0] == "encode":
            dry = qinco(*arguments, "--dry-run").output
            assert dry.splitlines() == ran.output.splitlines()[-1:], arguments
        assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    """A limit on the size of files is the disk that is full."""
    big = tmp_path / "in"
    big.mkdir()
    np.save(big / "x.npy", np.zeros((100_000, 8), np.uint8))
    model = folder / "run" / "model"
    command = f"{sys.executable} -m qinco_jax encode {model} in/x.npy out.npy"
    ran = subprocess.run(
        f"ulimit -f 10; cd {tmp_path}; {command}",
        shell=True, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 2, ran.stderr
    assert "qinco: " in ran.stderr and "200,128 bytes" in ran.stderr.replace("200128", "200,128")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_disk_that_fills_up_while_training_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = (
        f"{sys.executable} -m qinco_jax train --dataset {folder} --out {out} --set mix=0 "
        f"{' '.join(SMALL)}"
    )
    for most, place in ((10, "start"), (1200, "checkpoints")):  # of 512 bytes
        ran = subprocess.run(
            f"ulimit -f {most}; JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=inf {command}",
            shell=True, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 2, ran.stderr
        *before, last = ran.stderr.strip().splitlines()
        assert "Traceback" not in "".join(before)
        assert last.startswith(f"qinco: cannot write {out / place} (")
    again = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr


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


def test_a_finished_run_goes_on_in_another_folder(folder: Path, tmp_path: Path) -> None:
    """Of more epochs the run is another one, and the message says how to go on from its model."""
    more = [*SMALL[:-1], "num_epochs=3"]
    ran = qinco("train", "--dataset", folder, "--out", folder / "run", *more)
    assert ran.exit_code == 2 and f"--init {folder / 'run'}" in ran.output
    epochs = ["--set", "num_epochs=1"]
    ran = qinco("train", "--dataset", folder, "--init", folder / "run", "--out", tmp_path, *epochs)
    assert ran.exit_code == 0, ran.output
    before, after = (qj.load(run / "model") for run in (folder / "run", tmp_path))
    np.testing.assert_array_equal(after.mean, before.mean)
    start = qj.load(tmp_path / "start")
    np.testing.assert_array_equal(start.codebook, before.codebook)
    again = ["train", "--dataset", folder, "--init", folder / "run", *epochs, "--out", tmp_path]
    assert qinco(*again, "--bytes", 2, "--set", "num_steps=4").exit_code == 0  # its own
    for sizes, named in (
        (["--bytes", 3], "leave out --bytes 3\n"),
        (["--set", "hidden_dim=32", "--set", "num_steps=5"],
         "leave out --set hidden_dim=32 and --set num_steps=5\n"),
        (["--set", "num_centroids=4"], "leave out --set num_centroids=4\n"),
    ):  # fmt: skip
        ran = qinco(*again, *sizes)
        assert ran.exit_code == 2 and "sizes of its own" in ran.output and named in ran.output
    np.save(tmp_path / "wider.npy", np.zeros((1000, 9), np.float32))
    ran = qinco("train", "--dataset", tmp_path / "wider.npy", "--init", folder / "run")
    named = f"qinco: {tmp_path / 'wider.npy'} has 9 dimensions a vector, but the model has 8"
    assert ran.exit_code == 2 and ran.output.startswith(named)


def test_a_refused_training_says_nothing_before_and_names_what_differs(
    folder: Path, tmp_path: Path
) -> None:
    run, train = folder / "run", folder / "train.npy"
    init = ", or continue from its model in another folder (init=qinco_jax.load("
    command = ["train", "--dataset", folder, "--out", run, *SMALL]
    np.save(tmp_path / "others.npy", 1 + np.load(train)[:900])
    for more, found, can_go_on in (
        (["--set", "num_epochs=3"], "recipe.num_epochs is 2 there and 3 here", True),
        (["--dataset", tmp_path / "others.npy"],
         "it was given other training vectors (900 x 8 there and 810 x 8 here)", True),
        (["--dataset", train, "--init", run],
         "it was given no weights to begin from (init), and this one is", True),
        (["--bytes", 3], "config.num_steps is 4 there and 6 here", False),
        (["--preset", "qinco1"], " more; choose", False),
    ):  # fmt: skip
        ran = qinco(*command, *more)
        begin = f"qinco: {run} belongs to another run: "
        assert ran.exit_code == 2 and ran.output.startswith(begin), ran.output
        assert found in ran.output and (init in ran.output) == can_go_on, ran.output
        assert "PosixPath" not in ran.output and ran.output.count("\n") == 1
        assert ran.output.count(" there and ") <= 3
    (run / "model").rename(run / "elsewhere")
    try:
        with locked(run / run_folder.LOCK, f"trains in {run}"):
            ran = qinco(*command)
    finally:
        (run / "elsewhere").rename(run / "model")
    assert ran.exit_code == 2 and re.match(r"qinco: process .* trains in .*\n$", ran.output)


def test_without_queries_some_rows_are_held_back(folder: Path, tmp_path: Path) -> None:
    """Of the database, or of the rows that stand in for one; never a row that is measured."""
    np.save(tmp_path / "train.npy", np.load(folder / "train.npy"))
    ran = qinco("evaluate", folder / "run", "--dataset", tmp_path, "--out", tmp_path / "r.jsonl")
    assert ran.exit_code == 0, ran.output
    assert "the last 10 of the 100 vectors" in ran.output and "--queries FILE" in ran.output
    assert "measured on 90 vectors with 10 queries" in ran.output
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert all(0 <= row["recall@1"] <= 1 for row in rows)


def test_few_rows_are_counted_in_english(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.load(folder / "train.npy")[:12])
    ran = qinco("evaluate", folder / "run", "--dataset", tmp_path / "few.npy")
    assert "measured on the last one of the 12 training vectors" in ran.output, ran.output
    assert "measured on 1 vector with no queries (--queries FILE gives some)\n" in ran.output


def test_no_bar_is_drawn_before_a_refusal(folder: Path, tmp_path: Path) -> None:
    codes = tmp_path / "codes.npy"
    np.save(codes, np.zeros((5, 2), np.uint8))
    np.save(tmp_path / "text.npy", np.array(["a"]))
    for command in (
        ["encode", folder / "run", folder / "train.npy", tmp_path / "c.npy", "--beam-size", 0],
        ["decode", folder / "run", codes, codes],
        ["data", "convert", tmp_path / "text.npy", tmp_path / "x.npy"],
    ):
        ran = qinco(*command)
        assert ran.exit_code == 2 and re.fullmatch("qinco: .*\n", ran.output), ran.output


def test_settings_are_shown_with_a_presets_values() -> None:
    plain, paper = qinco("settings").output, qinco("settings", "qinco1").output
    assert "[qinco2]" in plain and "[1000]" not in plain
    assert "[qinco]" in paper and "[1000]" in paper
    assert "did you mean 'small'" in qinco("settings", "smal").output


@pytest.mark.parametrize("command", ["train", "encode", "compare"])
def test_a_dry_run_says_what_it_takes_and_leaves_nothing(
    folder: Path, tmp_path: Path, command: str
) -> None:
    arguments = {
        "train": ["--dataset", folder, "--out", tmp_path / "run", *SMALL],
        "encode": [folder / "run", folder / "train.npy", tmp_path / "codes.npy"],
        "compare": [
            "--dataset", folder, "--rates", 2,
            "--codecs", f"pq,pq:moved,small,{folder / 'run' / 'model'}",
            "--out", tmp_path / "all", *SMALL[2:],
        ],
    }[command]  # fmt: skip
    ran = qinco(command, *arguments, "--dry-run")
    assert ran.exit_code == 0, ran.output
    expected = {
        "train": r"900 rows in \d+ batches take about [\d.]+ (second|minute)s?, .*; then RQ is",
        "encode": r"1,000 vectors at [\d,]+ a second, and compiling, take about \d+ seconds?; "
                  r"the codes take 2.00kB",
        "compare": r"pq at 2 bytes: 900 rows take(.*\n)+pq:moved at 2 bytes: 100,800 rows take"
                   r"(.*\n)+small at 2 bytes: 900 rows in(.*\n)+"
                   r".*: a trained model\ndry run: training takes about",
    }[command]  # fmt: skip
    assert re.search(expected, ran.output), ran.output
    if command == "train":
        ran = qinco(command, *arguments, "--set", "num_epochs=0", "--dry-run")
        assert "no epochs are trained, and the start takes about" in ran.output
    assert not list(tmp_path.iterdir())


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
    assert ran.exit_code == 2 and f"encoded by --database {database}\n" in ran.output
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
