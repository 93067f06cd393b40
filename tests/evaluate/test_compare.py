"""Codecs compared in a folder: what they are, kill and resume, shared folders, bad input."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import qinco_jax as qj
from qinco_jax.cli import main as cli
from qinco_jax.codecs import faiss as faiss_codecs
from qinco_jax.codecs import named
from qinco_jax.evaluate.metrics import measure
from qinco_jax.training import mixing

CODECS = "pq,rq:B=4,small@2,small@2:A=2:B=2"
SETTINGS = ["codebook_size=16", "hidden_dim=16", "num_epochs=2", "batch_size=128"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(0)
    for name, num_rows in (("train", 1200), ("database", 300), ("queries", 40), ("other", 30)):
        np.save(
            folder / f"{name}.npy",
            np.float16(rng.normal(size=(num_rows, 8)) * np.linspace(1, 3, 8)),
        )
    return folder


def command(data: Path, out: Path, *more: str) -> list[str]:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return ["compare", "--dataset", str(data), "--out", str(out), "--rates", "1,2",
            "--codecs", CODECS, "--noise", "0.5", "--metrics", "l2,cosine",
            "--shifted", str(data / "other.npy"), *settings, *more]  # fmt: skip


def start(data: Path, out: Path) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "qinco_jax", *command(data, out)]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "comparison"
    with start(data, out) as process:
        output = process.communicate()
    assert process.returncode == 0, output
    return out


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_comparison_leaves_a_table_plots_and_a_page(folder: Path) -> None:
    rows = rows_of(folder)
    assert [(row["bytes"], row["codec"]) for row in rows] == [
        (rate, codec) for rate in (1.0, 2.0) for codec in sorted(CODECS.split(","))
    ]
    for row in rows:
        assert row["mse_interval"][0] < row["mse"] < row["mse_interval"][1]
        assert row["queries"] == "l2"
        assert set(row["other_queries"]) == {"cosine", "noise 0.5, l2", "other, l2"}
        paired = {name for name, it in row["other_queries"].items() if "recall@1_loss" in it}
        assert paired == {"cosine", "noise 0.5, l2"}
        for found in (row, *row["other_queries"].values()):
            beside = found["reading"] != "reconstruction"
            assert found["reading_bytes"] == row["bytes"] + beside
            for k in (
                "reading_recall@1",
                "reading_10-recall@10",
                "recall@1",
                "10-recall@10",
                "recall@100",
                "100-recall@100",
            ):
                low, high = found[f"{k}_interval"]
                assert 0 <= low <= found[k] <= high <= 1
        assert 0 < row["entropy_bits"] <= row["bits"] == 8 * row["bytes"]
        assert sum(row["column_entropy_bits"]) == pytest.approx(row["entropy_bits"])
        assert row["versions"]["jax"] and row["machine"] and row["model_bytes"] > 0
        assert row["settings" if "small" in row["codec"] else "codec"]
    costs = [json.loads(line) for line in (folder / "costs.jsonl").read_text().splitlines()]
    assert [(row["bytes"], row["codec"]) for row in costs] == [
        (row["bytes"], row["codec"]) for row in rows
    ]
    assert all(row["encode_us"] > 0 and row["decode_us"] > 0 for row in costs)
    names = {path.name for path in folder.iterdir()}
    assert {"report.html", "rates.png", "rates.svg", "times.png"} <= names


def test_killed_at_any_moment_it_ends_with_the_same_file(data: Path, folder: Path) -> None:
    out = folder.parent / "killed"
    for title in ("measuring rq:B=4 at 1", "training small@2"):
        with start(data, out) as process:
            assert process.stderr is not None
            text = ""
            while title not in text:
                letter = process.stderr.read(1)
                assert letter, text
                text += letter
            process.send_signal(signal.SIGKILL)
    with start(data, out) as process:
        _, output = process.communicate()
    assert process.returncode == 0
    assert "training pq" not in output
    assert (out / "results.jsonl").read_bytes() == (folder / "results.jsonl").read_bytes()


def test_several_processes_share_a_folder(data: Path, folder: Path) -> None:
    out = folder.parent / "shared"
    out.mkdir()
    both = [start(data, out) for _ in range(2)]
    outputs = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert (out / "results.jsonl").read_bytes() == (folder / "results.jsonl").read_bytes()
    trained = [title for title in ("training pq at 1", "training rq:B=4 at 2", "training small@2 ")
               for output in outputs if title in output]  # fmt: skip
    assert len(trained) == 3, "each is trained by one of them"


def test_finished_rows_are_not_made_again(data: Path, folder: Path) -> None:
    before = (folder / "costs.jsonl").read_bytes()
    ran = CliRunner().invoke(cli.main, command(data, folder))
    assert ran.exit_code == 0, ran.output
    assert "training" not in ran.output
    assert (folder / "costs.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--codecs", "opqq"], "unknown codec 'opqq'; did you mean 'opq'?"),
        (["--codecs", "no/model"], "there is no model in the folder no/model"),
        (["--codecs", "pq:B=2"], "pq does not take"),
        (["--codecs", "small:Z=2"], "unknown option 'Z=2'; known: A=NUMBER, B=NUMBER, joint"),
        (["--codecs", "pq:movd"], "did you mean 'moved'?"),
        (["--codecs", "small:moved"], "unknown option 'moved'; known: A=NUMBER"),
        (["--rates", "9", "--codecs", "pq"], "pq takes 1 to 8 whole bytes, not 9"),
        (["--rates", "4", "--codecs", "small@2"], "takes whole steps up to 2 bytes, not 4"),
        (
            ["--rates", "9", "--codecs", "pq,sq"],
            "pq takes 1 to 8 whole bytes, sq takes 4, 6, 8 bytes, not 9",
        ),
        (["--rates", "two"], "--rates 'two' is not a comma-separated list of numbers, such as"),
        (["--rates", ","], "rates must not be empty; name at least one"),
        (["--codecs", ","], "codecs must not be empty; name at least one"),
        (["--codecs", ""], "codecs must not be empty"),
        (["--codecs", "pq:moved:moved"], "has 'moved' after another such option"),
        (["--codecs", "small@2:joint:each"], "has 'each' after another such option"),
        (["--codecs", "rq:B=0"], "the B of 'rq:B=0' must be 1 to 16,384, got 0"),
        (["--metrics", "nan"], "unknown metric 'nan'"),
        (["--noise", "nan"], "noise must be a finite number, got nan"),
        (["--noise", "-1"], "noise must be 0 to 1,000,000, got -1"),
        (["--noise", "x"], "--noise 'x' is not a comma-separated list of numbers"),
        (["--seeds", "-1"], "seed must be 0 to"),
        (["--seeds", "1000000000000"], "seed must be 0 to"),
        (["--seeds", "nan"], "--seeds 'nan' is not a comma-separated list of integers"),
        (["--seeds", "0.5"], "--seeds '0.5' is not a comma-separated list of integers"),
        (["--seeds", "0,0"], "seeds has 0 more than once"),
        (["--shifted", "no.npy"], "no.npy"),
        (["--set", "num_steps=4"], "num_steps=4 follows from the bytes"),
        (["--set", "hidden_dim"], "the setting 'hidden_dim' has no value"),
        (["--codecs", "pq", "--set", "foo=2"], "unknown setting 'foo'"),
        (["--metrics", "l2,manhattan"], "unknown metric 'manhattan'"),
        (["--noise", "2"], "belongs to another run: noise is"),
        (["--set", "hidden_dim=8"], "has small@2 at 1 byte with other settings"),
        (["--set", "hiden_dim=8"], "did you mean 'hidden_dim'"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(
    data: Path, folder: Path, more: list[str], words: str
) -> None:
    ran = CliRunner().invoke(cli.main, command(data, folder, *more))
    assert ran.exit_code == 2
    (line,) = [line for line in ran.output.splitlines() if line]
    assert words in line
    if "belongs to another run" in words or "other settings" in words:
        return  # known only from what the folder has
    assert CliRunner().invoke(cli.main, command(data, folder, *more, "--dry-run")).output == (
        ran.output
    )


def test_the_arguments_of_compare_are_a_set_and_lists(data: Path, tmp_path: Path) -> None:
    loaded, out = qj.datasets.load(data), tmp_path / "out"
    for given, words in (
        ((loaded.train, ["pq"], [1], out), "not a data set; call compare"),
        ((["pq"], loaded, [1], out), "an object of type list is not a data set"),
        ((loaded, "pq", [1], out), "codecs must be a list, got 'pq'"),
        ((loaded, ["pq"], 1, out), "rates must be a list, got 1"),
        ((loaded, ["pq"], map(float, [1]), out), "rates must be a list, got "),
    ):
        with pytest.raises(qj.InputError, match=words):
            qj.compare(*given)  # type: ignore[arg-type]
    assert not out.exists()


def test_a_bad_row_is_found_before_anything_is_trained(data: Path, tmp_path: Path) -> None:
    database = np.load(data / "database.npy")
    database[7, 3] = np.nan
    np.save(tmp_path / "bad.npy", database)
    more = ["--database", str(tmp_path / "bad.npy")]
    ran = CliRunner().invoke(cli.main, command(data, tmp_path / "out", *more))
    assert ran.exit_code == 2
    assert "row 7 of the database holds NaN or Inf" in ran.output
    assert "training" not in ran.output and not (tmp_path / "out").exists()


def test_a_codec_whose_package_is_missing_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    ran = CliRunner().invoke(cli.main, command(data, tmp_path / "out"))
    assert ran.exit_code == 2
    assert "pip install 'qinco_jax[search]'" in ran.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", list(faiss_codecs.NAMES))
def test_faiss_codecs_compress_to_the_bytes_that_they_say(name: str) -> None:
    x = np.float32(np.random.default_rng(0).normal(size=(600, 20)) + 3)
    errors = []
    for size in faiss_codecs.rates(name, 20) or [2, 4]:  # 20 = 3 * 6 + 2: PQ has to fill up
        codec = faiss_codecs.train(name, x, size)
        codes = np.asarray(codec.encode(x))
        assert (codes.shape, codes.dtype) == ((600, size), np.uint8)
        assert codec.bits == 8 * size
        errors.append(measure(codec, x).relative_error)
        assert codec.size > 0
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1
    with pytest.raises(qj.InputError, match="not 21"):
        faiss_codecs.train(name, x, 21)
    with pytest.raises(qj.InputError, match="at least as many"):
        faiss_codecs.train(name, x[:100], (faiss_codecs.rates(name, 20) or [2])[0])


@pytest.mark.parametrize("name", faiss_codecs.MOVABLE)
def test_a_codec_may_be_trained_on_moved_vectors(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which many more than there are; RQ is chosen by rows that are left as they are."""
    monkeypatch.setattr(faiss_codecs, "MOVED_ROWS", 1500)
    x = np.float32(np.random.default_rng(0).normal(size=(700, 8)))
    taken, at_least = [], mixing.at_least

    def moved(rows: np.ndarray, *given: Any) -> np.ndarray:
        taken.append((rows, np.asarray(at_least(rows, *given))))
        return taken[-1][1]

    monkeypatch.setattr(faiss_codecs.mixing, "at_least", moved)
    (one,) = named.contenders([f"{name}:moved"], [2], 8)
    assert one.model == f"{name}:moved" and one.facts == {"mix": 0.7}
    codec = one.train(x, 3, Path(), lambda *_: None)(2)
    ((rows, found),) = taken
    assert codec.name.endswith(", moved") and len(found) == len(rows) * -(-1500 // len(rows))
    assert len(rows) == 700 - 70 * (name == "rq") and set(map(bytes, rows)) <= set(map(bytes, x))
    plain = faiss_codecs.train(name, x, 2, seed=3)
    assert (plain.encode(x) != codec.encode(x)).any() and plain.size == codec.size


def test_prefixes_of_a_model_are_measured_at_their_rates() -> None:
    spec = named.parse("small@16:A=4:B=8:each:bfloat16")
    assert (spec.name, spec.model, spec.bytes) == ("small", "small@16", 16.0)
    search = {"num_candidates": 4, "beam_size": 8, "joint": False, "compute_dtype": "bfloat16"}
    assert spec.search == search
    (one,) = named.contenders([spec.text], [4, 8, 4.5, 20], 128)
    assert (one.bytes, one.rates) == (16.0, (4, 8))
    assert (one.facts["num_candidates"], one.facts["joint"]) == (4, False)
