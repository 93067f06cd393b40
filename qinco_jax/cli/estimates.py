"""What `--dry-run` shows: rows, bytes, memory and time, from a measurement of some seconds."""

import dataclasses
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qinco_jax.cli.words import counted
from qinco_jax.codecs import faiss, named
from qinco_jax.codecs.codec import Contender
from qinco_jax.codecs.size import size_of, smaller
from qinco_jax.config import QincoConfig, in_bytes
from qinco_jax.datasets.official import format_size
from qinco_jax.evaluate import machine
from qinco_jax.quantizers import coding, packing
from qinco_jax.quantizers.coding import Model
from qinco_jax.training.estimate import Costs, Estimate, estimate, searching
from qinco_jax.training.recipe import Recipe, length
from qinco_jax.training.run_folder import Schedule
from qinco_jax.training.train import settled
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows

ENCODED_ROWS = 4096
TRAINED_ROWS = 4096, 8192  # of a codec whose training is timed as a whole


def training(x_train: Rows, x_val: Rows, config: QincoConfig, recipe: Recipe) -> str:
    """Of a training, which ends earlier if it stops improving."""
    recipe = settled(recipe, len(x_train), len(x_val))
    return f"dry run: {_training(estimate(x_train, x_val, config, recipe))}; {_memory()}"


def schedule(chosen: Schedule, found: Costs, recipe: Recipe, num_rows: int) -> str:
    """How long a run will train that was given minutes, and why."""
    seen = chosen.num_epochs * chosen.epoch_rows
    batch_size, *_ = length(recipe, num_rows)
    return (
        f"{chosen.minutes:g} minutes are {chosen.num_epochs:,} epochs of {chosen.epoch_rows:,} "
        f"rows, each of the {num_rows:,} seen {seen / num_rows:.2g} times: here the start takes "
        f"about {duration(found.start)}, compiling {duration(found.compiling)}, "
        f"{batch_size:,} rows {found.batch:.2g} seconds, and a validation {found.validation:.2g}"
    )


def large_model(config: QincoConfig, num_rows: int) -> str:
    """That a model takes more bytes than the codes of so many vectors, and what would take less.

    Empty where it takes no more.
    """
    own, codes = size_of(config), math.ceil(num_rows * config.bits / 8)
    if own <= codes:
        return ""
    text = (
        f"the model takes {format_size(own)}, more than the codes of the {num_rows:,} vectors, "
        f"{format_size(codes)}, and as much as those of {8 * own / config.bits:,.0f} vectors"
    )
    settings = smaller(config, codes)
    if not settings:
        return text
    less = size_of(dataclasses.replace(config, **settings))
    asked = " ".join(f"--set {name}={value}" for name, value in settings.items())
    even = "A smaller network" if less <= codes else "Even the smallest network"
    return f"{text}. {even}, {asked}, takes {format_size(less)}"


def encoding(model: Model, x: Rows, **search: Any) -> str:
    """Of a file of codes."""
    rows = checks.finite(np.resize(np.asarray(x[:ENCODED_ROWS]), (ENCODED_ROWS, x.shape[1])))
    coding.encode(model, rows, **search)
    begin = time.perf_counter()
    np.asarray(coding.encode(model, rows, **search))
    seconds = (time.perf_counter() - begin) / ENCODED_ROWS
    width, dtype = packing.row_shape(model.config)
    size = width * dtype.itemsize * len(x)
    return (
        f"dry run: {len(x):,} vectors at {1 / seconds:,.0f} a second take about "
        f"{duration(len(x) * seconds)}; the codes take {format_size(size)} on disk; {_memory()}"
    )


def comparison(contenders: Sequence[Contender], x_train: Rows, x_val: Rows, seeds: int) -> str:
    """Of the trainings of a comparison, one line each; a folder may have some of them already."""
    lines, total = [], 0.0
    for contender in contenders:
        settings = contender.facts.get("settings", {})
        name = f"{contender.codec} at {in_bytes(contender.bytes)}"
        if "recipe" in settings:
            config = QincoConfig.from_settings(settings["config"])
            recipe = settled(Recipe(**settings["recipe"]), len(x_train), len(x_val))
            found = estimate(x_train, x_val, config, recipe)
            lines.append(f"{name}: {_training(found)}")
            total += found.seconds
        elif "config" in settings:
            lines.append(f"{name}: a trained model")
        else:
            rows, seconds = _baseline(contender, x_train)
            lines.append(f"{name}: {rows:,} rows take about {duration(seconds)}")
            total += seconds
    times = f" with each of {seeds} seeds" if seeds > 1 else ""
    whole = f"dry run: training{times} takes about {duration(seeds * total)}, and then measuring"
    return "\n".join([*lines, f"{whole}; {_memory()}"])


def duration(seconds: float) -> str:
    """A time in the largest unit of which there is more than one."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return counted(max(1, round(seconds)), "second")


def _training(found: Estimate) -> str:
    long, batches = duration(found.seconds), counted(found.batches, "batch", "batches")
    work = f"{found.rows:,} rows in {batches} take about {long}, less if it stops improving"
    if found.batches == 0:
        work = f"no epochs are trained, and the start takes about {long}"
    return (
        f"{work}; the model takes {format_size(found.model_bytes)} in memory, the run's folder up "
        f"to {format_size(found.run_bytes)}"
    )


def _baseline(contender: Contender, x: Rows) -> tuple[int, float]:
    """Rows that it is trained on, and the seconds; if they are moved, with finding neighbours."""
    if "mix" not in contender.facts:
        return len(x), _whole_training(contender, x, len(x))
    text = contender.codec.replace(named.MOVED, "")
    (plain,) = named.contenders([text], [contender.bytes], x.shape[1])
    rows = -(-faiss.MOVED_ROWS // len(x)) * len(x)
    found, _ = searching(checks.finite(np.asarray(x[: TRAINED_ROWS[-1]], np.float32)), len(x))
    return rows, found + _whole_training(plain, x, rows)


def _whole_training(contender: Contender, x: Rows, num_rows: int) -> float:
    """Seconds on so many rows, along the line through two trainings on a few."""
    sizes = [min(count, len(x)) for count in TRAINED_ROWS]
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for size in (sizes[0], *sizes):  # the first one loads and compiles
            begin = time.perf_counter()
            contender.train(np.asarray(x[:size]), 0, Path(folder), _silent)
            seconds.append(time.perf_counter() - begin)
    _, low, high = seconds
    slope = max(0.0, high - low) / max(1, sizes[1] - sizes[0])
    return high + slope * (num_rows - sizes[1])


def _silent(done: float, total: float, doing: str = "") -> None:
    """Progress of a measurement, which is short."""


def _memory() -> str:
    peak = machine.peak_memory()
    return f"this measurement took {format_size(int(peak * 2**20))} of memory" if peak else ""
