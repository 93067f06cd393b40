"""What a GPU or TPU does in six minutes: encoding, decoding, training, start-up.

    python experiments/accelerator.py --out experiments/results/accelerator.jsonl

Prints as it goes. Each part has a process and a time of its own, so that one that hangs costs no
other; the most telling come first. Nothing else should run on the card.

Encoding and decoding: `share` is of the peak of products of the network's own shapes, measured on
the spot; `compile_s` how much longer the first call took than the second. Training: the MSE of held
back rows after so many seconds of steps. Start-up: seconds from the process's begin to what is
encoded and to the first step, with an empty cache of compiled programs and with a filled one;
`compile_s` is what they took to compile or to come from it.
"""

import dataclasses
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import recipes
import speed
import timing
import workload

import qinco_jax as qj
from qinco_jax.evaluate import machine, results
from qinco_jax.quantizers import precision
from qinco_jax.training.train import split

SEARCHES = workload.search(16, 32), workload.search(2, 64, joint=True)
SECONDS = 1.0  # of a measurement
PEAK_ROWS = 65_536
NUM_TEST = 10_000
STEPPED = "qinco2-S", "accelerator"  # the model and the recipe of trainings
FEW_ROWS = 20_000  # that a start needs
COMPILED = "/jax/core/compile/backend_compile_duration"  # or taken from the cache
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def with_share(name, row):
    """The row of a model with its share of the peak of its network's products."""
    config = workload.sized(name)
    top = peak((PEAK_ROWS, config.embed_dim, config.hidden_dim), row["dtype"])
    return {**row, "peak_gflops": top, "share": row["gflops"] / top}


@functools.cache
def peak(shape, dtype):
    return timing.peak(jnp.dtype(dtype), SECONDS, [shape])["gflops"]


def encode(names, dataset):
    del dataset
    for name in names:
        for search in SEARCHES:
            for dtype in reversed(precision.COMPUTE_DTYPES):
                row = speed.encoding({"name": name}, search, dtype, SECONDS)
                yield {"what": "encode", **with_share(name, row)}


def decode(names, dataset):
    del dataset
    for name in names:
        for dtype in reversed(precision.COMPUTE_DTYPES):
            row = speed.decoding((name,), dtype, SECONDS)
            yield {"what": "decode", **with_share(name, row)}


def train(seconds, dataset):
    preset, recipe = STEPPED
    config, recipe = qj.PRESETS[preset], qj.RECIPES[recipe]
    kept, held_back = split(qj.datasets.load(dataset).train, None, recipe)
    recipe = recipes.lasting(recipe, seconds, recipes.seconds_per_batch(config, recipe, kept))
    seen = []
    begin = time.perf_counter()
    model = qj.train(
        kept, config, recipe, x_val=held_back[:1000],
        log=lambda record: seen.append((time.perf_counter(), record)),
    )  # fmt: skip
    end = time.perf_counter()
    x = np.float32(held_back[-NUM_TEST:])
    x_hat = qj.decode(model, qj.encode(model, x))
    yield {
        "what": "train", "model": preset, "recipe": STEPPED[1], "asked": seconds,
        "before": seen[0][0] - begin, "seconds": end - seen[0][0],
        "vectors": seen[-1][1]["vectors"], "mse": float(qj.mse(x, x_hat)), "rows": len(kept),
    }  # fmt: skip


class Stepped(Exception):
    """The first step is done."""


def start(dataset):
    began, compiled = float(os.environ["BEGAN"]), []

    def listen(event, seconds, **_):
        if event == COMPILED:
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    kept = qj.datasets.load(dataset).train[:FEW_ROWS]
    config = qj.PRESETS[STEPPED[0]]
    model = workload.random_model(config.for_dim(kept.shape[1]))
    begin = time.time()
    np.asarray(qj.encode(model, kept[:4096]))
    encoded = time.time()
    recipe = dataclasses.replace(qj.RECIPES[STEPPED[1]], num_epochs=1, mix=0.0)

    def log(record):
        if "loss" in record:
            raise Stepped

    try:
        qj.train(kept, config, recipe, log=log)
    except Stepped:
        stepped = time.time()
    yield {
        "what": "start", "model": STEPPED[0], "before": begin - began, "encode": encoded - begin,
        "train": stepped - encoded, "programs": len(compiled), "compile_s": sum(compiled),
    }  # fmt: skip


def step(dataset):
    del dataset
    flags = os.environ.get("XLA_FLAGS", "")
    yield {"what": "step", "xla_flags": flags, **speed.training(*STEPPED, SECONDS)}


class Part(NamedTuple):
    """What one process measures, in how many seconds at most, and what its environment adds."""

    measure: Callable[[str], Any]
    limit: int
    environment: Mapping[str, str] = {}


PARTS = {
    "encode S": Part(functools.partial(encode, ["qinco2-S"]), 60),
    "decode": Part(functools.partial(decode, ["qinco2-S", "qinco2-M", "qinco2-L"]), 35),
    "train 6 s": Part(functools.partial(train, 6), 35),
    "train 60 s": Part(functools.partial(train, 60), 95),
    "start": Part(start, 30),
    "start again": Part(start, 20),
    "encode M, L": Part(functools.partial(encode, ["qinco2-M", "qinco2-L"]), 40),
    "step": Part(step, 22),
    "step, deterministic": Part(step, 23, {"XLA_FLAGS": DETERMINISTIC}),
}
"""In order of worth; six minutes at most."""


def measure(name, out, dataset):
    """A part's rows, printed and added to the file as they come."""
    facts, out = machine.facts(), Path(out)
    for row in PARTS[name].measure(dataset):
        row = {"part": name, **row, **facts}
        results.write([*(results.read(out) if out.exists() else []), row], out)
        shown = {key: row[key] for key in SHOWN if row.get(key) is not None}
        click.echo(", ".join(f"{key} {speed.cell(value)}" for key, value in shown.items()))


SHOWN = (
    "what", "model", "num_candidates", "beam_size", "joint", "dtype", "recipe", "xla_flags",
    "vectors_per_s", "gflops", "share", "peak_gflops", "compile_s", "ms", "asked", "before",
    "encode", "train", "programs", "seconds", "vectors", "mse",
)  # fmt: skip


def run(name, cache, *options):
    """Runs a part in a process of its own."""
    part, begin = PARTS[name], time.time()
    env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache, "BEGAN": str(begin)}
    cached = "true" if name.startswith("start") else "false"  # elsewhere compilations are timed
    env |= {"JAX_ENABLE_COMPILATION_CACHE": cached}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    for key, value in part.environment.items():
        env[key] = f"{env.get(key, '')} {value}".strip()
    command = [sys.executable, __file__, "--part", name, *options]
    try:
        code = subprocess.run(command, env=env, timeout=part.limit, check=False).returncode
    except subprocess.TimeoutExpired:
        code = f"stopped after its {part.limit} seconds"
    click.echo(f"[{name}: {time.time() - begin:.0f} s{'' if code == 0 else f', FAILED: {code}'}]")


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--out", required=True, type=click.Path(), help="file of json lines, added to")
@click.option("--dataset", default="sift-photos", show_default=True, help="to train on")
@click.option("--part", "name", type=click.Choice(list(PARTS)), help="measure this one, here")
def main(out, dataset, name):
    if name is not None:
        measure(name, out, dataset)
        return
    with tempfile.TemporaryDirectory() as cache:
        for name in PARTS:
            run(name, cache, "--out", out, "--dataset", dataset)


if __name__ == "__main__":
    main()
