"""Encoding on many workers: the codes of one process, whatever is killed, and bad input."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

import qinco_jax as qj
from qinco_jax.cli import main as cli
from qinco_jax.cluster import team
from qinco_jax.cluster.encode import collect
from qinco_jax.cluster.team import Unfinished
from qinco_jax.models import code_shards, codes

CONFIG = qj.QincoConfig(
    num_steps=2, codebook_size=16, hidden_dim=4, num_blocks=1, num_candidates=2, beam_size=2
)
SHARD_ROWS = 4096
X = np.float32(np.random.default_rng(0).normal(size=(9 * SHARD_ROWS + 1, 4)))
NAMES = [f"codes-{number:05d}-of-00010.npy" for number in range(10)]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_shards, "FEWEST_ROWS", SHARD_ROWS)
    monkeypatch.setattr(code_shards, "SHARDS", 10)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, vectors, and their codes by one process."""
    folder = tmp_path_factory.mktemp("files")
    model = qj.train(X[:1000], CONFIG, num_epochs=0)
    qj.save(model, folder / "model")
    np.save(folder / "x.npy", X)
    codes.write(folder / "codes.npy", model, X)
    return folder


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray with two cores, which encoding finds connected."""
    ray = pytest.importorskip("ray")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
            logging_level="error", object_store_memory=10**8,
        )  # fmt: skip
        yield ray
        ray.shutdown()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def check(folder: Path, files: Path) -> None:
    """Whether a folder holds the codes that one process makes, and nothing else."""
    assert names(folder) == [*NAMES, "manifest.json"]
    one = np.load(files / "codes.npy")
    np.testing.assert_array_equal(np.concatenate([np.load(folder / name) for name in NAMES]), one)
    listed = json.loads((folder / "manifest.json").read_text())["shards"]
    assert [(entry["file"], entry["rows"]) for entry in listed] == [
        *((name, SHARD_ROWS) for name in NAMES[:-1]), (NAMES[-1], 1),
    ]  # fmt: skip
    np.testing.assert_array_equal(codes.read(folder, qj.load(files / "model")), one)


def qinco(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def refused(result: Result, words: str) -> None:
    assert result.exit_code == 2 and re.search(words, result.output), result.output


def test_shares_are_collected_and_read(files: Path, tmp_path: Path) -> None:
    given = files / "model", files / "x.npy", tmp_path / "out"
    for share in ("0/3", "2/3"):
        assert qinco("encode", *given, "--shard", share).exit_code == 0
    refused(qinco("encode", *given, "--collect"), f"lacks 3 of 10 shards, {NAMES[1]}, {NAMES[4]}")
    refused(qinco("decode", given[0], given[2], tmp_path / "y.npy"), "no finished shards of codes")
    assert qinco("encode", *given, "--shard", "1/3").exit_code == 0
    whole = (tmp_path / "out" / NAMES[4]).read_bytes()
    (tmp_path / "out" / NAMES[4]).write_bytes(whole[:-1] + b"\0")
    refused(qinco("encode", *given, "--collect"), f"{NAMES[4]} in .* not what was written")
    (tmp_path / "out" / NAMES[4]).write_bytes(whole)
    assert qinco("encode", *given, "--collect").exit_code == 0
    check(tmp_path / "out", files)
    assert qinco("decode", given[0], given[2], tmp_path / "y.npy").exit_code == 0
    assert qinco("decode", given[0], files / "codes.npy", tmp_path / "z.npy").exit_code == 0
    assert (tmp_path / "y.npy").read_bytes() == (tmp_path / "z.npy").read_bytes()
    (tmp_path / "out" / NAMES[0]).unlink()
    refused(qinco("decode", given[0], given[2], tmp_path / "y2.npy"), f"lacks {NAMES[0]}")


def test_shards_lie_in_object_storage(files: Path) -> None:
    storage, out = fsspec.filesystem("memory"), "memory://bucket/out"
    given = files / "model", files / "x.npy", out
    qj.encode_files(*given, shard=(0, 2))
    with pytest.raises(
        qj.InputError, match=f"memory://bucket/out lacks 5 of 10 shards, {NAMES[1]}"
    ):
        collect(*given)
    qj.encode_files(*given, shard=(1, 2))
    collect(*given)
    there = sorted(storage.ls("/bucket/out", detail=False))
    assert there == [f"/bucket/out/{name}" for name in (*NAMES, "manifest.json")]
    parts = [np.load(io.BytesIO(storage.cat_file(path))) for path in there[:-1]]
    np.testing.assert_array_equal(np.concatenate(parts), np.load(files / "codes.npy"))
    storage.rm("/bucket", recursive=True)


def test_another_encoding_does_not_mix_with_the_shards(files: Path, tmp_path: Path) -> None:
    model, other = qj.load(files / "model"), qj.train(X[:1000], CONFIG, num_epochs=0, seed=1)
    np.save(tmp_path / "x.npy", -X)
    out = tmp_path / "out"
    qj.encode_files(model, files / "x.npy", out, shard=(0, 10))
    for given, words in (
        ((other, files / "x.npy", {}), "another model"),
        ((model, tmp_path / "x.npy", {}), "another vectors"),
        ((model, files / "x.npy", {"beam_size": 1}), "another settings of the search"),
    ):
        with pytest.raises(qj.InputError, match=f"holds codes of {words}, as its manifest.json"):
            qj.encode_files(*given[:2], out, shard=(1, 10), **given[2])
    assert [name for name in names(out) if name in NAMES] == NAMES[:1]
    qj.encode_files(model, files / "x.npy", out, shard=(0, 1))
    collect(model, files / "x.npy", out)
    with pytest.raises(qj.InputError, match=r"codes of another model, as .*/manifest\.json says"):
        codes.read(out, other)


def test_bad_input_is_one_sentence(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = "encode", files / "model", files / "x.npy"
    out = tmp_path / "out"
    for arguments, words in (
        ((out, "--shard", "5/4"), "no shard 5/4: shares count from 0, so I/4 has I from 0 to 3"),
        ((out, "--shard", "4"), "--shard is I/N, such as 0/8"),
        ((out, "--shard", "0/2", "--workers", 2), "--workers and --shard exclude each other"),
        ((tmp_path / "out.npy", "--workers", 2), "out.npy would be a folder of shards, not a file"),
        ((out, "--workers", "many"), "workers must be auto, a number from 1 on, or the address"),
        ((out, "--collect"), "out holds no shards of codes"),
        ((files, "--shard", "0/2"), "holds codes.npy, codes.npy.json, .*choose a new folder"),
        ((tmp_path / "no" / "out", "--shard", "0/2"), "there is no directory .*no for out"),
        ((files / "x.npy" / "out", "--shard", "0/2"), r"cannot be read \(Not a directory\)"),
        (("s3a2://bucket/out", "--shard", "0/2"), "s3a2://bucket/out has the unknown scheme"),
    ):  # fmt: skip
        refused(qinco(*given, *arguments), words)
    full = shutil.disk_usage(tmp_path)._replace(free=100)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: full)
        refused(qinco(*given, out, "--shard", "0/2"), r"needs 38,\d+ bytes more, .* has 100")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        words = r"workers need Ray; pip install 'qinco_jax\[ray\]'"
        refused(qinco(*given, out, "--workers", 2), words)
    np.save(tmp_path / "v-0.npy", X[:10])
    np.save(tmp_path / "v-1.npy", X[:10, :3])
    ran = qinco(given[0], given[1], tmp_path / "v-*.npy", out, "--shard", "0/2")
    refused(ran, "v-1.npy holds float32 of 3 dimensions, but .* of 4")


def test_no_cluster_is_soon_told(files: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    given = "encode", files / "model", files / "x.npy", tmp_path / "out"
    for address in ("ray://127.0.0.1:1", "127.0.0.1:1"):
        refused(qinco(*given, "--workers", address), f"no Ray cluster at {address} .*refused")
    assert not (tmp_path / "out").exists()


# With Ray, which from here on is started


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def workers_here() -> list[int]:
    """The processes of workers of this process's Ray, which its raylet started."""
    found = []
    for place in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            is_worker = (place / "cmdline").read_bytes().startswith(b"ray::Worker")
            if is_worker and parent_of(parent_of(int(place.name))) == os.getpid():
                found.append(int(place.name))
    return found


def test_a_lost_worker_changes_nothing(ray: Any, files: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def kill(done: int, total: int) -> None:
        if done and not any(seen):
            os.kill(workers_here()[0], signal.SIGKILL)
        seen.append(done)

    given = files / "model", files / "x.npy", tmp_path / "out"
    qj.encode_files(*given, workers=2, advance=kill)
    assert seen[0] == 0 and seen[-1] == len(X) and any(0 < done < len(X) for done in seen)
    check(tmp_path / "out", files)
    qj.encode_files(*given, workers=2, advance=lambda done, total: seen.append(-done))
    assert seen[-1] == -len(X) and seen[-2] > 0  # nothing was done again


DRIVER = """
import os, signal, sys
import qinco_jax as qj
from qinco_jax.models import code_shards
code_shards.FEWEST_ROWS, code_shards.SHARDS = 4096, 10
def kill(done, total):
    if done: os.kill(os.getpid(), signal.SIGKILL)
qj.encode_files(*sys.argv[1:4], workers=sys.argv[4], advance=kill)
"""


def test_a_lost_command_is_run_again(ray: Any, files: Path, tmp_path: Path) -> None:
    given = files / "model", files / "x.npy", tmp_path / "out"
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", DRIVER, *given, address]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    kept = [name for name in names(tmp_path / "out") if name in NAMES]
    assert 0 < len(kept) < len(NAMES)
    written = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in kept}
    (tmp_path / "out" / f".0123abcd-{NAMES[9]}").write_bytes(b"what a kill leaves")
    qj.encode_files(*given, workers=1)
    check(tmp_path / "out", files)
    assert written == {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in kept}


def test_a_bad_shard_is_named_and_the_rest_is_encoded(
    ray: Any, files: Path, tmp_path: Path
) -> None:
    bad = np.where(np.arange(len(X))[:, None] == 3 * SHARD_ROWS + 5, np.nan, X)
    np.save(tmp_path / "x.npy", bad)
    with pytest.raises(Unfinished, match=rf"1 of 10 shards failed, {NAMES[3]}: row 12293 of .*NaN"):
        qj.encode_files(files / "model", tmp_path / "x.npy", tmp_path / "out")
    assert {name for name in names(tmp_path / "out") if name in NAMES} == {*NAMES} - {NAMES[3]}


def test_workers_of_other_versions_are_refused(
    ray: Any, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = team.versions()
    monkeypatch.setattr(team, "versions", lambda: {**own, "jax": "0.1"})
    with pytest.raises(qj.InputError, match=rf"the worker on .* has jax {own['jax']}, not 0\.1"):
        qj.encode_files(files / "model", files / "x.npy", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_workers_than_cores_are_refused(ray: Any, files: Path, tmp_path: Path) -> None:
    with pytest.raises(qj.InputError, match="3 workers are too many: there is room for 2"):
        qj.encode_files(files / "model", files / "x.npy", tmp_path / "out", workers=3)
