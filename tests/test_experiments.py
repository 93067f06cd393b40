"""The scripts for the papers' tables and figures start, and go their whole way at a tiny size."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

from qinco_jax.codecs.unq import unq
from qinco_jax.codecs.unq.train import train as train_unq
from qinco_jax.evaluate.metrics import measure
from qinco_jax.evaluate.neighbours import queries_of

ROOT = Path(__file__).parents[1]
SCRIPTS = (
    "table1", "multi_rate", "k_m_tradeoff", "parts", "ablations", "blocks", "candidates_beam",
    "times", "variants", "costs", "unq_search",
)  # fmt: skip
TINY = ["hidden_dim=4", "embed_dim=4", "num_blocks=1", "epoch_rows=512"]


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module(name)


def run(module: ModuleType, *arguments: object) -> str:
    ran = CliRunner().invoke(module.main, [str(argument) for argument in arguments])
    assert ran.exit_code == 0, ran.output
    return ran.output


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, num_rows in (("train", 2000), ("database", 200), ("queries", 20)):
        rows = rng.normal(size=(num_rows, 8)) * np.linspace(1, 3, 8)
        np.save(tmp_path / f"{name}.npy", np.float32(rows))
    return tmp_path


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_tells_its_options_its_command_and_the_papers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script(name, monkeypatch)
    assert "--scale" in run(module, "--help")
    text = module.__doc__ or ""
    assert f"python experiments/{name}.py" in text and "paper" in text and "\nOurs: " in text
    assert name in (ROOT / "experiments" / "README.md").read_text()


def test_models_of_several_settings_stand_beside_each_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [part for setting in TINY for part in ("--set", setting)]
    given = ["--dataset", folder, "--out", folder / "out", "--bytes", 1, *settings]
    module = script("k_m_tradeoff", monkeypatch)
    monkeypatch.setattr(module, "SIZES", {"small": (4, 16)})
    assert "K=4 M=4" in run(module, *given)
    rows = read(folder / "out" / "results.jsonl")
    assert {row["codec"] for row in rows} == {"K=4 M=4", "K=16 M=2"}
    assert {row["bytes"] for row in rows} == {1}
    assert all(row["encode_us"] for row in read(folder / "out" / "costs.jsonl"))
    assert (folder / "out" / "report.html").exists()


def test_times_are_those_of_our_models_and_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    settings = [part for setting in TINY for part in ("--set", setting)]
    given = ["--dataset", folder, "--out", folder / "out", "--codecs", "pq,small", *settings]
    assert "small" in run(script("times", monkeypatch), *given)
    rows = read(folder / "out" / "times.jsonl")
    assert [row["codec"] for row in rows] == ["pq", "small"]
    assert all(row["encode_us"] > 0 and row["decode_us"] > 0 for row in rows)


def test_parts_stand_beside_a_product_quantizer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    settings = [part for setting in ("hidden_dim=4", *TINY[2:]) for part in ("--set", setting)]
    module = script("parts", monkeypatch)
    monkeypatch.setattr(module, "BYTES", {"small": 2})
    monkeypatch.setattr(module, "PARTS", {"small": (1, 2)})
    run(module, "--dataset", folder, "--out", folder / "out", *settings)
    rows = read(folder / "out" / "results.jsonl")
    assert {row["codec"] for row in rows} == {"1x2x8", "2x1x8", "PQ"}


def test_the_shortlist_of_all_rows_finds_what_exhaustive_search_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("unq_search", monkeypatch)
    monkeypatch.setattr(module, "SHORTLISTS", (100, 150))
    run(module, "--dataset", folder, "--out", folder / "out", "--bytes", 4, "--epochs", 0)
    rows = read(folder / "out" / "results.jsonl")
    assert [row["shortlist"] for row in rows] == [100, 150, 200]
    parts = (np.load(folder / f"{name}.npy") for name in ("train", "database", "queries"))
    train, database, queries = parts
    codec = unq.codec(train_unq(train, 4, num_epochs=0))
    whole = measure(codec, database, [queries_of(queries, database)]).recall["queries"]
    for k in (1, 10, 100):
        assert rows[-1][f"recall@{k}"] == pytest.approx(whole[f"recall@{k}"].value)
    assert rows[0]["recall@1"] > 0.5


def test_costs_are_measured_once_for_each_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    module = script("costs", monkeypatch)
    small = module.BASE["small"]._replace(N=600, K=8, D=8, M=2)
    monkeypatch.setattr(module, "BASE", {"small": small})
    monkeypatch.setattr(module, "RANGES", {"small": {"M": (2, 4), "K": (4, 8)}})
    given = ["--out", tmp_path, "--codecs", "opq,rq", "--axes"]
    run(module, *given, "K")
    before = read(tmp_path / "growth.jsonl")
    run(module, *given, "KM")
    rows = read(tmp_path / "growth.jsonl")
    places = [(row["codec"], row["axis"], row["value"]) for row in rows]
    assert len(set(places)) == len(places) == 8 and all(row in rows for row in before)
    for name in ("opq", "rq"):
        own = [row["mse"] for row in rows if row["codec"] == name and row["axis"] == "K"]
        assert own == sorted(own, reverse=True)
    assert (tmp_path / "growth.svg").exists()
