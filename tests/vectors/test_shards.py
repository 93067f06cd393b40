"""Folders of shards, `~` and unquoted patterns: what people type is what they mean."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import qinco_jax as qj
from qinco_jax.cli import main as cli
from qinco_jax.vectors import formats
from qinco_jax.vectors.convert import convert
from qinco_jax.vectors.shards import read_rows

X = np.random.default_rng(0).normal(size=(240, 4)).astype(np.float32)


def write(folder: Path, *names: str) -> Path:
    """Rows of `X` in files of equal length."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(names, np.split(X, len(names)), strict=True):
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"emb": list(part), "negated": list(-part)}), folder / name)
        else:
            np.save(folder / name, part)
    return folder


@pytest.mark.parametrize(
    "names",
    [
        [f"emb_{i}.npy" for i in range(12)],
        [f"{i}.npy" for i in range(3)],
        [f"sift1m-{i}-{j}.npy" for i in (9, 10) for j in (0, 1)],
        [f"part-0000{i}-8e0f-c000.npy" for i in range(2)],
        [f"emb-0000{i}-of-00003-{hash}.npy" for i, hash in enumerate(("2f", "a", "07"))],
        ["only.npy"],
    ],
)
def test_a_folder_of_shards_is_read_in_the_order_of_their_numbers(
    tmp_path: Path, names: list[str]
) -> None:
    folder = write(tmp_path / "parts", *names)
    for other in ("README.md", ".hidden.npy", "labels.txt"):
        (folder / other).write_text("about")
    (folder / "more.npy").mkdir()
    np.testing.assert_array_equal(read_rows(folder), X)
    np.testing.assert_array_equal(qj.datasets.load(folder).train, X)
    convert(folder, tmp_path / "all.fbin")
    np.testing.assert_array_equal(read_rows(tmp_path / "all.fbin"), X)


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["sift_base.npy", "sift_learn.npy", "sift_query.npy"], "*.npy"),
        (["emb_0.npy", "emb_1.npy", "meta.npy"], "emb_*.npy"),
        (["emb_1.npy", "emb_01.npy"], "emb_*.npy"),
        (["img_0.npy", "text_0.npy"], "*.npy"),
        (["emb_0.npy", "emb_1.npy", "emb_2.parquet"], "emb_*.npy"),
    ],
)
def test_a_folder_of_several_arrays_says_what_to_give(
    tmp_path: Path, names: list[str], pattern: str
) -> None:
    folder = write(tmp_path / "mixed[1]", *names)
    for read in (read_rows, qj.datasets.load):
        with pytest.raises(
            qj.InputError, match=r"holds .*npy, .* shards of one array.*; give one"
        ) as e:
            read(folder)
        found = re.search('"(.*)"', str(e.value))
        assert found and found[1].endswith(f"/{pattern}")
        assert len(read_rows(found[1])) >= 2 * len(X) // len(names)
    assert ", or call them train, database, queries" in str(e.value)


def test_folders_that_may_not_be_read_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "sub", "emb_0.npy", "emb_1.npy")
    (tmp_path / "lost+found").mkdir()
    listed = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:  # root, who may read all, may run the tests
        if path.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(qj.InputError, match=f"give one of them: {tmp_path / 'sub'}$"):
        qj.datasets.load(tmp_path)


@pytest.mark.parametrize("deeper", ["sub", "default/train"])
def test_a_folder_of_folders_names_those_with_vectors(tmp_path: Path, deeper: str) -> None:
    write(tmp_path / deeper, "emb_0.npy", "emb_1.npy")
    write(tmp_path / ".cache", "emb_0.npy")
    for read in (read_rows, qj.datasets.load):
        with pytest.raises(qj.InputError, match=f"give one of them: {tmp_path / deeper}$"):
            read(tmp_path)


@pytest.mark.parametrize(("file", "other", "what"), [
    ("run.json", "start", "the folder of a run"), ("model.json", "arrays", "a model"),
    ("index.json", "lists.faiss", "an index"), ("shards.json", "x", "an index in shards"),
])  # fmt: skip
def test_a_folder_of_ours_is_not_taken_for_vectors(
    tmp_path: Path, file: str, other: str, what: str
) -> None:
    write(tmp_path, "neighbours.npy")  # which a run keeps
    for name in (file, other):
        (tmp_path / name).touch()
    for read in (read_rows, qj.datasets.load):
        with pytest.raises(qj.InputError, match=f"is {what}, not vectors; give"):
            read(tmp_path)


def test_a_folder_without_vectors_or_with_missing_shards_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("1 2 3")
    with pytest.raises(
        qj.InputError, match=r"is a directory without files of vectors.*\.npz.*or convert x\.txt in"
    ):
        read_rows(tmp_path)
    folder = write(tmp_path / "parts", *(f"emb-0000{i}-of-00003.npy" for i in range(2)))
    for read in (read_rows, qj.datasets.load):
        with pytest.raises(qj.InputError, match=r"2 files like emb-00000-of-00003\.npy, not 3"):
            read(folder)
    write(tmp_path / "other", "emb_0.npy", "emb_1.npy", "queries.npy")
    with pytest.raises(
        qj.InputError, match=r"no training vectors, but emb_0\.npy, emb_1\.npy, quer"
    ):
        qj.datasets.load(tmp_path / "other")


def test_the_layout_of_hugging_face_is_a_set(tmp_path: Path) -> None:
    write(tmp_path / "data", *(f"train-0000{i}-of-00003-{i}af.parquet" for i in range(3)))
    write(tmp_path / "data", "validation-00000-of-00001.parquet")
    for name in ("README.md", "dataset_infos.json", ".gitattributes"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(qj.InputError, match=r"no single table of vectors .*emb.*negated"):
        qj.datasets.load(tmp_path)
    with pytest.raises(qj.InputError, match=f"give one of them: {tmp_path / 'data'}$"):
        read_rows(tmp_path)
    data = qj.datasets.load(f"{tmp_path}::negated")
    np.testing.assert_array_equal(data.train, -X)
    assert data.validation is not None and data.database is None
    np.testing.assert_array_equal(data.validation, -X)
    (tmp_path / "data" / "train-00001-of-00003-1af.parquet").unlink()
    with pytest.raises(qj.InputError, match="2 files like train-00000-of-00003"):
        qj.datasets.load(f"{tmp_path}::emb")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    write(home / "parts", "x_0.parquet", "x_1.parquet")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    for source in ("~/parts::emb", "~/parts/*.parquet::emb", Path("~/parts/../parts::emb")):
        np.testing.assert_array_equal(read_rows(source), X)
        data = qj.datasets.load(source, queries="~/parts/x_1.parquet::emb")
        np.testing.assert_array_equal(data.train, X)
        assert data.queries is not None and len(data.queries) == 120
    convert("~/parts::emb", "~/all.npy")
    with formats.create("~/more.npy", X.shape, X.dtype) as rows:
        rows[:] = formats.read("~/all.npy")
    np.testing.assert_array_equal(np.load(home / "more.npy"), X)
    assert not os.listdir(here)
    shutil.copy(home / "all.npy", "a~b.npy")
    shutil.copy(home / "all.npy", "~no such user.npy")  # as a shell takes it
    for name in ("a~b.npy", "~no such user.npy"):
        np.testing.assert_array_equal(read_rows(name), X)


def test_an_unquoted_pattern_is_told_from_other_mistakes(tmp_path: Path) -> None:
    write(tmp_path, "a.npy", "b.npy")
    for arguments, hinted in (
        (["encode", "model", "a.npy", "b.npy", "codes.npy"], True),
        (["train", "--dataset", "a.npy", "b.npy"], True),
        (["data", "convert", "a.npy", "b.npy", "c.fvecs"], True),
        (["data", "info", "deep1m", "deep10m"], False),
    ):
        ran = CliRunner().invoke(cli.main, arguments)
        assert ran.exit_code == 2 and "extra argument" in ran.output
        assert ('quote a pattern, such as "parts/*.npy"' in ran.output) == hinted
