"""Folders of models: what comes back, what damage does, and what earlier versions wrote."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors import safe_open

import qinco_jax as qj
from qinco_jax.cli import main as cli
from qinco_jax.codecs import named
from qinco_jax.models import disk, orbax
from qinco_jax.quantizers import packing
from qinco_jax.quantizers.coding import Model

OLD = Path(__file__).parent / "old"
CONFIG = qj.QincoConfig(
    dim=4, num_steps=3, codebook_size=4, hidden_dim=4, num_blocks=1, num_candidates=2, beam_size=2
)
every_old = pytest.mark.parametrize("name", ["plain", "unit_norm"])


def unpacked(name: str, folder: Path) -> Path:
    """The model, the file and the unfinished run that the code of 2026-11-23 wrote."""
    shutil.unpack_archive(OLD / f"{name}.zip", folder)
    return folder


@pytest.fixture(scope="module")
def model() -> Model:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jax.numpy.asarray(rng.normal(size=leaf.shape), leaf.dtype),
        disk.abstract(CONFIG),
    )


def assert_same(found: object, expected: object) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("path", [None, 3, b"model", CONFIG])
def test_what_is_no_path_is_refused(model: Model, path: Any) -> None:
    words = f"object of type {type(path).__name__} where a path belongs"
    for call in (
        lambda: qj.load(path),
        lambda: qj.save(model, path),
        lambda: qj.export(model, path),
        lambda: qj.search.load(path),
        lambda: qj.datasets.load(path),
    ):
        with pytest.raises(qj.InputError, match=words):
            call()
    with pytest.raises(qj.InputError, match=r"not a model; call export\(model, path\)"):
        qj.export("programs", model)  # type: ignore[arg-type]


def test_damage_in_a_folder_is_refused(model: Model, tmp_path: Path) -> None:
    """Or it gives the same model, as where Orbax wrote something that it does not read."""
    qj.save(model, tmp_path / "model")
    refused = []
    for file in [path for path in (tmp_path / "model").rglob("*") if path.is_file()]:
        whole = file.read_bytes()
        places = range(0, len(whole), 1 + len(whole) // 8)
        for damaged in (None, b"", whole[:-5], *(flipped(whole, place) for place in places)):
            if damaged is None:
                file.unlink()
            else:
                file.write_bytes(damaged)
            try:
                found = qj.load(tmp_path / "model")
            except qj.InputError as error:
                assert str(tmp_path / "model") in str(error)
                if damaged is None:
                    assert "missing" in str(error)
                refused.append(file.relative_to(tmp_path / "model").parts[:2])
            else:
                assert_same(found, model)
        file.write_bytes(whole)
    assert {("model.json",), ("arrays", "d"), ("arrays", "manifest.ocdbt")} <= set(refused)


@pytest.mark.parametrize(
    ("old", "new"), [('"version": "', '"version": "9'), ('"beam_size": 2', '"beam_size": 3')]
)
def test_metadata_that_does_not_belong_to_the_arrays_is_refused(
    old: str, new: str, model: Model, tmp_path: Path
) -> None:
    qj.save(model, tmp_path / "model")
    file = tmp_path / "model" / "model.json"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(qj.InputError, match=r"model is damaged \(.*backup or train it again"):
        qj.load(tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "arrays")
    with pytest.raises(qj.InputError, match="model/arrays is missing; take the model from"):
        qj.load(tmp_path / "model")


def test_a_path_may_go_up(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    qj.save(model, "../model")
    assert_same(qj.load("../model"), model)
    assert_same(qj.load(tmp_path / "below" / ".." / "model"), model)


def test_arrays_of_another_model_are_refused(model: Model, tmp_path: Path) -> None:
    qj.save(model, tmp_path / "model")
    qj.save(jax.tree.map(lambda leaf: leaf + 1, model), tmp_path / "other")
    shutil.rmtree(tmp_path / "model" / "arrays")
    shutil.copytree(tmp_path / "other" / "arrays", tmp_path / "model" / "arrays")
    with pytest.raises(qj.InputError, match=r"model is damaged \(its arrays and model.json"):
        qj.load(tmp_path / "model")


def test_a_folder_and_a_file_have_the_same_digest(model: Model, tmp_path: Path) -> None:
    qj.save(model, tmp_path / "model")
    qj.save(model, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        metadata = json.loads(file.metadata()["qinco_jax"])
    assert metadata == json.loads((tmp_path / "model" / "model.json").read_text())


def test_only_orbax_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("absl")
    logger.setLevel(logging.INFO)
    before = logger.level, list(logger.filters)
    with caplog.at_level(logging.INFO), orbax.quiet_orbax():
        for path, level in (("/a/orbax/b.py", "WARNING"), ("/a/mine.py", "INFO")):
            number = logging.getLevelName(level)
            logger.handle(logger.makeRecord("absl", number, path, 1, path, (), None))
    assert [record.pathname for record in caplog.records] == ["/a/mine.py"]
    assert (logger.level, list(logger.filters)) == before


def test_a_tilde_is_the_home_folder(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    for path in ("~/model", "~/model.safetensors", Path("~/deep/model")):
        qj.save(model, path)
        assert_same(qj.load(path), model)
    qj.export(model, "~/programs")
    (home / "x.pt").write_bytes(b"no zip")
    with pytest.raises(qj.InputError, match=r"x\.pt: it "):
        qj.load_pytorch("~/x.pt")
    assert {path.name for path in home.iterdir()} == {
        "model", "model.safetensors", "deep", "programs", "x.pt"
    }  # fmt: skip
    assert not list(here.iterdir())


def test_the_folder_of_a_run_is_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    x = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    config = dataclasses.replace(CONFIG, num_parts=2)
    model = qj.train(x, config, num_epochs=0, run_dir="~/run")
    run = tmp_path / "run"
    np.save(tmp_path / "x.npy", x)
    for source in (run, run / "model"):
        assert_same(qj.load(source), model)
    assert_same(qj.load(run / "part-0"), model.parts[0])
    ran = CliRunner().invoke(cli.main, ["encode", str(run), f"{tmp_path}/x.npy", "~/codes.npy"])
    assert ran.exit_code == 0, ran.output
    codes = np.load(tmp_path / "codes.npy")
    found = np.asarray(qj.encode(model, x))
    np.testing.assert_array_equal(codes, packing.to_rows(found, model.config))
    np.save(tmp_path / "columns.npy", np.asfortranarray(codes))
    ran = CliRunner().invoke(cli.main, ["decode", "~/run", "~/columns.npy", "~/back.npy"])
    assert ran.exit_code == 0, ran.output
    np.testing.assert_allclose(np.load(tmp_path / "back.npy"), qj.decode(model, found), rtol=1e-5)
    assert named.parse("~/run").name == "~/run"
    shutil.rmtree(run / "model")
    for source in (run, run / "model", "~/run"):
        with pytest.raises(qj.InputError, match=f"training in {run} is unfinished.*`qinco train`"):
            qj.load(source)
        with pytest.raises(qj.InputError, match=f"training in {run} is unfinished"):
            named.parse(str(source))


@every_old
@pytest.mark.parametrize("path", ["model", "model.safetensors"])
def test_an_older_model_gives_the_same_codes(name: str, path: str, tmp_path: Path) -> None:
    old = unpacked(name, tmp_path)
    found = qj.load(old / path)
    assert found.config.unit_norm == (name == "unit_norm")
    np.testing.assert_array_equal(
        qj.encode(found, np.load(old / "x.npy")), np.load(old / "codes.npy")
    )


@every_old
def test_damage_in_any_file_of_an_older_model_is_refused(name: str, tmp_path: Path) -> None:
    old = unpacked(name, tmp_path)
    files = [path for path in (old / "model").rglob("*") if path.is_file()]
    for file in (*files, old / "model.safetensors"):
        whole = file.read_bytes()
        file.write_bytes(flipped(whole, len(whole) // 2))
        with pytest.raises(qj.InputError, match=f"{file} is damaged.*backup or train it again"):
            qj.load(old / file.relative_to(old).parts[0])
        if "arrays" in file.parts:
            file.unlink()
            with pytest.raises(qj.InputError, match=f"{file} is missing.*backup or train"):
                qj.load(old / "model")
        file.write_bytes(whole)
    qj.load(old / "model")
