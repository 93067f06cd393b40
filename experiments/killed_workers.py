"""Kills workers, raylets and commands of an encoding on Ray, and compares its codes with others.

    python experiments/killed_workers.py --out experiments/results/killed_workers.jsonl
    python experiments/killed_workers.py --runs 0 --overhead-rows 5000000 --out FILE

In each run some of them are killed (SIGKILL) at random moments, and the command is run again until
it ends well. The codes must be those of `qinco encode` without workers, byte for byte, and no
process may be left in the end. With `--overhead-rows` it also times both commands, in turn, on that
many vectors, with a larger network. Models are untrained, which costs what trained ones do. Linux
only.
"""

import contextlib
import dataclasses
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click
import numpy as np

import qinco_jax as qj
from qinco_jax.evaluate import machine, results

DIM = 32
CONFIG = qj.QincoConfig(
    num_steps=4, codebook_size=256, hidden_dim=16, num_blocks=1, num_candidates=4, beam_size=4
)
TIMED = dataclasses.replace(qj.PRESETS["small"], beam_size=8)  # what is timed, a usual network
MARK = "QINCO_KILLED_WORKERS"  # in the environment of all processes of a measurement
TITLES = {"worker": b"ray::Worker", "raylet": b"raylet/raylet", "command": b"qinco_jax\0encode"}
LINGER_SECONDS = 120  # in which agents of a Ray whose command was killed end by themselves


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--runs", default=20, show_default=True)
@click.option("--rows", default=1_000_000, show_default=True, help="vectors of a run with kills")
@click.option("--overhead-rows", type=int, help="vectors to time both commands on")
@click.option("--rounds", default=3, show_default=True, help="of the timing")
@click.option("--workers", default=2, show_default=True)
@click.option("--seed", default=0, show_default=True, help="of the kills")
def main(out, runs, rows, overhead_rows, rounds, workers, seed):
    found = results.read(out) if out.exists() else []
    facts = {"workers": workers, **machine.facts()}
    os.environ[MARK] = str(os.getpid())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if runs:
            write_model(folder / "model", CONFIG)
            write_vectors(folder / "x.npy", rows)
            seconds = finished(command(folder, "plain.npy"))
            click.echo(f"one process: {rows:,} vectors in {seconds:.0f} s")
        for run in range(runs):
            row = killed(folder, f"out-{run}", workers, random.Random(seed + run), seconds)
            found.append({"measured": "kills", "run": seed + run, "rows": rows, **row, **facts})
            results.write(found, out)
            click.echo(f"run {run}: {row}")
        if overhead_rows:
            row = overhead(folder, overhead_rows, workers, rounds)
            found.append({"measured": "overhead", "rows": overhead_rows, **row, **facts})
            click.echo(row)
        left = lingering()
        if runs:
            found.append({"measured": "processes left", "count": len(left), **facts})
        click.echo(f"processes left: {len(left)}")
        results.write(found, out)


def write_model(path, config):
    x = np.random.default_rng(0).integers(0, 256, size=(20_000, DIM)).astype(np.float32)
    qj.save(qj.train(x, config, num_epochs=0), path)


def write_vectors(path, rows):
    rng = np.random.default_rng(1)
    x = np.lib.format.open_memmap(path, "w+", np.uint8, (rows, DIM))
    for begin in range(0, rows, 2**20):
        x[begin : begin + 2**20] = rng.integers(0, 256, size=x[begin : begin + 2**20].shape)


def command(folder, out, *options):
    """A started `qinco encode`."""
    return subprocess.Popen(
        [sys.executable, "-m", "qinco_jax", "encode", "model", "x.npy", out, *options],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip


def finished(process):
    """The seconds until a command ends, which it must do well."""
    begin = time.monotonic()
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    return time.monotonic() - begin


def killed(folder, out, workers, rng, seconds):
    """One encoding with one to four kills; what happened in it."""
    kills = [rng.choice(list(TITLES)) for _ in range(rng.randint(1, 4))]
    done, ends, begin = Counter(), Counter(), time.monotonic()
    while True:
        process = command(folder, out, "--workers", str(workers))
        while kills and process.poll() is None:
            if not wait_for("worker", process):
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, seconds / 2))
            mine = [] if process.poll() is not None else processes(kills[0])
            if mine:
                os.kill(rng.choice(mine), signal.SIGKILL)
                done[kills.pop(0)] += 1
        text = process.communicate(timeout=600)[1]
        ends[process.returncode] += 1
        if process.returncode == 0:
            break
        assert process.returncode in (-signal.SIGKILL, 1), text[-2000:]
    return {
        "killed": dict(done), "commands": sum(ends.values()),
        "ended": {str(code): count for code, count in ends.items()},
        "identical": sha256(np.load(folder / "plain.npy")) == sha256(joined(folder / out)),
        "seconds": round(time.monotonic() - begin, 1),
    }  # fmt: skip


def wait_for(kind, process):
    """Whether a process of a kind begins before the command ends."""
    while process.poll() is None:
        if processes(kind):
            return True
        time.sleep(0.2)
    return False


def processes(kind=None):
    """The living processes of this measurement, of one kind."""
    mark, found = f"{MARK}={os.getpid()}".encode(), []
    for place in Path("/proc").iterdir():
        if not place.name.isdecimal() or int(place.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if mark in (place / "environ").read_bytes().split(b"\0"):
                title = (place / "cmdline").read_bytes()
                if title and (kind is None or TITLES[kind] in title):
                    found.append(int(place.name))
    return found


def lingering():
    """Processes that are left after a while."""
    end = time.monotonic() + LINGER_SECONDS
    while processes() and time.monotonic() < end:
        time.sleep(1)
    return processes()


def joined(folder):
    return np.concatenate([np.load(path) for path in sorted(folder.glob("codes-*.npy"))])


def sha256(codes):
    return hashlib.sha256(np.ascontiguousarray(codes).tobytes()).hexdigest()


def overhead(folder, rows, workers, rounds):
    """Seconds of both commands, the least of some rounds."""
    write_model(folder / "model", TIMED)
    write_vectors(folder / "x.npy", rows)
    seconds = {"one process": [], "workers": []}
    for number in range(rounds):
        plain = command(folder, f"timed-{number}.npy")
        seconds["one process"].append(round(finished(plain), 1))
        on_ray = command(folder, f"timed-{number}", "--workers", str(workers))
        seconds["workers"].append(round(finished(on_ray), 1))
    identical = sha256(np.load(folder / "timed-0.npy")) == sha256(joined(folder / "timed-0"))
    ratio = min(seconds["workers"]) / min(seconds["one process"])
    return {"seconds": seconds, "overhead": round(ratio - 1, 3), "identical": identical}


if __name__ == "__main__":
    main()
