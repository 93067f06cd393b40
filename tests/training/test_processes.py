"""Training in several processes, started as a user starts them: see joined.py."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import joined
import numpy as np
import pytest
from click.testing import CliRunner
from killed import vectors

import qinco_jax as qj
from qinco_jax import files
from qinco_jax.cli import main as cli
from qinco_jax.codecs import named
from qinco_jax.quantizers import qinco

SETTINGS = (
    "codebook_size=16", "hidden_dim=16", "num_blocks=1", "num_epochs=2", "batch_size=64",
    "num_updates=2",
)  # fmt: skip
SECONDS = 300  # until a test gives up


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def ran(*commands: list[object]) -> list[subprocess.CompletedProcess[str]]:
    """Runs processes of joined.py at the same time, to their ends; none is left behind."""
    env = {**os.environ, "PYTHONPATH": str(Path(qj.__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
    env["XLA_FLAGS"] = ""  # one device each
    started = [
        subprocess.Popen(
            [sys.executable, joined.__file__, *map(str, command)],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for command in commands
    ]  # fmt: skip
    end = threading.Timer(SECONDS, lambda: [process.kill() for process in started])
    end.start()
    said = [process.communicate() for process in started]
    end.cancel()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(started, said, strict=True)
    ]


def trained(folder: Path, count: int, **signals: int) -> list[subprocess.CompletedProcess[str]]:
    """`qinco train` in so many processes; `SIGKILL_1=5` kills number 1 at its fifth step."""
    command = ["train", "--dataset", folder / "x.npy", "--out", folder / "run", "--bytes", 1.5]
    command += [part for setting in SETTINGS for part in ("--set", setting)]
    command += ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}"]
    sent = {int(name[-1]): (name[:-2], step) for name, step in signals.items()}
    return ran(*(
        [*sent.get(i, ("", 0)), *command, "--num-processes", count, "--process-id", i]
        for i in range(count)
    ))  # fmt: skip


def test_stopped_and_killed_it_goes_on_and_ends_as_one_process(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", vectors())
    for each in trained(tmp_path, 2, SIGINT_1=5):
        assert each.returncode == 130, each.stderr
        assert re.search(r"stopped at step \d+ of \d+ and saved; run the same", each.stderr)
    for killed in (1, 0):
        both = trained(tmp_path, 2, **{f"SIGKILL_{killed}": 5})
        left = both[1 - killed]
        assert both[killed].returncode == -9 and left.returncode == 1, left.stderr
        assert re.match(
            rf"qinco: a process of this training ended, or process {1 - killed} on .* "
            "start all of them again with the same command, and the run goes on from its last",
            left.stderr.splitlines()[-1],
        )
    every = trained(tmp_path, 4)
    assert [each.returncode for each in every] == [0] * 4, [each.stderr for each in every]
    assert "QINCo2" in every[0].stdout and not any("QINCo2" in each.stdout for each in every[1:])
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = [record["step"] for record in records if "loss" in record]
    assert steps == [*range(1, 1 + max(steps))]

    config, recipe = named.sized("small", 1.5, SETTINGS, None)
    alone = qj.train(vectors(), config, recipe)
    start = qj.load(tmp_path / "run/start")

    def compare(together: jax.Array, alone: jax.Array, start: jax.Array) -> None:
        difference, movement = np.std(together - alone), np.std(alone - start)
        assert difference <= 1e-3 * movement

    together = qj.load(tmp_path / "run")
    jax.tree.map(compare, *map(qinco.parameters, (together, alone, start)))


def test_what_one_process_cannot_train_on_all_refuse(tmp_path: Path) -> None:
    """In words that name the process; the last error comes while the others wait in a step."""
    port = free_port()
    first, other = ran([port, 0, tmp_path / "run"], [port, 1, tmp_path / "run"])
    lines = [re.findall("^process.*", each.stdout, re.MULTILINE) for each in (first, other)]
    host = re.escape(socket.gethostname())
    expected = [
        f"process 0 on {host}: process 1 on {host} differs: seed is 1 there and 0 here; start all",
        f"process 0 on {host}: process 1 on {host} differs: it was given other training vectors",
        f"process 1 on {host}: row 700 of the training vectors holds NaN",
        f"process 0 on {host}: process 1 on {host} differs: qinco_jax is 0.0 there",
        f"process 0 on {host}: metrics.jsonl: No space left on device; check the path",
    ]
    for said in lines:
        assert len(said) == len(expected), first.stderr + other.stderr
        for line, pattern in zip(said, expected, strict=True):
            assert re.match(pattern, line)


def test_a_coordinator_that_never_answers() -> None:
    at = f"127.0.0.1:{free_port()}"
    command = ["train", "--distributed", "--coordinator", at, "--num-processes", 2]
    (alone,) = ran(["WAIT", 2, *command, "--process-id", 1])
    assert alone.returncode == 2
    assert f"qinco: process 0 does not answer at {at} within" in alone.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coordinator", "a:1"], "need --distributed"),
        (["--distributed", "--process-id", "0"], "give --coordinator, --num-processes and"),
        (["--distributed"], "cannot be joined .*; give --coordinator"),
        (["--distributed", "--coordinator", "a", "--num-processes", "2", "--process-id", "0"],
         "--coordinator must be HOST:PORT, got 'a'"),
        (["--distributed", "--coordinator", "a:1", "--num-processes", "2", "--process-id", "2"],
         "--process-id must be 0 to 1, got 2"),
    ],
)  # fmt: skip
def test_options_that_name_no_processes_are_refused(options: list[str], message: str) -> None:
    done = CliRunner().invoke(cli.main, ["train", *options])
    assert done.exit_code == 2 and re.search(message, done.output), done.output


def test_a_lock_of_another_host_says_which_file_to_remove(tmp_path: Path) -> None:
    """As some network filesystems keep it after that host died."""
    lock = tmp_path / ".lock"
    with files.locked(lock, "trains"):
        (tmp_path / ".lock-holder").write_text("process 7 on elsewhere")
        refused = pytest.raises(qj.InputError, match=f"^process 7 on elsewhere.*remove {lock} if")
        with refused, files.locked(lock, "trains"):
            pass
