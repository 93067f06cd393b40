"""Shards are built like one index, and what is finished stays when the work is stopped."""

import itertools
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest

import qinco_jax as qj
from qinco_jax.cluster import shards
from qinco_jax.cluster.actors import shares_of_cores
from qinco_jax.models import codes as code_files
from qinco_jax.search import manifest

pytest.importorskip("faiss")

CONFIG = qj.QincoConfig(
    dim=8, num_steps=3, codebook_size=64, hidden_dim=8, num_blocks=1, num_candidates=4,
    beam_size=2,
)  # fmt: skip
SETTINGS = {"num_lists": 6, "metric": "l2", "max_rows": 2000}
QUERIES = oracle.random_vectors(10, 8, seed=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    np.save(folder / "train.npy", oracle.random_vectors(2000, 8, seed=2))
    np.save(folder / "database.npy", oracle.random_vectors(203, 8))
    qj.save(oracle.random_model(CONFIG), folder / "model")
    return folder


def build(data: Path, target: Path, count: int, **options: Any) -> None:
    given = {"made": {}, **SETTINGS, **options}
    shards.build(target, qj.load(data / "model"), str(data), count, **given)


def whole(data: Path) -> qj.search.Index:
    model, x = qj.load(data / "model"), np.load(data / "train.npy")
    found = qj.search.build(model, x, 6, max_rows=2000)
    found.add(np.load(data / "database.npy"))
    return found


def assert_same(data: Path, target: Path) -> None:
    for found, expected in zip(
        qj.search.sharded(target).search(QUERIES, num_probes=3),
        whole(data).search(QUERIES, num_probes=3),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_shards_hold_all_rows_and_what_is_finished_stays(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, done = tmp_path / "index", []
    fill = shards.fill

    def stopped(task: shards.Task) -> int:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task.shard.name)
        return fill(task)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards, "fill", stopped)
        build(data, target, 3)
    assert {path.name for path in target.iterdir()} == set(done)
    with pytest.raises(qj.InputError, match="unfinished work of a command with another metric"):
        build(data, target, 3, metric="ip")
    with monkeypatch.context() as patch:
        patch.setattr(shards, "fit", None)  # is not fitted again
        build(data, target, 3, advance=lambda *numbers: done.append(numbers))
    assert done[2:] == [(135, 203), (203, 203)]
    assert sorted(path.name for path in target.iterdir()) == [
        *(f"shard-0000{n}-of-00003" for n in range(3)), "shards.json"
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert [(part.begin, part.end) for part in manifest.read(target).shards] == [
        (0, 67), (67, 135), (135, 203)
    ]  # fmt: skip
    assert_same(data, target)
    with pytest.raises(qj.InputError, match="index exists"):
        build(data, target, 3)


def test_codes_that_exist_are_divided_too(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, model = np.load(data / "database.npy"), qj.load(data / "model")
    code_files.write(tmp_path / "codes.npy", model, x)
    monkeypatch.setattr(code_files, "write", None)
    build(data, tmp_path / "index", 2, codes=str(tmp_path / "codes.npy"))
    assert_same(data, tmp_path / "index")


@pytest.mark.filterwarnings("ignore:os.fork")
def test_workers_of_ray_fill_shards_though_one_is_killed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    fill, died = shards.fill, tmp_path / "died"

    def dies_once(task: shards.Task) -> int:
        if task.shard.begin and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return fill(task)

    monkeypatch.setattr(shards, "fill", dies_once)
    build(data, tmp_path / "index", 4, workers=2)
    assert died.exists()
    assert_same(data, tmp_path / "index")


def test_bad_input_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(qj.InputError, match="got 204 shards for 203 vectors"):
        build(data, tmp_path / "index", 204)
    with pytest.raises(qj.InputError, match=r"a worker has qinco_jax .* and the command 0.0"):
        part = manifest.shards_of(203, 2)[0]
        shards.fill(shards.Task(part, tmp_path, tmp_path, str(data), {}, None, "0.0"))
    with pytest.raises(qj.InputError, match="a worker does not see"):
        shards.fill(shards.Task(part, tmp_path, tmp_path, str(data), {}, None))
    index = whole(data)
    qj.search.save(index, tmp_path / "fitted")
    with pytest.raises(qj.InputError, match="a worker sees other vectors as"):
        shards.fill(shards.Task(part, tmp_path, tmp_path, str(data), {}, None))
    shutil.rmtree(tmp_path / "fitted")
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(qj.InputError, match=r"workers need Ray; pip install 'qinco_jax\[ray\]'"):
        build(data, tmp_path / "index", 2, workers=2)
    assert not list(tmp_path.iterdir())
    cores = sorted(os.sched_getaffinity(0))
    assert sorted(itertools.chain(*shares_of_cores(len(cores)))) == cores
    assert all(len(share) == 1 for share in shares_of_cores(3 * len(cores)))
