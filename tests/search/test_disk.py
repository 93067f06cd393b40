"""Indexes on disk: the same after a round trip, whole or not there, and damage is noticed."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import indexes
import killed_saving
import numpy as np
import pytest
from indexes import QUERIES, ROWS, X

import qinco_jax as qj

faiss = pytest.importorskip("faiss")
FILES = "index.json", "lists.faiss", "decoder.npz"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("indexes") / "index"
    index = indexes.filled("behind centroids")
    index.remove([ROWS - 1])
    qj.search.save(index, path)
    return path


@pytest.mark.parametrize("name", ["plain", "product", "unit vectors behind centroids"])
@pytest.mark.parametrize("mmap", [False, True])
def test_a_round_trip_changes_no_bit(name: str, mmap: bool, tmp_path: Path) -> None:
    index = indexes.filled(name, indexes.metrics_of(name)[-1])
    index.remove([ROWS - 1])
    qj.search.save(index, tmp_path / "new folder" / "index")
    found = qj.search.load(tmp_path / "new folder" / "index", mmap=mmap)
    assert (len(found), found.next_id) == (ROWS - 1, ROWS)
    assert found.fingerprint == index.fingerprint
    np.testing.assert_array_equal(found.ids(), index.ids())
    for options in ({}, {"num_reranked": 0, "filter": range(50)}):
        expected = index.search(QUERIES, 7, **options)
        for one, two in zip(found.search(QUERIES, 7, **options), expected, strict=True):
            np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(found.reconstruct([5, 2]), index.reconstruct([5, 2]))


def test_an_index_goes_on_growing_after_a_round_trip(saved: Path, tmp_path: Path) -> None:
    index = qj.search.load(saved)
    index.add(X[:2])
    assert index.ids().max() == ROWS + 1
    qj.search.save(index, tmp_path / "more")
    assert len(qj.search.load(tmp_path / "more")) == ROWS + 1
    qj.search.save(indexes.empty(), tmp_path / "empty")
    assert len(qj.search.load(tmp_path / "empty", mmap=True)) == 0


def test_a_mapped_index_cannot_be_changed_or_saved(saved: Path, tmp_path: Path) -> None:
    index = qj.search.load(saved, mmap=True)
    other = indexes.empty("behind centroids")
    other.add(X[:2], [1000, 1001])
    calls: list[Callable[[], object]] = [
        lambda: index.add(X[:1]),
        lambda: index.remove([3]),
        lambda: index.merge(other),
    ]
    for call in calls:
        with pytest.raises(
            qj.InputError, match="the index is read from its file as it is searched"
        ):
            call()
    with pytest.raises(qj.InputError, match="copy its folder"):
        qj.search.save(index, tmp_path / "copy")
    assert not list(tmp_path.iterdir()) and len(index) == ROWS - 1
    other = qj.search.load(saved)  # and it can be merged from
    other.remove(other.ids())
    other.merge(index)
    np.testing.assert_array_equal(np.sort(other.ids()), np.arange(ROWS - 1))


def test_what_exists_is_left_alone(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for target in (saved, tmp_path, tmp_path / "file", tmp_path / "link"):
        with pytest.raises(qj.InputError, match="exists; choose another place"):
            qj.search.save(indexes.empty(), target)
    with pytest.raises(qj.InputError, match=r"cannot write .*; make sure that its directory"):
        qj.search.save(indexes.empty(), tmp_path / "file" / "index")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.parametrize("step", ["arrays", "facts", "rename"])
def test_a_kill_while_saving_leaves_no_half_index(step: str, tmp_path: Path) -> None:
    target = tmp_path / "index"
    command = [sys.executable, str(Path(killed_saving.__file__)), step, str(target)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == -signal.SIGKILL and ran.stdout == "saving\n", ran.stderr
    assert not target.exists()
    qj.search.save(indexes.empty(), target)
    assert len(qj.search.load(target)) == 0


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> None:
        raise RuntimeError("Error in fwrite: No space left on device\n at io.cpp")

    monkeypatch.setattr(faiss, "write_index", write)
    with pytest.raises(qj.InputError, match=r"No space left on device.; make sure") as raised:
        qj.search.save(indexes.empty(), tmp_path / "index")
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def refused(path: Path, message: str) -> None:
    with pytest.raises(qj.InputError, match=message) as raised:
        qj.search.load(path)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_noticed(name: str, copy: Path) -> None:
    file = copy / name
    intact = file.read_bytes()
    places = np.random.default_rng(0).integers(8 * len(intact), size=40).tolist()
    for place in [*places, 8 * intact.find(b"next_id") + 1, 8 * intact.find(b'bytes"') + 1]:
        damaged = bytearray(intact)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        refused(copy, "take the index from a backup or build it again")
    file.write_bytes(intact)
    assert len(qj.search.load(copy)) == ROWS - 1


@pytest.mark.parametrize("name", FILES)
def test_missing_and_shortened_files_are_named(name: str, copy: Path) -> None:
    file = copy / name
    intact = file.read_bytes()
    for size in (0, 1, len(intact) // 2, len(intact) - 2):
        file.write_bytes(intact[:size])
        for mmap in (False, True):
            with pytest.raises(qj.InputError, match=name):
                qj.search.load(copy, mmap=mmap)
    file.unlink()
    refused(copy, name)
    file.mkdir()
    refused(copy, name)


def test_the_model_beside_the_lists_must_be_theirs(copy: Path) -> None:
    for file in sorted(path for path in (copy / "model").rglob("*") if path.is_file()):
        intact = file.read_bytes()
        damaged = bytearray(intact)
        damaged[len(damaged) // 2 : len(damaged) // 2 + 1] = b"\xff"
        file.write_bytes(damaged)
        try:
            found = qj.search.load(copy)
        except qj.InputError:
            pass
        else:  # not all that Orbax writes is read
            assert found.fingerprint == qj.search.load(copy).fingerprint
        file.write_bytes(intact)
    shutil.rmtree(copy / "model")
    refused(copy, "model")
    qj.save(
        indexes.oracle.random_model(indexes.CONFIGS["behind centroids"], seed=9), copy / "model"
    )
    refused(copy, "the model in .* is not the one that the codes were made with")


def test_other_folders_are_no_indexes(saved: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "is not an index: there is no such file or folder; give a ")
    refused(tmp_path, "is not an index: .*index.json is missing")
    refused(saved / "model", "is not an index: it is a model; give")
    refused(saved / "index.json", "is not an index: it is a file, not a folder")
    for text in ("", "[]", "{}", '{"files": 3}', json.dumps({"name": "package"})):
        (tmp_path / "index.json").write_text(text)
        refused(tmp_path, "index.json is damaged")
    with pytest.raises(qj.InputError, match="is not a saved model: it is an index; give"):
        qj.load(saved)
