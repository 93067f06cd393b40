"""Every named set from a mirror of small files of the official names and forms."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import mirror
import numpy as np
import pytest
import servers
from click.testing import CliRunner, Result

import qinco_jax as qj
from qinco_jax.cli import main as cli
from qinco_jax.datasets import builders, catalog, official

BUILT = list(builders.BUILDERS)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("mirror")
    mirror.build(folder)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def server(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[servers.Server]:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with servers.serving(**files) as running:
        monkeypatch.setenv(catalog.MIRROR, running.at("").rstrip("/"))
        yield running


def qinco(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, list(arguments))


@pytest.mark.parametrize("name", BUILT)
def test_a_set_is_fetched_and_prepared_once(name: str, server: servers.Server) -> None:
    data = qj.datasets.load(name)
    train = mirror.vectors(name, "train")
    np.testing.assert_array_equal(data.train, train[:-150])
    np.testing.assert_array_equal(data.validation, train[-150:])
    np.testing.assert_array_equal(data.database, mirror.vectors(name, "database"))
    np.testing.assert_array_equal(data.queries, mirror.vectors(name, "queries"))
    if "groundtruth" in catalog.SETS[name].files:
        np.testing.assert_array_equal(data.groundtruth, mirror.nearest(name))
    for part in ("train", "database", "queries"):
        assert getattr(data, part).dtype == catalog.SETS[name].dtype
    asked = len(server.asked)
    server.always = servers.Fault(status=500)
    again = qj.datasets.load(name)
    np.testing.assert_array_equal(again.train, data.train)
    assert len(server.asked) == asked


@pytest.mark.parametrize("name", [name for name in catalog.SETS if name not in BUILT])
def test_a_set_without_training_vectors_gives_up_a_tenth(name: str, server: servers.Server) -> None:
    data = qj.datasets.load(name)
    whole = mirror.vectors(name, "database")
    chosen = np.arange(len(whole)) % 10 == 9
    np.testing.assert_array_equal(data.train, whole[chosen])
    np.testing.assert_array_equal(data.database, whole[~chosen])
    assert data.groundtruth is not None and data.queries is not None
    distances = np.square(data.queries[:, None] - whole[~chosen][None]).sum(-1)
    nearest = np.take_along_axis(distances, data.groundtruth[:, :1], 1)[:, 0]
    np.testing.assert_array_equal(nearest, distances.min(1))


def of_100_rows(name: str, patch: pytest.MonkeyPatch) -> str:
    """Makes a slice of a set small; returns its name and size."""
    patch.setattr(catalog, "VALIDATION_ROWS", 10)
    known = catalog.SETS[name]
    size = "1m" if known.slices else "500k"
    patch.setitem(cast(dict, catalog.SETS), name, known._replace(sizes={size: 100}))
    return f"{name}/{size}"


def sent(server: servers.Server, word: str) -> int:
    return sum(sum(asked.sent) for asked in server.asked if word in asked.path)


def check_100_rows(data: qj.datasets.Dataset, name: str) -> None:
    train, database = mirror.vectors(name, "train"), mirror.vectors(name, "database")
    np.testing.assert_array_equal(data.train, train[:100])
    np.testing.assert_array_equal(data.validation, train[-10:])
    slices = catalog.SETS[name].slices
    np.testing.assert_array_equal(data.database, database[:100] if slices else database)


@pytest.mark.parametrize("name", BUILT)
def test_a_slice_fetches_its_rows_alone(
    name: str, server: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = of_100_rows(name, monkeypatch)
    known = catalog.SETS[name]
    row = known.dim * np.dtype(known.dtype).itemsize + 4
    told = qinco("data", "download", where).output
    check_100_rows(qj.datasets.load(where), name)
    (train,) = known.files["train"]
    path = Path(train.path)
    cut = path.with_name(f"{path.stem}.first100last10{path.suffix}")
    assert f"{train.source} as {cut}" in told and (official.downloads() / cut).exists()
    assert f"{cut}  (train" in qinco("data", "info", where).output
    assert sent(server, path.name) <= 112 * row + 1
    if known.slices:
        assert sent(server, "base.1B") <= 101 * row + 1
    assert str(cut) in qinco("data", "verify", where).output


@pytest.mark.parametrize("name", ["bigann1m", "contriever1m"])
def test_a_slice_of_a_whole_file_is_the_same(
    name: str, server: servers.Server, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = of_100_rows(name, monkeypatch)
    (train,) = catalog.SETS[name].files["train"]
    whole = official.downloads() / train.path
    whole.parent.mkdir(parents=True)
    whole.write_bytes(files[train.path])
    check_100_rows(qj.datasets.load(where), name)
    assert sent(server, whole.name) == 0


def test_a_mirror_without_ranges_gives_the_whole_training_file_but_no_whole_database(
    server: servers.Server, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    where, slices = of_100_rows("deep1m", monkeypatch), of_100_rows("bigann1b", monkeypatch)
    server.always = servers.Fault(ranges=False)
    told = qinco("data", "download", where).output
    assert "learn10M10k.fvecs as deep1b/learn10M10k.fvecs" in told
    check_100_rows(qj.datasets.load(where), "deep1m")
    whole = official.downloads() / "deep1b" / "learn10M10k.fvecs"
    assert whole.read_bytes() == files["deep1b/learn10M10k.fvecs"]
    refused = qinco("data", "download", slices)
    assert refused.exit_code == 2 and "does not support ranges" in refused.output
    assert str(official.downloads() / "bigann" / "base.1B.u8bin") in refused.output


def test_a_training_file_that_changes_between_its_pieces_is_begun_anew(
    server: servers.Server, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = of_100_rows("deep1m", monkeypatch)
    folder = official.downloads() / "deep1b"
    partial = folder / ".learn10M10k.first100last10.fvecs.partial"
    other, row = mirror.vectors("deep1m", "train")[::-1], 4 * 97
    folder.mkdir(parents=True)
    partial.write_bytes(files["deep1b/learn10M10k.fvecs"][: 100 * row])
    partial.with_name(f"{partial.name}.json").write_text(json.dumps({
        "address": server.at("deep1b/learn10M10k.fvecs"), "version": '"1"', "total": 1500 * row,
        "cut": [100, 10, row, None],
    }))  # fmt: skip
    mirror.write(folder / "other.fvecs", other)
    server.files["/deep1b/learn10M10k.fvecs"] = (folder / "other.fvecs").read_bytes()
    server.etag = '"2"'
    data = qj.datasets.load(where)
    np.testing.assert_array_equal(data.train, other[:100])
    np.testing.assert_array_equal(data.validation, other[-10:])
    asked = {one.range for one in server.asked if "learn10M10k" in one.path}
    assert asked == {"bytes=0-0", f"bytes=0-{100 * row - 1}",
                     f"bytes={1490 * row}-{1500 * row - 1}"}  # fmt: skip


def test_what_an_earlier_version_prepared_is_not_taken(
    server: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(builders.Deep1m, "VERSION", "1.0.0")
        qj.datasets.load("deep1m/500k")
    assert (tmp_path / "deep1m" / "500k" / "1.0.0" / "dataset_info.json").exists()
    assert re.search(r"prepared +no", qinco("data", "info", "deep1m/500k").output)
    qj.datasets.load("deep1m/500k")
    assert (tmp_path / "deep1m" / "500k" / "2.0.0" / "dataset_info.json").exists()


def test_the_queries_of_bigann_come_by_another_way_too(
    server: servers.Server, files: dict[str, bytes]
) -> None:
    del server.files["/bigann/query.public.10K.u8bin"]
    assert "bigann/bigann_query.bvecs.gz" in files
    data = qj.datasets.load("bigann1m")
    np.testing.assert_array_equal(data.queries, mirror.vectors("bigann1m", "queries"))


def test_it_is_a_set_of_tfds(server: servers.Server, tmp_path: Path) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    source = tfds.data_source("deep1m/500k", split="database", data_dir=tmp_path)
    np.testing.assert_array_equal(
        np.concatenate([block["vectors"] for block in source]),
        mirror.vectors("deep1m", "database"),
    )
    info = tfds.builder("deep1m/500k", data_dir=tmp_path).info
    assert info.citation and info.homepage
    written = json.loads((tmp_path / "deep1m/500k/2.0.0/metadata.json").read_text())
    facts = {fact["path"]: fact for fact in json.loads(written["files"])}
    assert re.fullmatch("[0-9a-f]{64}", facts["deep1b/base1M.fvecs"]["sha256"])
    assert (tmp_path / "deep1m/500k/2.0.0/LICENSE").read_text().startswith("CC BY")


def test_make_train_from_the_first_byte_to_the_table(
    server: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["codebook_size=16", "hidden_dim=16", "embed_dim=16", "num_epochs=1"]
    settings = [word for each in small for word in ("--set", each)]
    ran = qinco("train", "--dataset", "deep1m", "--bytes", "1", *settings)
    assert ran.exit_code == 0, ran.output
    assert "downloading" in ran.output and server.at("deep1b/base1M.fvecs") in ran.output
    assert re.search(r"QINCo2.* 1 .*\d", ran.output)
    assert (tmp_path / "runs" / "deep1m-small-1B" / "results.jsonl").exists()


def test_info_tells_everything(server: servers.Server, tmp_path: Path) -> None:
    before = qinco("data", "info", "deep1m").output
    for word in (
        "96 x float32", "10,000,000 training rows", "CC BY 4.0", "deep1b/learn10M10k.fvecs",
        server.at("deep1b/learn10M10k.fvecs"), str(official.downloads()), "missing", "@inproc",
    ):  # fmt: skip
        assert word in before, word
    assert not server.asked
    assert "database" in qinco("data", "download", "deep1m").output
    after = qinco("data", "info", "deep1m").output
    assert "missing" not in after and str(tmp_path / "deep1m/10m/2.0.0") in after
    assert "deep1m" in qinco("data", "list").output
    assert "ATTRIBUTION" in qinco("data", "info", "sift-photos").output


def test_official_sizes_are_known_without_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(catalog.MIRROR, raising=False)
    text = qinco("data", "info", "deep1b/10m").output
    assert "3.84GB" in text and "384GB" not in text
    assert "https://storage.yandexcloud.net/yandex-research/ann-datasets/DEEP/base.1B.fbin" in text


def test_verify_finds_what_changed(server: servers.Server, tmp_path: Path) -> None:
    qinco("data", "download", "bigann1m")
    fine = qinco("data", "verify", "bigann1m")
    assert fine.exit_code == 0 and "300 rows read" in fine.output, fine.output
    raw = official.downloads() / "bigann/bigann1M.bvecs"
    body = bytearray(raw.read_bytes())
    body[50] ^= 1
    raw.write_bytes(body)
    bad = qinco("data", "verify", "bigann1m")
    assert bad.exit_code == 2 and "bigann1M.bvecs" in bad.output and "remove" in bad.output
    raw.unlink()
    record = next((tmp_path / "bigann1m/10m/2.0.0").glob("*train*"))
    body = bytearray(record.read_bytes())
    body[len(body) // 2] ^= 255
    record.write_bytes(body)
    bad = qinco("data", "verify", "bigann1m")
    assert bad.exit_code == 2 and "damaged" in bad.output and str(record.parent) in bad.output


def test_without_a_network_it_says_what_to_place_where(
    server: servers.Server, files: dict[str, bytes]
) -> None:
    server.always = servers.Fault(status=403)
    refused = qinco("data", "download", "deep1m")
    assert refused.exit_code == 2
    place = official.downloads()
    for name in ("deep1b/learn10M10k.fvecs", "deep1b/base1M.fvecs",
                 "deep1b/deep1M_groundtruth.ivecs", "deep1b/query.public.10K.fbin"):  # fmt: skip
        assert server.at(name) in refused.output and str(place / name) in refused.output
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(files[name])
    assert qinco("data", "download", "deep1m").exit_code == 0


def test_another_file_under_an_official_name_is_refused(
    server: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = official.downloads() / "deep1b"
    place.mkdir(parents=True)
    (place / "learn10M10k.fvecs").write_bytes(server.files["/deep1b/base1M.fvecs"])
    monkeypatch.delenv(catalog.MIRROR)
    refused = qinco("data", "download", "deep1m")
    assert refused.exit_code == 2 and "learn10M10k.fvecs" in refused.output, refused.output


@pytest.mark.parametrize(("name", "word"), [("deep2m", "deep1m"), ("deep1m/3m", "deep1m/500k")])
def test_an_unknown_name_gets_the_nearest(name: str, word: str) -> None:
    refused = qinco("data", "info", name)
    assert refused.exit_code == 2 and word in refused.output


def test_importing_the_builders_loads_no_tensorflow() -> None:
    script = "import sys, qinco_jax.datasets.builders; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "tensorflow" not in ran.stdout.split()


def test_a_ground_truth_of_other_queries_is_refused(server: servers.Server, tmp_path: Path) -> None:
    truth = mirror.nearest("deep1m")
    path = "/deep1b/deep1M_groundtruth.ivecs"
    for bad in (truth[:12], np.tile(truth, (2, 1)), truth + 300):
        other = tmp_path / "other.ivecs"
        mirror.write(other, bad)
        server.files[path] = other.read_bytes()
        other.unlink()
        refused = qinco("data", "download", "deep1m")
        assert refused.exit_code == 2 and "ground truth" in refused.output, refused.output
        for left in (official.downloads() / "deep1b").glob("deep1M*"):
            left.unlink()


def test_two_processes_prepare_a_set_once_and_what_a_kill_left_goes(
    server: servers.Server, tmp_path: Path
) -> None:
    left = tmp_path / "deep1m" / "10m" / "incomplete.XYZ_2.0.0"
    left.mkdir(parents=True)
    command = [sys.executable, "-m", "qinco_jax", "data", "download", "deep1m"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(one.communicate()[1], one.returncode)[1] for one in both] == [0, 0]
    asked = [one for one in server.asked if "base1M" in one.path]
    sizes = sum(one.range == "bytes=0-0" for one in asked)
    assert sent(server, "base1M") == len(server.files[asked[0].path]) + sizes
    assert not left.exists()


def test_what_came_from_a_mirror_is_not_taken_for_the_published_set(
    server: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    qj.datasets.load("deep1m")
    for value in ("", None):
        if value is None:
            monkeypatch.delenv(catalog.MIRROR)
        else:
            monkeypatch.setenv(catalog.MIRROR, value)
        with pytest.raises(qj.InputError, match="was prepared from a mirror"):
            qj.datasets.load("deep1m")


def test_a_set_that_cannot_be_read_is_named(server: servers.Server, tmp_path: Path) -> None:
    qj.datasets.load("deep1m/500k")
    info = tmp_path / "deep1m/500k/2.0.0/dataset_info.json"
    written = info.read_text()
    for damage in (written.replace("array_record", "tfrecord"), written[: len(written) // 2]):
        info.write_text(damage)
        with pytest.raises(qj.InputError, match="another format than array_record or is damaged"):
            qj.datasets.load("deep1m/500k")
        listed = qinco("data", "list")
        assert listed.exit_code == 0 and "damaged" in listed.output


def test_a_mirror_need_not_know_ranges(server: servers.Server) -> None:
    server.always = servers.Fault(ranges=False)
    data = qj.datasets.load("contriever1m")
    np.testing.assert_array_equal(data.database, mirror.vectors("contriever1m", "database"))


def test_what_is_not_there_is_not_verified(server: servers.Server) -> None:
    refused = qinco("data", "verify", "deep1m")
    assert refused.exit_code == 2 and "qinco data download" in refused.output


def test_a_place_that_is_no_folder_is_one_sentence(
    server: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "file"))
    with pytest.raises(qj.InputError, match="cannot be written"):
        qj.datasets.load("deep1m")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data", "info", "sift-photo"], "unknown data set 'sift-photo'; did you mean 'sift-pho"),
        (["data", "verify", "sift-photos"], "comes with the package"),
        (["train", "--dataset", "glove"], "unknown data set, file or folder 'glove'; did you mean"),
    ],
)
def test_names_of_sets_are_suggested(arguments: list[str], words: str) -> None:
    ran = qinco(*arguments)
    assert ran.exit_code == 2 and words in ran.output
