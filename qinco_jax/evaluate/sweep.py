"""Trains and measures codecs at several rates, and adds what a folder lacks.

The folder holds `results.jsonl`, whose rows depend only on the data, the codecs, the seeds and the
software, and `costs.jsonl`, which has what was timed. Rows are added as they are finished and kept
sorted, so an interrupted sweep goes on, several processes may share a folder, and the final files
are the same. What is being trained is locked; a lock ends with its process.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qinco_jax.codecs.codec import AtRate, Codec, Contender
from qinco_jax.errors import InputError
from qinco_jax.evaluate import machine, results
from qinco_jax.evaluate.metrics import Score, measure
from qinco_jax.evaluate.neighbours import Queries
from qinco_jax.evaluate.progress import Stage, counting
from qinco_jax.evaluate.results import COSTS, RESULTS, Row
from qinco_jax.files import replacing
from qinco_jax.training.loop import Advance
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows
from qinco_jax.words import counted

MODELS = "models"
TIMED_ROWS = 8192
WAIT_SECONDS = 2.0
KEY = ("codec", "bytes", "seed")

Key = tuple[str, float, int]


class Benchmark(NamedTuple):
    """What all contenders are trained and measured on.

    Attributes:
      dataset: name of the data set.
      train: [N, D] training vectors.
      database: [S, D] vectors to encode.
      query_sets: queries of the database, the main set first.
      trial_rows: [T, D] vectors to choose readings of distances by (`readings`).
    """

    dataset: str
    train: Rows
    database: Rows
    query_sets: Sequence[Queries]
    trial_rows: np.ndarray


def run(
    contenders: Sequence[Contender],
    benchmark: Benchmark,
    folder: Path,
    seeds: Sequence[int],
    stage: Stage,
) -> None:
    """Adds the rows that `folder` lacks.

    Args:
      contenders: what to train and measure, in this order.
      benchmark: what to train and measure them on.
      folder: an existing folder with rows of this benchmark only.
      seeds: every contender is trained with each.
      stage: shows progress.
    """
    from filelock import FileLock, Timeout  # not at the top: slow to import

    todo = [(contender, seed) for seed in seeds for contender in contenders]
    while todo:
        left = []
        for contender, seed in todo:
            try:
                with FileLock(folder / f".{_run_name(contender, seed)}.lock", timeout=0):
                    _finish(contender, benchmark, folder, seed, stage)
            except Timeout:  # another process is training it
                left.append((contender, seed))
        if len(left) == len(todo):
            time.sleep(WAIT_SECONDS)
        todo = left


def _finish(
    contender: Contender, benchmark: Benchmark, folder: Path, seed: int, stage: Stage
) -> None:
    """Trains a contender if rows of it are missing, and adds them one by one."""
    done = {_key(row): row for row in read(folder / RESULTS)}
    _check_settings(contender, seed, done, folder)
    missing = [rate for rate in contender.rates if (contender.codec, rate, seed) not in done]
    if not missing:
        return
    title = f"{contender.codec} at {counted(contender.bytes, 'byte')}"
    title += f", seed {seed}" * (seed > 0)
    with stage(f"training {title}") as advance:
        at_rate, seconds = _train(contender, benchmark, folder, seed, advance)
    for rate in missing:
        codec = at_rate(rate)
        with stage(f"measuring {contender.codec} at {counted(rate, 'byte')}") as advance:
            progress = counting(advance, len(benchmark.database))
            score = measure(
                codec, benchmark.database, benchmark.query_sets, progress,
                trial_rows=benchmark.trial_rows,
            )  # fmt: skip
            key = {"codec": contender.codec, "bytes": rate, "seed": seed}
            cost = {**key, "train_seconds": seconds, **_costs(codec, benchmark.database)}
        _add(folder / COSTS, cost)
        _add(folder / RESULTS, {**key, **_row(contender, codec, benchmark, score)})


def _check_settings(contender: Contender, seed: int, done: Mapping[Key, Row], folder: Path) -> None:
    """Raises `InputError` if the folder has rows of a contender with other settings."""
    facts = json.loads(json.dumps(dict(contender.facts)))
    for rate in contender.rates:
        row = done.get((contender.codec, rate, seed))
        if row is not None and any(row.get(name) != value for name, value in facts.items()):
            raise InputError(
                f"{folder} has {contender.codec} at {counted(rate, 'byte')} with other settings; "
                "choose another folder, or keep the settings"
            )


def _train(
    contender: Contender, benchmark: Benchmark, folder: Path, seed: int, advance: Advance
) -> tuple[AtRate, float | None]:
    """The trained contender, and its training time in s, `None` if training was interrupted."""
    run_dir = folder / MODELS / _run_name(contender, seed)
    record, resumed, begin = run_dir / "seconds.json", run_dir.exists(), time.perf_counter()
    at_rate = contender.train(benchmark.train, seed, run_dir, advance)
    if record.exists():
        return at_rate, json.loads(record.read_text())
    seconds = None if resumed else round(time.perf_counter() - begin, 2)
    if run_dir.exists() and seconds is not None:
        with replacing(record) as partial:
            partial.write_text(json.dumps(seconds))
    return at_rate, seconds


def _run_name(contender: Contender, seed: int) -> str:
    name = contender.model.partition("@")[0].replace("/", "-").replace(":", "-").strip("-.")
    return f"{name}-{contender.bytes:g}B-seed{seed}"


def _costs(codec: Codec, database: Rows) -> dict[str, float | None]:
    """Microseconds per vector of warm calls, and MiB of memory beyond what was in use."""
    x = checks.finite(np.asarray(database[:TIMED_ROWS]))
    codes = np.asarray(codec.encode(x))
    np.asarray(codec.decode(codes))
    begin = time.perf_counter()
    np.asarray(codec.encode(x))
    middle = time.perf_counter()
    np.asarray(codec.decode(codes))
    end = time.perf_counter()
    before = machine.reset_memory()  # not while timing: returning freed memory takes time
    np.asarray(codec.decode(codec.encode(x)))
    peak = machine.peak_memory()
    return {
        "encode_us": round(1e6 * (middle - begin) / len(x), 3),
        "decode_us": round(1e6 * (end - middle) / len(x), 3),
        "peak_mib": None if peak is None or before is None else round(peak - before, 1),
    }


def _row(contender: Contender, codec: Codec, benchmark: Benchmark, score: Score) -> dict[str, Any]:
    facts = machine.facts()
    return {
        "dataset": benchmark.dataset,
        "label": codec.name,
        "model": contender.model,
        "trained_bytes": contender.bytes,
        "bits": codec.bits,
        "unit_norm": codec.unit_norm,
        "train_rows": len(benchmark.train),
        "database_rows": len(benchmark.database),
        "num_queries": len(benchmark.query_sets[0].vectors) if benchmark.query_sets else 0,
        **results.fields(score, benchmark.query_sets),
        "model_bytes": codec.size,
        **contender.facts,
        "versions": {
            name.removesuffix("_version"): value
            for name, value in facts.items() if name.endswith("_version")
        },
        "machine": f"{facts['cpu']}, {facts['cores']} cores, {facts['device']}",
        "revision": facts["revision"],
    }  # fmt: skip


def read(file: Path) -> list[Row]:
    """The rows of a result file; none if there is no file yet."""
    return results.read(file, KEY) if file.exists() else []


def _add(file: Path, row: Row) -> None:
    """Adds a row to a sorted file, in place of an older one with the same key."""
    from filelock import FileLock  # not at the top: slow to import

    with FileLock(file.with_name(f".{file.name}.lock")):
        rows = [other for other in read(file) if _key(other) != _key(row)]
        results.write(sorted([*rows, row], key=lambda each: (each["bytes"], *_key(each))), file)


def _key(row: Row) -> Key:
    codec, rate, seed = (row[name] for name in KEY)
    return codec, rate, seed
