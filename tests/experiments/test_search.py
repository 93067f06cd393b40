"""Scripts about search start, and find what exhaustive search does."""

import importlib
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from scripts import FEW, read, run, script

import qinco_jax as qj
from qinco_jax.codecs.unq import unq
from qinco_jax.codecs.unq.train import train as train_unq
from qinco_jax.evaluate.metrics import measure
from qinco_jax.evaluate.neighbours import nearest_neighbours, queries_of
from qinco_jax.models import codes as code_files
from qinco_jax.quantizers.transform import to_model_space


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


@pytest.mark.parametrize("kind", ["lists", "cosine"])
def test_search_is_measured_beside_the_published_pipeline_and_faiss(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    pytest.importorskip("faiss")
    module = script("nearest", monkeypatch)
    monkeypatch.setattr(module, "PROBES", (8,))
    monkeypatch.setattr(module, "RERANKED", (0, 200))
    if kind == "cosine":
        for part in ("train", "database", "queries"):
            x = np.load(folder / f"{part}.npy")
            np.save(folder / f"{part}.npy", x / np.linalg.norm(x, axis=1, keepdims=True))
    config = qj.QincoConfig(num_steps=6, num_centroids=8 if kind == "lists" else None, **FEW)
    qj.save(qj.train(np.load(folder / "train.npy"), config, num_epochs=0), folder / "model")
    np.save(folder / "more.npy", np.load(folder / "train.npy")[:50])
    monkeypatch.chdir(folder)
    given = ["--dataset", folder, "--model", folder / "model", "--out", "out", "--rounds", 1]
    given += ["--extra", folder / "more.npy", "--lists", 8]
    given += ["--metric", "cosine" if kind == "cosine" else "l2"]
    shown = run(module, *given)
    rows = read(folder / "out" / "nearest.jsonl")
    for row in rows:
        assert (row["vectors"], row["lists"], row["model_bytes"]) == (250, 8, 3)
        assert row["residual"] == (kind == "lists") and row["metric"] in given
    by_system: dict[object, list[dict[str, object]]] = {}
    for row in rows:
        by_system.setdefault(row["system"], []).append(row)
    assert {row["bytes"] for row in by_system["published"]} == {4}
    for name in ("Faiss IVF-PQ", "Faiss PQ fast-scan", "Faiss IVF-RQ"):
        assert {row["bytes"] for row in by_system[name]} == {by_system["ours"][0]["bytes"]}
    (plain,), (rough, whole) = by_system["exhaustive"], by_system["published"]
    at = {(row["num_probes"], row["num_reranked"]): row for row in by_system["ours"]}
    scanned = at[8, 0]  # all lists
    if kind == "lists":  # with all codes decoded the published pipeline is exhaustive search by L2
        assert rough["10-recall@10"] == pytest.approx(scanned["10-recall@10"], abs=0.1)
        assert whole["recall@1"] == plain["recall@1"]
        assert whole["10-recall@10"] == pytest.approx(plain["10-recall@10"])
    for row in (rough, whole, by_system["ours"][-1], plain):
        assert row["10-recall@10"] > 0.4
    assert "exhaustive" in shown and "times as fast as published" in shown
    page = (folder / "out" / "report.html").read_text()
    assert "Nearest neighbours" in page and "times as fast as published" in page
    monkeypatch.setattr(module.indexing, "build", None)  # what is there is not made again
    monkeypatch.setattr(module.code_files, "write", None)
    monkeypatch.setattr(module.rivals, "factories", lambda *sizes: {})
    run(module, *given)
    assert {row["system"] for row in read(folder / "out" / "nearest.jsonl")} == {
        "ours", "published", "exhaustive"
    }  # fmt: skip


def test_shortlists_that_keep_more_find_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    module = script("shortlists", monkeypatch)
    x, x_train = (np.load(folder / f"{name}.npy") for name in ("database", "train"))
    np.save(folder / "groundtruth.npy", nearest_neighbours(x, np.load(folder / "queries.npy"), 10))
    model = qj.train(x_train, qj.QincoConfig(num_steps=4, **FEW), num_epochs=0)
    index = qj.search.build(model, x_train, 8)
    index.add(x)
    qj.search.save(index, folder / "index")
    code_files.write(folder / "codes.npy", model, x)
    given = ["--index", folder / "index", "--codes", folder / "codes.npy", "--dataset", folder]
    run(module, *given, "--out", folder / "out.jsonl")
    rows = read(folder / "out.jsonl")
    kinds = [[row for row in rows if row["kind"] == kind] for kind in ("fixed", "threshold")]
    for own in kinds:
        for name in ("evaluations", "recall@10"):
            assert [row[name] for row in own] == sorted(row[name] for row in own)  # type: ignore[type-var]
    assert {row["kind"] for row in rows} == {"fixed", "threshold", "stopped", "dropped"}
    assert all(10 <= row["evaluations"] <= 100 for row in rows)  # type: ignore[operator]


def test_scales_that_heed_how_far_off_a_code_is_find_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("scales", monkeypatch)
    x = np.eye(3, 4)[[0, 1, 1]]
    x_hat = np.array([[2, 0, 0, 0], [0.4, 0.3, 0, 0], [0, 0.4, 0, 0.3]])
    cosines = np.array([1, 0.6, 0.8])
    rows = module.rows_of("RQ", x, x_hat, np.array([[0.7, 0.5, 0, 0]]), np.array([0]))
    scores = {None: [1.4, 0.43, 0.2], **{p: [0.7, 0.86, 0.4] * cosines**p for p in (0, 0.5, 1)}}
    for row in rows:
        if row["exponent"] in scores:
            own = np.asarray(scores[row["exponent"]])
            assert row["recall@1"] == (own.argmax() == 0), row
    config = qj.QincoConfig(num_steps=2, **FEW)
    qj.save(qj.train(np.load(folder / "train.npy"), config, num_epochs=0), folder / "model")
    given = ["--dataset", folder, "--model", folder / "model", "--out", folder / "out.jsonl"]
    shown = run(module, *given)
    assert len(read(folder / "out.jsonl")) == 2 * 6 and "p = 0.5" in shown


def test_what_else_than_the_error_is_minimised_is_compared_by_recall(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("recall_and_error", monkeypatch)
    queries, error = np.random.default_rng(0).normal(size=(2, 50, 4))
    found = np.square(error @ module.weighting(queries, 0.0)).sum(axis=1)
    exact = np.square(error @ queries.T).mean(axis=1)
    np.testing.assert_allclose(found / found[0], exact / exact[0], rtol=1e-6)

    config = qj.QincoConfig(num_steps=2, **FEW)
    monkeypatch.setattr(qj, "PRESETS", {"small": config})
    monkeypatch.setattr(qj, "RECIPES", {"small": qj.Recipe(batch_size=64, mix=0.0)})
    names = "plain", "first 50% of dimensions", "tuned, ranking .1"
    asked = [part for name in names for part in ("--variant", name)]
    given = ["--dataset", folder, "--queries", "topics", "--vectors", "lengths", "--rows", 300]
    out, image = folder / "out.jsonl", folder / "out.svg"
    shown = run(module, *given, *asked, "--epochs", 0, "--out", out, "--plot", image)
    rows = read(out)
    assert [row["variant"] for row in rows] == list(names) and "topics" in shown
    assert rows[0]["gain@1"] == 0 and rows[1]["error"] > rows[0]["error"]  # type: ignore[operator]
    assert image.read_text().count("points of R@") == 2

    x = np.float32(np.load(folder / "train.npy")[:300])
    model = qj.init(jax.random.key(0), config, qj.rq.train(x, 2, 16))
    codes, ones = np.zeros((len(x), 2), np.uint8), np.ones(len(x), np.float32)
    loss = jax.jit(module.recall_losses.loss, static_argnums=(4, 5))
    plain, _ = jax.jit(qj.loss)(model, to_model_space(jnp.asarray(x), model.transform), codes)
    for kind, weight in (("along", 1.0), ("sphere", 0.0)):
        np.testing.assert_allclose(loss(model, x, codes, ones, kind, weight), plain, rtol=1e-5)


def test_the_growth_of_an_index_is_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    module = script("index_growth", monkeypatch)
    for name, value in (("TRAIN_ROWS", 600), ("NUM_LISTS", 8), ("NUM_QUERIES", 20)):
        monkeypatch.setattr(module, name, value)
    config = qj.QincoConfig(num_steps=2, **FEW)
    x = np.asarray(module.clustered(0, 600))
    assert len(np.unique(x, axis=0)) == 600
    np.testing.assert_array_equal(module.clustered(100, 50)[7:9], x[107:109])
    monkeypatch.setattr(module, "untrained", lambda: qj.train(x, config, num_epochs=0))
    run(module, "--rows", "300,700", "--work", folder / "work", "--out", folder / "out.jsonl")
    rows = read(folder / "out.jsonl")
    assert [row["vectors"] for row in rows] == [300, 700]
    assert all(row["queries_per_second"] > 0 for row in rows)  # type: ignore[operator]
    assert not (folder / "work").exists()


def nearest_of_codes(model: qj.Qinco, x: np.ndarray, queries: np.ndarray, metric: str) -> float:
    """Recall of the 10 nearest by exhaustive search over the codes."""
    x_hat = np.asarray(qj.decode(model, qj.encode(model, x)))
    found, known = (nearest_neighbours(rows, queries, 10, metric) for rows in (x_hat, x))
    return float(np.mean([np.isin(*pair).mean() for pair in zip(found, known, strict=True)]))


@pytest.mark.parametrize("distance, metric", [("euclidean", "l2"), ("angular", "cosine")])
def test_ann_benchmarks_finds_what_exhaustive_search_over_the_codes_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch, distance: str, metric: str
) -> None:
    pytest.importorskip("faiss")
    module = script("ann_benchmarks.run", monkeypatch)
    x, queries = (np.load(folder / f"{name}.npy") for name in ("train", "queries"))
    config = qj.QincoConfig(num_steps=4, unit_norm=metric == "cosine", **FEW)
    model = qj.train(x, config, num_epochs=0)
    qj.save(model, folder / "model")
    with h5py.File(folder / "set.hdf5", "w") as file:
        rows = nearest_neighbours(x, queries, 10, metric)
        near = x[rows]
        apart = np.linalg.norm(near - queries[:, None], axis=2)
        if distance == "angular":
            lengths = np.linalg.norm(near, axis=2) * np.linalg.norm(queries, axis=1)[:, None]
            apart = 1 - np.einsum("qkd,qd->qk", near, queries) / lengths
        file.update({"train": x, "test": queries, "neighbors": rows, "distances": apart})
        file.attrs["distance"] = distance
    settings = yaml.safe_load((module.FOLDER / "config.yml").read_text())
    (group,) = settings["float"][distance][0]["run_groups"].values()
    group["args"] = {"model": str(folder / "model"), "lists": 8, "count": "@count"}
    group["query_args"] = [[1, 8], [0, 100]]
    (folder / "config.yml").write_text(yaml.safe_dump(settings))
    given = ["--config", folder / "config.yml", "--out", folder / "out.jsonl"]
    run(module, folder / "set.hdf5", *given)
    found = read(folder / "out.jsonl")
    assert len(found) == 8 and len({row["algorithm"] for row in found}) == 4
    assert all(a["recall"] == b["recall"] for a, b in zip(found[::2], found[1::2], strict=True))
    recalls = [row["recall"] for row in found[::2]]
    assert recalls[-1] >= nearest_of_codes(model, x, queries, metric) > 0.2
    assert recalls[-1] > max(recalls[:2])


def test_the_settings_for_ann_benchmarks_are_valid_and_no_query_waits_for_the_compiler(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("faiss")
    module = script("ann_benchmarks.run", monkeypatch)
    module.stand_in("ann_benchmarks")
    shipped = [*module.algorithms(module.FOLDER / "config.yml", "angular")]
    assert [len(groups) for _, groups in shipped] == [40, 40, 40]
    adapter = type(shipped[0][0])
    params = {"preset": "small", "bytes": 2, "count": 10, "num_epochs": 0, **FEW}
    algorithm = adapter("angular", params)
    algorithm.fit(np.load(folder / "train.npy"))
    assert algorithm.index.model.config.unit_norm
    queries = np.load(folder / "queries.npy")
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        algorithm.set_query_arguments(2, 30)
        assert "Compiling" in caplog.text
        caplog.clear()
        single = [algorithm.query(query, 10) for query in queries]
        for count in (3, 20, 300):
            algorithm.batch_query(np.resize(queries, (count, 8)), 10)
        assert "Compiling" not in caplog.text
    np.testing.assert_array_equal(algorithm.get_batch_results()[:20], single)


def test_big_ann_benchmarks_builds_stores_and_searches_an_index(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    module = script("ann_benchmarks.run", monkeypatch)
    module.stand_in("benchmark")
    x, queries = (np.load(folder / f"{name}.npy") for name in ("train", "queries"))

    class Small:
        def short_name(self) -> str:
            return "Small-2000"

        def get_dataset_iterator(self, bs: int) -> Iterator[np.ndarray]:
            return (x[begin : begin + bs] for begin in range(0, len(x), bs))

    datasets = ModuleType("benchmark.datasets")
    datasets.DATASETS = {"small": Small}
    monkeypatch.setitem(sys.modules, "benchmark.datasets", datasets)
    monkeypatch.chdir(folder)
    adapter = importlib.import_module("benchmark.algorithms.qinco_jax.big_ann")
    monkeypatch.setattr(adapter, "BLOCK_ROWS", 700)
    for content in yaml.safe_load((module.FOLDER / "big_ann.yaml").read_text()).values():
        (group,) = content["qinco_jax"]["run-groups"].values()
        (params,) = json.loads(group["args"])
        adapter.QincoJax("euclidean", params)
    params |= {"bytes": 2, "num_epochs": 0, "count": 10, "lists": 8, "train_rows": 1500, **FEW}
    first = adapter.QincoJax("euclidean", params)
    assert not first.load_index("small") and first.track() == "T1"
    first.fit("small")
    first.set_query_arguments(8, 100)
    first.query(queries, 10)
    known = nearest_neighbours(x, queries, 10)
    pairs = zip(first.get_results(), known, strict=True)
    recall = np.mean([np.isin(*pair).mean() for pair in pairs])
    assert recall >= nearest_of_codes(first.index.model, x, queries, "l2") > 0.2
    place, name, endings = first.index_files_to_store("small")
    (archive,) = [Path(place) / f"{name}{ending}" for ending in endings]
    assert archive.is_file()
    shutil.rmtree(Path(place) / name)
    second = adapter.QincoJax("euclidean", params)
    assert second.load_index("small")
    second.set_query_arguments(8, 100)
    second.query(queries, 10)
    np.testing.assert_array_equal(second.get_results(), first.get_results())
