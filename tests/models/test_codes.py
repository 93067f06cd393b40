"""Files of codes: they know their model, and encoding resumes where it was cut off."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qinco_jax as qj
from qinco_jax.interrupts import Interrupted
from qinco_jax.models import codes
from qinco_jax.quantizers import packing

CONFIG = qj.QincoConfig(
    num_steps=4, codebook_size=32, hidden_dim=8, num_blocks=1, num_candidates=4, beam_size=2
)
X = np.float32(np.random.default_rng(0).normal(size=(1000, 8)))


@pytest.fixture(scope="module")
def model() -> qj.Qinco:
    return qj.train(X, CONFIG, num_epochs=0)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "BLOCK_ROWS", (128, 128))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def expected(model: qj.Qinco) -> np.ndarray:
    return packing.to_rows(np.asarray(qj.encode(model, X)), model.config)


def test_codes_are_a_plain_array_and_refuse_another_model(model: qj.Qinco, tmp_path: Path) -> None:
    other = qj.train(X, CONFIG, num_epochs=0, seed=1)
    path = tmp_path / "codes.npy"
    codes.write(path, model, X)
    assert names(tmp_path) == {"codes.npy", "codes.npy.json"}
    np.testing.assert_array_equal(np.load(path), expected(model))
    np.testing.assert_array_equal(codes.read(path, model), expected(model))
    with pytest.raises(
        qj.InputError, match=r"codes of another model, as .*codes\.npy\.json says; use that"
    ):
        codes.read(path, other)
    np.save(tmp_path / "bare.npy", np.load(path))
    assert codes.read(tmp_path / "bare.npy", other).shape == (1000, 3)  # nothing says whose


def test_the_first_block_is_the_smallest_that_takes_no_longer_for_a_row(
    model: qj.Qinco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a slow model shows early how far it is."""
    monkeypatch.setattr(codes, "BLOCK_ROWS", (4096, 65536))
    slow = {"num_candidates": 16, "beam_size": 16}
    seen: list[int] = []
    codes.write(
        tmp_path / "codes.npy", model, X, **slow, advance=lambda done, total: seen.append(done)
    )
    assert seen[:2] == [0, codes.rows_together(model, codes.search_for(model, **slow))]
    assert seen[1] < len(X) == seen[-1]


def test_whatever_decodes_the_same_is_the_same_model(model: qj.Qinco, tmp_path: Path) -> None:
    """Another search, another pre-selector, another file format, and prefixes either way."""
    qj.save(model, tmp_path / "model.safetensors")
    wider = dataclasses.replace(model, config=dataclasses.replace(model.config, beam_size=8))
    codes.write(tmp_path / "codes.npy", model, X, beam_size=1)
    refitted = qj.fit_preselector(model, X, num_candidates=4)
    for same in (qj.load(tmp_path / "model.safetensors"), wider, refitted):
        codes.read(tmp_path / "codes.npy", same)
    codes.write(tmp_path / "one.npy", qj.prefix(model, 1), X)
    assert codes.read(tmp_path / "one.npy", model).shape == (1000, 1)
    with pytest.raises(qj.InputError, match="not the model's"):
        codes.read(tmp_path / "codes.npy", qj.prefix(model, 1))


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"model": 1, "vectors": 2}'])
def test_a_damaged_description_is_named(model: qj.Qinco, tmp_path: Path, content: bytes) -> None:
    codes.write(tmp_path / "codes.npy", model, X)
    (tmp_path / "codes.npy.json").write_bytes(content)
    with pytest.raises(qj.InputError, match=r"codes\.npy\.json is damaged"):
        codes.read(tmp_path / "codes.npy", model)


def test_ctrl_c_keeps_what_is_done(model: qj.Qinco, tmp_path: Path) -> None:
    path, seen = tmp_path / "codes.npy", []

    def interrupt(done: int, total: int) -> None:
        if done == 256:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped after 256 of 1,000 vectors"):
        codes.write(path, model, X, advance=interrupt)
    assert not path.exists()
    codes.write(path, model, X, advance=lambda done, total: seen.append(done))
    assert seen[0] == 256 and seen[-1] == 1000
    np.testing.assert_array_equal(np.load(path), expected(model))
    assert names(tmp_path) == {"codes.npy", "codes.npy.json"}


def test_ctrl_c_in_the_last_block_comes_after_it(model: qj.Qinco, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == total:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        codes.write(tmp_path / "codes.npy", model, X, advance=interrupt)
    assert names(tmp_path) == {"codes.npy", "codes.npy.json"}


def test_other_vectors_or_another_search_leave_unfinished_codes_alone(
    model: qj.Qinco, tmp_path: Path
) -> None:
    def fail(done: int, total: int) -> None:
        if done == after:
            raise KeyboardInterrupt

    path, progress, after = tmp_path / "codes.npy", tmp_path / ".codes.npy.progress", 256
    with pytest.raises(KeyboardInterrupt):
        codes.write(path, model, X, beam_size=1, advance=fail)
    for x, beam_size, what in ((X[:900], 1, "vectors"), (X, 2, "search"), (X[:9], 2, ".* and .*")):
        words = rf"progress holds the unfinished work of a command with another {what}; run"
        with pytest.raises(qj.InputError, match=words):
            codes.write(path, model, x, beam_size=beam_size)
    assert json.loads(progress.read_text())["done"] == 256
    progress.unlink()
    after = 0
    with pytest.raises(KeyboardInterrupt):
        codes.write(path, model, X, beam_size=1, advance=fail)
    codes.write(path, model, X)  # nothing was done, so nothing is lost
    np.testing.assert_array_equal(np.load(path), expected(model))


SCRIPT = """
import signal, sys
import numpy as np
import strict
import qinco_jax as qj
from qinco_jax.models import codes
codes.BLOCK_ROWS = 128, 128
def advance(done, total):
    print(done, flush=True)
    if done == int(sys.argv[4]): signal.raise_signal(signal.SIGKILL)
codes.write(sys.argv[1], qj.load(sys.argv[2]), np.load(sys.argv[3]), advance=advance)
"""


def test_a_killed_encoding_resumes_and_a_second_process_is_refused(
    model: qj.Qinco, tmp_path: Path
) -> None:
    qj.save(model, tmp_path / "model")
    np.save(tmp_path / "x.npy", X)
    out = tmp_path / "out"
    out.mkdir()
    support = str(Path(__file__).parents[1] / "support")
    command = [
        sys.executable, "-c", SCRIPT, out / "codes.npy", tmp_path / "model", tmp_path / "x.npy",
    ]  # fmt: skip
    for stop, begin in ((256, 0), (512, 256)):
        ran = subprocess.run(
            [*command, str(stop)], capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([support, *sys.path])},
        )  # fmt: skip
        assert ran.returncode == -signal.SIGKILL and ran.stdout.split()[0] == str(begin), ran.stderr
    assert names(out) >= {".codes.npy.partial", ".codes.npy.progress"}

    def another(done: int, total: int) -> None:
        if done == 640:
            with pytest.raises(qj.InputError, match=rf"process {os.getpid()} on .* writes .*codes"):
                codes.write(out / "codes.npy", model, X)

    codes.write(out / "codes.npy", model, X, advance=another)
    np.testing.assert_array_equal(np.load(out / "codes.npy"), expected(model))
    assert names(out) == {"codes.npy", "codes.npy.json"}


def test_a_bad_row_costs_none_of_the_blocks_before(model: qj.Qinco, tmp_path: Path) -> None:
    path, bad, seen = tmp_path / "codes.npy", X.copy(), []
    bad[333] = np.nan
    with pytest.raises(qj.InputError, match="row 333 of the vectors holds NaN"):
        codes.write(path, model, bad, advance=lambda done, total: seen.append(done))
    assert seen[-1] == 256 and not path.exists()
    assert names(tmp_path) >= {".codes.npy.partial", ".codes.npy.progress"}


def test_no_codes_over_codes(model: qj.Qinco, tmp_path: Path) -> None:
    codes.write(tmp_path / "codes.npy", model, X)
    with pytest.raises(qj.InputError, match="exists"):
        codes.write(tmp_path / "codes.npy", model, X)
    with pytest.raises(qj.InputError, match=r"name the output .*codes\.bin\.npy"):
        codes.write(tmp_path / "codes.bin", model, X)
    with pytest.raises(qj.InputError, match="row 3 of the vectors holds NaN"):
        codes.write(tmp_path / "new.npy", model, np.where(np.arange(1000)[:, None] == 3, np.nan, X))
