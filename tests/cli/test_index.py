"""`qinco index` and `qinco plan` as a user meets them: from files to files, kills, bad input."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import qinco_jax as qj
from qinco_jax.cli import indexing, plan
from qinco_jax.cli import main as cli
from qinco_jax.evaluate.neighbours import nearest_neighbours
from qinco_jax.models import codes as code_files

CONFIG = qj.QincoConfig(
    num_steps=4, codebook_size=16, hidden_dim=8, num_blocks=1, num_candidates=4, beam_size=2
)


def qinco(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def done(*arguments: object) -> str:
    ran = qinco(*arguments)
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def refused(*arguments: object) -> str:
    ran = qinco(*arguments)
    assert ran.exit_code == 2, ran.output
    return ran.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of vectors, two models, and an index built by the command line."""
    folder = tmp_path_factory.mktemp("index")
    rng = np.random.default_rng(0)
    centers = 4 * rng.normal(size=(20, 8))
    for name, rows in (("train", 1000), ("database", 600), ("more", 50), ("queries", 40)):
        x = centers[rng.integers(20, size=rows)] + rng.normal(size=(rows, 8))
        np.save(folder / f"{name}.npy", np.float32(x))
    x = np.load(folder / "train.npy")
    for seed in range(2):
        qj.save(qj.train(x, CONFIG, num_epochs=0, seed=seed), folder / f"model{seed}")
    done("index", "build", folder / "model0", folder, folder / "index", "--num-lists", 16)
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def same(one: Path, other: Path) -> None:
    a, b = qj.search.load(one), qj.search.load(other)
    assert a.fingerprint == b.fingerprint and len(a) == len(b)
    order, others = np.argsort(a.ids()), np.argsort(b.ids())
    np.testing.assert_array_equal(a.ids()[order], b.ids()[others])
    rows = np.sort(a.ids())
    np.testing.assert_array_equal(a.reconstruct(rows), b.reconstruct(rows))


def test_an_index_goes_from_files_to_files(folder: Path, tmp_path: Path) -> None:
    index, queries = folder / "index", folder / "queries.npy"
    assert names(folder) == {
        "train.npy", "database.npy", "more.npy", "queries.npy", "model0", "model1", "index"
    }  # fmt: skip
    assert "index: 600 vectors of 8 dimensions" in done("index", "info", index)
    done("index", "search", index, queries, tmp_path / "found.npz", "-k", 5, "--num-probes", 16)
    with np.load(tmp_path / "found.npz") as found:
        expected = qj.search.load(index).search(np.load(queries), 5, num_probes=16)
        np.testing.assert_array_equal(found["distances"], expected[0])
        np.testing.assert_array_equal(found["ids"], expected[1])
    done("index", "search", index, queries, tmp_path / "ids.npy")
    assert np.load(tmp_path / "ids.npy").shape == (40, 10)


def test_a_filter_names_the_ids_that_may_be_found(folder: Path, tmp_path: Path) -> None:
    def searched(*ids: int) -> np.ndarray:
        for name in ("ids.npy", "found.npy"):
            (tmp_path / name).unlink(missing_ok=True)
        np.save(tmp_path / "ids.npy", np.asarray(ids, np.int64))
        done(
            "index", "search", folder / "index", folder / "queries.npy", tmp_path / "found.npy",
            "--filter", tmp_path / "ids.npy", "-k", 3, "--num-probes", 16,
        )  # fmt: skip
        return np.load(tmp_path / "found.npy")

    index, queries = qj.search.load(folder / "index"), np.load(folder / "queries.npy")
    some = range(0, 600, 7)
    expected = index.search(queries, 3, num_probes=16, filter=list(some))[1]
    np.testing.assert_array_equal(searched(*some), expected)
    assert np.isin(expected, some).all()
    found = searched(5, 9, 10**9)  # of which the index has two
    assert (np.sort(found, axis=1) == [-1, 5, 9]).all() and (found[:, 2] == -1).all()
    assert (searched() == -1).all()


def test_a_filter_and_settings_reach_the_search(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def search(self: qj.search.Index, queries: np.ndarray, k: int, **settings: Any) -> Any:
        given.update(settings, k=k)
        return np.zeros((40, k), np.float32), np.zeros((40, k), np.int64)

    monkeypatch.setattr(qj.search.Index, "search", search)
    np.save(tmp_path / "kept.npy", np.arange(300, 600))
    done(
        "index", "search", folder / "index", folder / "queries.npy", tmp_path / "ids.npy",
        "--filter", tmp_path / "kept.npy", "-k", 3, "--num-reranked", 0,
    )  # fmt: skip
    np.testing.assert_array_equal(given.pop("filter"), np.arange(300, 600))
    assert given == {"recall": None, "k": 3, "num_reranked": 0}


def test_tuning_keeps_points_that_a_recall_chooses(folder: Path, tmp_path: Path) -> None:
    index, queries, database = tmp_path / "index", folder / "queries.npy", folder / "database.npy"
    done("index", "build", folder / "model0", folder, index, "--num-lists", 16)
    truth = nearest_neighbours(np.load(database), np.load(queries), 100)
    np.save(tmp_path / "truth.npy", truth)
    given = ["index", "tune", index, "--queries", queries, "--database", database]
    table = done(*given, "--groundtruth", tmp_path / "truth.npy", "-k", 5)
    lines = table.splitlines()
    heads = [head.strip() for head in lines[0].strip("|").split("|")]
    measures = ["R@1", "R@5", "5-R@5"]
    assert heads == ["probes", "reranked", *measures, "queries/s", "p50 ms", "p99 ms"]
    points = [json.loads(line) for line in (index / "points.jsonl").read_text().splitlines()]
    assert json.loads((index / "index.json").read_text())["points"] == points
    assert len({len(line) for line in lines[:-1]}) == 1 and len(lines) == len(points) + 3
    assert (index / "points.png").read_bytes().startswith(b"\x89PNG")
    assert lines[0] in done("index", "info", index)
    best = max(points, key=lambda point: point["5-recall@5"])
    asked = ["index", "search", index, queries, tmp_path / "found.npy", "-k", 5, "--recall"]
    assert "no operating point reached" in refused(*asked, 0.9999)
    assert "num_reranked = " in done(*asked, best["5-recall@5"])
    share = np.mean([
        len(np.intersect1d(own, true[:5])) / 5
        for own, true in zip(np.load(tmp_path / "found.npy"), truth, strict=True)
    ])  # fmt: skip
    assert share >= best["5-recall@5"] - 1e-9
    wrong = ["--queries", queries, "--database", folder / "more.npy"]
    assert "600 ids of the index are not 0 to 49" in refused("index", "tune", index, *wrong)
    assert "give --queries FILE" in refused("index", "tune", index, "--database", database)


def test_an_index_of_other_ids_is_tuned_by_a_ground_truth_of_ids(
    folder: Path, tmp_path: Path
) -> None:
    index = qj.search.load(folder / "index")
    index.remove(np.arange(0, 600, 2))
    qj.search.save(index, tmp_path / "index")
    x, queries = np.load(folder / "database.npy")[1::2], folder / "queries.npy"
    given = ["index", "tune", tmp_path / "index", "--queries", queries, "-k", 5]
    asked = refused(*given, "--database", folder / "database.npy")
    assert "300 ids" in asked and "--groundtruth" in asked
    assert "give --database, --groundtruth or both" in refused(*given)
    np.save(tmp_path / "truth.npy", 1 + 2 * nearest_neighbours(x, np.load(queries), 5))
    done(*given, "--groundtruth", tmp_path / "truth.npy")
    points = qj.search.load(tmp_path / "index").points
    assert max(point["5-recall@5"] for point in points) > 0.3


def test_vectors_are_added_and_indexes_merged(folder: Path, tmp_path: Path) -> None:
    whole, more = tmp_path / "whole", folder / "more.npy"
    (tmp_path / "set").mkdir()
    for part in ("train", "database"):
        os.link(folder / f"{part}.npy", tmp_path / "set" / f"{part}.npy")
    build = ["index", "build", folder / "model0", tmp_path / "set"]
    done(*build, whole, "--num-lists", 16)
    np.save(tmp_path / "ids.npy", np.arange(600, 650))
    done("encode", folder / "model0", more, tmp_path / "more-codes.npy")
    done(
        "index", "add", whole, more, "--ids", tmp_path / "ids.npy",
        "--codes", tmp_path / "more-codes.npy",
    )  # fmt: skip
    assert not {name for name in names(tmp_path) if name.startswith(".")}
    assert "the id 600 is there twice" in refused(
        "index", "add", whole, more, "--ids", tmp_path / "ids.npy"
    )
    assert not {name for name in names(tmp_path) if name.startswith(".")}
    empty = qj.search.build(qj.load(folder / "model0"), np.load(folder / "train.npy"), 16)
    empty.add(np.load(more), ids=np.arange(600, 650))
    qj.search.save(empty, tmp_path / "part")
    done("index", "merge", folder / "index", tmp_path / "part", tmp_path / "merged")
    same(whole, tmp_path / "merged")
    assert "merged exists" in refused(
        "index", "merge", folder / "index", tmp_path / "part", tmp_path / "merged"
    )


def test_codes_are_taken_from_a_file_of_the_same_model(folder: Path, tmp_path: Path) -> None:
    for seed in range(2):
        done("encode", folder / f"model{seed}", folder / "database.npy", tmp_path / f"{seed}.npy")
    build = ["index", "build", folder / "model0", folder, tmp_path / "index", "--num-lists", 16]
    assert "codes of another model" in refused(*build, "--codes", tmp_path / "1.npy")
    done("encode", folder / "model0", folder / "more.npy", tmp_path / "more.npy")
    assert "holds 50 codes of 600" in refused(*build, "--codes", tmp_path / "more.npy")
    (tmp_path / "other").mkdir()
    for name in ("train", "database"):
        np.save(tmp_path / "other" / f"{name}.npy", np.load(folder / f"{name}.npy")[::-1])
    backwards = [*build[:3], tmp_path / "other", *build[4:], "--codes", tmp_path / "0.npy"]
    for more in ([], ["--shards", 2]):
        assert "or of these in another order" in refused(*backwards, *more)
    done(*build, "--codes", tmp_path / "0.npy")
    same(tmp_path / "index", folder / "index")
    assert "index exists" in refused(*build)


def test_shards_are_searched_like_one_index(folder: Path, tmp_path: Path) -> None:
    build = ["index", "build", folder / "model0", folder]
    out = done(*build, tmp_path / "shards", "--num-lists", 16, "--shards", 3)
    assert "shards: 600 vectors in 3 shards" in out
    for name, index in (("one", folder / "index"), ("three", tmp_path / "shards")):
        done("index", "search", index, folder / "queries.npy", tmp_path / f"{name}.npz")
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "three.npz") as three:
        np.testing.assert_allclose(one["distances"], three["distances"], rtol=1e-5)
    assert "exists" in refused(*build, tmp_path / "shards", "--shards", 3)
    assert "600 vectors in 3 shards" in done("index", "info", tmp_path / "shards")
    assert "say into how many with --shards" in refused(*build, tmp_path / "x", "--workers", 2)
    done("index", "export", tmp_path / "shards", tmp_path / "all.parquet")
    done("index", "export", tmp_path / "shards", tmp_path / "all.faiss")
    assert "neither .parquet nor .faiss" in refused(
        "index", "export", tmp_path / "shards", tmp_path / "all.csv"
    )
    assert "workers must be auto" in refused(*build, tmp_path / "other", "--workers", "some")


SCRIPT = """
import signal, sys
from pathlib import Path
import strict
from qinco_jax.cli.main import main
from qinco_jax.models import codes
codes.BLOCK_ROWS = 128, 128
where = sys.argv.pop(1)
def kill(*_): signal.raise_signal(signal.SIGKILL)
if where == "encoding":
    write = codes._write_json
    def dies(path, content):
        write(path, content)
        if content.get("done") == 256: kill()
    codes._write_json = dies
else:
    rename = Path.rename
    def dies(self, target):
        if where == "between" and self.name == "new": kill()
        found = rename(self, target)
        if where == "after" and self.name == "new": kill()
        return found
    Path.rename = dies
main()
"""


def killed(where: str, *arguments: object) -> None:
    support = str(Path(__file__).parents[1] / "support")
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, where, *map(str, arguments)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([support, *sys.path])},
    )  # fmt: skip
    assert ran.returncode == -signal.SIGKILL, ran.stderr


def test_a_killed_build_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, work = tmp_path / "index", tmp_path / ".index.work"
    build = ["index", "build", folder / "model0", folder, index, "--num-lists", 16]
    killed("encoding", *build)
    assert not index.exists() and {"fitted", ".codes.npy.partial"} <= names(work)
    other = refused(*build[:-1], 8)
    assert "unfinished work of a command with another num_lists" in other
    killed("between", *build)
    assert not index.exists() and "new" in names(work)
    monkeypatch.setattr(indexing, "fit", None)  # is not fitted, nor encoded, again
    monkeypatch.setattr(code_files, "write", None)
    done(*build)
    same(index, folder / "index")
    assert names(tmp_path) == {"index"}


@pytest.mark.parametrize("where", ["encoding", "between", "after"])
def test_a_killed_addition_goes_on_and_adds_once(folder: Path, tmp_path: Path, where: str) -> None:
    index = tmp_path / "index"
    qj.search.save(qj.search.load(folder / "index"), index)
    add = ["index", "add", index, folder / "train.npy"]
    killed(where, *add)
    done(*add)
    assert len(qj.search.load(index)) == 1600
    assert names(tmp_path) == {"index"}


def test_a_plan_tells_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SIZES", (500, 1000, 2000))
    for name, size in {"TRAINED": 512, "ENCODED": 64, "QUERIES": 16, "LISTS": 8}.items():
        monkeypatch.setattr(plan, name, size)
    more = ["--machines", 1, "--machines", 4, "--train-rows", "1e7"]
    output = done("plan", "--rows", "1e9", "--dim", 4, "--bytes", 2, *more)
    assert output.startswith("1,000,000,000 vectors of 4 dimensions")
    for what in (
        "file of codes +2.00GB", r"encoding .*core-hours", "reads 16.0GB", "building", "queries/s",
        r"on 4: in memory +\d", r"on 4: queries/s +\d", r"on 4: network +[\d.]+\w*B/query",
        r"train 10,000,000 +\d",
    ):  # fmt: skip
        assert re.search(what, output), what
    assert "--rows must be 1 to" in refused("plan", "--rows", "0", "--dim", 4)
    bad = refused("plan", "--rows", "1", "--dim", 4, "--train-rows", "0")
    assert "--train-rows must be 1 to" in bad


def test_a_line_through_measurements_never_falls_below_zero() -> None:
    assert plan._line([(1, 3), (2, 5), (3, 7)]).at(10) == pytest.approx(21)
    assert plan._line([(1, 3), (2, 2), (3, 1)]) == (2, 0)
    assert plan._line([(10, 1), (20, 3)]).start == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "{0}/index", "{0}/queries.npy", "{0}/out.csv"], r"out.csv has an unknown"),
        (["search", "{0}/model0", "{0}/queries.npy", "{0}/out.npy"], "model0 is not an index"),
        (["info", "{0}/none"], "none is not an index"),
        (["add", "{0}/index", "{0}/more.npy", "--ids", "{0}/more.npy"], "more.npy holds no ids"),
        (["build", "{0}/model0", "{0}", "{0}/none/index"], "there is no directory"),
    ],
)
def test_bad_input_is_one_sentence(folder: Path, arguments: list[str], message: str) -> None:
    output = refused("index", *(text.format(folder) for text in arguments))
    assert message in output and output.count("\n") == 1


def test_what_an_interrupted_build_has_kept_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    build = ["index", "build", folder / "model0", folder, tmp_path / "index", "--num-lists", 16]
    for place, words in (
        ("fit", "lists and decoders are not fitted yet, so nothing was kept"),
        ("_filled", "what was finished is kept; run the same command again to resume"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(indexing, place, interrupted)
            ran = qinco(*build)
        assert ran.exit_code == 130 and f"qinco: interrupted; {words}\n" in ran.output
