"""Scripts for the papers' tables and about training go their whole way at a tiny size."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from scripts import FEW, ROOT, TINY, read, run, script

import qinco_jax as qj
from qinco_jax.quantizers import qinco

SCRIPTS = (
    "table1", "multi_rate", "k_m_tradeoff", "parts", "ablations", "blocks", "candidates_beam",
    "times", "variants", "costs", "unq_search",
)  # fmt: skip


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


def test_few_rows_are_trained_on_by_each_recipe(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("few_rows", monkeypatch)
    monkeypatch.setattr(qj, "PRESETS", {"small": qj.QincoConfig(num_steps=2, **FEW)})
    monkeypatch.setattr(qj, "RECIPES", {"small": qj.Recipe(batch_size=64, num_updates=2)})
    given = ["--dataset", folder, "--rows", 300, "--epochs", 2, "--out", folder / "out.jsonl"]
    run(module, *given, "--recipe", "plain")
    names = "none", "dropout 0.1", "noise 0.3"
    others = [part for name in names for part in ("--regularizer", name)]
    shown = run(module, *given, "--recipe", "mixed, decay", *others)
    rows = read(folder / "out.jsonl")
    assert [row["recipe"] for row in rows] == ["plain", *3 * ["mixed, decay"]]
    assert len({row["curve"][-1] for row in rows}) == 4
    for row in rows:
        assert len(row["curve"]) == 3 and row["val_mse"] <= row["start_val_mse"] * (1 + 1e-6)
    lines = shown.strip().splitlines()
    assert len(lines) == 6 and len({len(line) for line in lines}) == 1
    assert f"{rows[3]['database_mse']:#.4g}" in lines[5]


@pytest.mark.parametrize("embed_dim", [4, 8])
def test_without_dropout_and_noise_reconstructions_are_the_librarys(
    folder: Path, monkeypatch: pytest.MonkeyPatch, embed_dim: int
) -> None:
    module, x = script("regularizers", monkeypatch), np.load(folder / "train.npy")
    config = qj.QincoConfig(num_steps=3, embed_dim=embed_dim, **FEW)
    model = qj.train(x, config, num_epochs=1, batch_size=64, num_updates=2)
    codes, plain = qj.encode(model, x), qinco.reconstructions
    np.testing.assert_allclose(module.reconstructions(model, codes), plain(model, codes), atol=1e-5)
    for how in ({"dropout": 0.1}, {"noise": 0.3 * module.residual_sizes(model, x)}):
        moved = np.abs(module.reconstructions(model, codes, **how) - plain(model, codes))
        assert moved[0].max() == 0 and moved[1:].max() > 1e-3  # the first step has no network


def test_recipes_train_the_same_network_and_are_drawn(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("recipes", monkeypatch)
    sizes = {"num_steps": 2, "codebook_size": 16, "embed_dim": 4, "hidden_dim": 8, "num_blocks": 3}
    monkeypatch.setattr(qj, "PRESETS", {
        "small": qj.QincoConfig(**{**sizes, "num_blocks": 2}), "qinco2-S": qj.QincoConfig(**sizes)
    })  # fmt: skip
    monkeypatch.setattr(module, "lasting", lambda recipe, *_: dataclasses.replace(
        recipe, num_epochs=2, epoch_rows=1024
    ))  # fmt: skip
    monkeypatch.setattr(module, "VAL_ROWS", 100)
    out = folder / "recipes.jsonl"
    for recipe in module.RECIPES:
        shown = run(module, "--recipe", recipe, "--minutes", 1, "--dataset", folder, "--out", out)
    published, ours = read(out)
    assert published["parameters"] == ours["parameters"] and "qinco2-S" in shown
    for row in (published, ours):
        assert [vectors for _, vectors, _ in row["curve"]] == [0, 1024, 2048]  # type: ignore
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_the_tables_of_the_docs_are_those_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("write_tables", monkeypatch)
    assert run(module, "--check") == ""
    pages = [(ROOT / name).read_text() for name in module.PAGES]
    shown = {found[2] for page in pages for found in module.BLOCK.finditer(page)}
    assert shown == set(module.TABLES)
    first = re.search(r"\| \*\*(\d+,\d+)\*\*", pages[0])
    assert first is not None
    changed = pages[0].replace(first[1], "12,345")
    assert module.rewritten(changed) == pages[0] != changed
