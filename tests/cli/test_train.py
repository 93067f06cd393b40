"""`qinco train` as a user meets it: the run it leaves, going on, what it says and refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_run import DECIDING, SMALL, qinco

import qinco_jax as qj
from qinco_jax import datasets
from qinco_jax.cli import measure
from qinco_jax.cli import train as train_command
from qinco_jax.files import locked
from qinco_jax.training import loop, run_folder
from qinco_jax.training.estimate import Costs
from qinco_jax.vectors.stored import fingerprint


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
    command = ["train", "--dataset", folder / "train.npy", *DECIDING, "--eval-rows", 1000]
    ran = qinco(*command, "--out", out)
    assert ran.exit_code == 0 and "k-means of moved vectors" in ran.output, ran.output
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
    assert "moved" not in ran.output
    run = json.loads((out / "run.json").read_text())
    assert run["recipe"]["weight_decay"] == 0.1 and run["data"]["shape"] == [1000, 8]
    measured = "measured on 900 vectors with 100 queries"
    assert "best epoch is chosen by 100 of those" in ran.output and measured in ran.output
    assert "reading" not in (out / "results.jsonl").read_text()
    np.save(tmp_path / "val.npy", x[:9])
    (tmp_path / "train.npy").symlink_to(folder / "train.npy")
    ran = qinco("train", "--dataset", tmp_path, "--train-on-all", *SMALL)
    assert ran.exit_code == 2 and "the set has validation vectors" in ran.output


def test_a_folder_named_like_a_known_set_is_another_set(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sift-photos").symlink_to(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sift-photos").mkdir()
    np.save(tmp_path / "other" / "sift-photos" / "train.npy", np.load(folder / "train.npy"))
    places = ("sift-photos", tmp_path / "sift-photos", tmp_path / "other" / "sift-photos")
    assert len({qj.datasets.load(place).name for place in places}) == 3


def test_without_a_database_it_says_which_rows_are_measured(folder: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "run" / "model")
        ran = qinco("evaluate", ".", "--dataset", folder / "train.npy")
    assert ran.exit_code == 0, ran.output
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


def test_a_disk_that_fills_up_while_training_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = (
        f"{sys.executable} -m qinco_jax train --dataset {folder} --out {out} {' '.join(SMALL)}"
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
