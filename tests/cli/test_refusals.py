"""Bad input is one sentence that says what to do, and leaves nothing behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_run import SMALL, qinco

from qinco_jax.cli import train as train_command


def test_a_platform_that_is_not_there_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qinco_jax", "encode", folder / "run" / "model",
               folder / "database.npy", tmp_path / "codes.npy"]  # fmt: skip
    for name in ("cuda", "nonsense"):
        env = {**os.environ, "JAX_PLATFORMS": name}
        ran = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        assert ran.returncode == 2 and ran.stderr == (
            f"qinco: JAX finds no device for JAX_PLATFORMS={name}; set JAX_PLATFORMS to what this "
            "machine has, such as cpu, or leave it out\n"
        )
    assert not (tmp_path / "codes.npy").exists()
    helped = subprocess.run(
        [*command[:3], "encode", "--help"], capture_output=True, text=True, check=False, env=env
    )
    assert helped.returncode == 0 and helped.stdout.startswith("Usage: ") and not helped.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train --minutes nan", "--minutes must be a finite number, got nan"),
        ("train --minutes 1e9", "--minutes must be above 0 and at most 1,000,000, got 1000000000"),
        ("train --set num_epochs=1e12", "num_epochs must be 0 to 2,147,483,647, got 1000000000000"),
        ("train --set num_epochs=2e9 --dry-run", "at most 2,147,483,647 are possible; lower num_e"),
        ("train --set embed_dim=1e12 --dry-run", "embed_dim must be 1 to 1,048,576"),
        ("train --eval-rows 1.5", "--eval-rows must be an integer, got 1.5"),
        ("encode m x c --beam-size 1e12", "--beam-size must be 1 to 16,384, got 1000000000000"),
        ("plan --rows 100 --dim 1000000000000", "--dim must be 2 to 1,048,576"),
        ("plan --rows nan --dim 8", "--rows must be an integer, got nan"),
        ("index search i q o -k x", "-k must be an integer, got 'x'"),
    ],
)
def test_a_number_out_of_bounds_is_one_sentence(arguments: str, words: str) -> None:
    ran = qinco(*arguments.split())
    assert ran.exit_code == 2 and ran.output.startswith("qinco: ") and words in ran.output
    assert ran.output.count("\n") == 1


def test_too_little_memory_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 30 GiB")

    monkeypatch.setattr(train_command.measure, "load", full)
    ran = qinco("train")
    assert ran.exit_code == 2
    assert ran.output.startswith("qinco: out of memory (Unable to allocate 30 GiB); choose smaller")


def damaged(folder: Path, name: str, change: object) -> Path:
    """A copy of the model with one of its files changed, or removed where `change` is None."""
    model = folder / name
    subprocess.run(["cp", "-r", folder / "run" / "model", model], check=True)
    files = (model / "arrays" / "d").iterdir()  # Orbax writes others that it never reads
    target = (
        model / "model.json" if name == "config" else max(files, key=lambda f: f.stat().st_size)
    )
    if change is None:
        target.unlink()
    else:
        assert callable(change)
        target.write_bytes(change(target.read_bytes()))
    return model


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("missing", None),
        ("truncated", lambda content: content[:-50]),
        ("empty", lambda content: b""),
        ("flipped", lambda content: content[:900] + bytes([content[900] ^ 64]) + content[901:]),
        ("config", lambda content: content[:40]),
    ],
)
def test_a_damaged_model_is_named(folder: Path, name: str, change: object) -> None:
    model = damaged(folder, name, change)
    ran = qinco("encode", model, folder / "database.npy", folder / "never.npy")
    assert ran.exit_code == 2
    assert str(model) in ran.output
    assert ("missing" if change is None else "damaged") in ran.output
    assert not (folder / "never.npy").exists()


def bad_files(folder: Path) -> dict[str, Path]:
    x = np.load(folder / "database.npy").astype(np.float32)
    path = {name: folder / f"bad-{name}.npy" for name in ("dim", "nan", "empty", "text", "codes")}
    np.save(path["dim"], x[:, :5])
    np.save(path["nan"], np.where(np.arange(300)[:, None] == 250, np.nan, x))
    np.save(path["empty"], x[:0])
    np.save(path["text"], np.array([["a", "b"]]))
    np.save(path["codes"], np.full((3, 2), 255, np.uint8)[:, :1].repeat(3, axis=1))
    path["truncated"] = folder / "bad.fvecs"
    words = np.column_stack([np.full(300, 8, np.int32), x.view(np.int32)])
    path["truncated"].write_bytes(words.tobytes()[:-6])
    path["header"] = folder / "bad.fbin"
    path["header"].write_bytes(np.array([301, 8], np.uint32).tobytes() + x.tobytes())
    path["absent"] = folder / "absent.npy"
    path["ending"] = folder / "x.txt"
    path["ending"].write_text("1 2 3")
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dim", "5 dimensions a vector, but the model has 8"),
        ("nan", "bad-nan.npy holds NaN or Inf"),
        ("empty", "no rows|has 0 rows|empty"),
        ("text", "dtype"),
        ("truncated", "cut off|truncated"),
        ("header", "9608 bytes, but 301 rows of 8 columns take 9640"),
        ("absent", "no file"),
        ("ending", "ending"),
    ],
)
def test_bad_vectors_leave_no_codes(folder: Path, name: str, message: str) -> None:
    path, out = bad_files(folder)[name], folder / "out.npy"
    before = sorted(os.listdir(folder))
    ran = qinco("encode", folder / "run" / "model", path, out)
    assert ran.exit_code == 2, ran.output
    assert len(ran.output.strip().split("qinco: ")) == 2, "one sentence"
    assert any(part in ran.output for part in message.split("|")), ran.output
    assert sorted(os.listdir(folder)) == before


def test_bad_codes_are_refused(folder: Path) -> None:
    model, out = folder / "run" / "model", folder / "out.npy"
    wide = bad_files(folder)["codes"]
    ran = qinco("decode", model, wide, out)
    assert ran.exit_code == 2 and "3 bytes a vector are not the model's" in ran.output
    assert not out.exists()


def test_bad_arguments_are_refused_before_anything_is_made(folder: Path, tmp_path: Path) -> None:
    model, x = folder / "run" / "model", folder / "database.npy"
    out = tmp_path / "out"
    for arguments, message in (
        (["encode", model, x, model], "name the output"),
        (["encode", model, x, folder / "train.npy"], "exists"),
        (["encode", model, x, tmp_path / "no" / "codes.npy"], "there is no directory"),
        (["encode", model, x, tmp_path / "codes.txt"], "name the output"),
        (["encode", model, x, out, "--shard", "5/2"], "there is no shard 5/2"),
        (["encode", tmp_path, x, tmp_path / "codes.npy"], "is not a saved model"),
        (["encode", model, x, tmp_path / "c.npy", "--num-candidates", 99], "1 to 16, got 99"),
        (["encode", model, x, tmp_path / "c.npy", "--compute-dtype", "half"], "float32, bfloat16"),
        (["decode", model, x, out, "--compute-dtype", "half"], "float32, bfloat16"),
        (["evaluate", model, "--compute-dtype", "half"], "float32, bfloat16"),
        (["train", "--dataset", x, "--out", out, "--compute-dtype", "half"], "float32, bfloat16"),
        (["train", "--dataset", "deep2m", "--out", out], "known: sift-photos, bigann1m"),
        (["train", "--dataset", tmp_path, "--out", out], "without files of vectors in it"),
        (["train", "--dataset", x, "--out", out, "--init", x], "it is a file, not a folder; give"),
        (["train", "--dataset", x, "--out", out, "--preset", "larg"], "small, qinco1"),
        (["train", "--dataset", x, "--out", out, "--recipe", "larg"], "small, accelerator"),
        (["train", "--dataset", x, "--out", out, "--set", "hiden_dim=3"], "'hidden_dim'"),
        *((["train", "--dataset", x, "--out", out, "--bytes", rate], "not a whole number")
          for rate in ("0.3", "nan", "inf")),
        (["train", "--dataset", x, "--out", out, "--set", "foo=3"], "known: batch_size, beam_size"),
        (["train", "--dataset", x, "--out", out, "--set", "codebook_size=512", "--bytes", "9"],
         "270 training vectors for 512 codewords"),
        (["train", "--dataset", x, "--out", "/proc/no/run", *SMALL], "/proc/no"),
    ):  # fmt: skip
        ran = qinco(*arguments)
        assert ran.exit_code == 2, (arguments, ran.output, ran.exception)
        assert message in ran.output, (arguments, ran.output)
        if arguments[0] == "encode":
            dry = qinco(*arguments, "--dry-run").output
            assert dry.splitlines() == ran.output.splitlines()[-1:], arguments
        assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    """A limit on the size of files is the disk that is full."""
    big = tmp_path / "in"
    big.mkdir()
    np.save(big / "x.npy", np.zeros((100_000, 8), np.uint8))
    model = folder / "run" / "model"
    command = f"{sys.executable} -m qinco_jax encode {model} in/x.npy out.npy"
    ran = subprocess.run(
        f"ulimit -f 10; cd {tmp_path}; {command}",
        shell=True, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 2, ran.stderr
    assert "qinco: " in ran.stderr and "200,128 bytes" in ran.stderr.replace("200128", "200,128")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_no_bar_is_drawn_before_a_refusal(folder: Path, tmp_path: Path) -> None:
    codes = tmp_path / "codes.npy"
    np.save(codes, np.zeros((5, 2), np.uint8))
    np.save(tmp_path / "text.npy", np.array(["a"]))
    for command in (
        ["encode", folder / "run", folder / "train.npy", tmp_path / "c.npy", "--beam-size", 0],
        ["decode", folder / "run", codes, codes],
        ["data", "convert", tmp_path / "text.npy", tmp_path / "x.npy"],
    ):
        ran = qinco(*command)
        assert ran.exit_code == 2 and re.fullmatch("qinco: .*\n", ran.output), ran.output
