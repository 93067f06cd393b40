"""Trains and measures codecs at several rates in a folder that remembers what is done.

The folder holds `results.jsonl`, whose rows depend on the data, the codecs, the seeds and the
software alone, and `costs.jsonl`, which has what was timed. Rows are put in as they are finished
and stand in one order, so that an interrupted sweep goes on, several processes may share a folder,
and the end is the same. What is being trained is locked; a lock ends with its process.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from qinco_jax.codecs.codec import Advance, AtRate, Codec, Contender
from qinco_jax.errors import InputError
from qinco_jax.evaluate import machine, report
from qinco_jax.evaluate.metrics import Progress, Score, measure
from qinco_jax.evaluate.neighbours import Queries
from qinco_jax.files import replacing
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows

RESULTS, COSTS, MODELS = "results.jsonl", "costs.jsonl", "models"
TIMED_ROWS = 8192
WAIT_SECONDS = 2.0
KEY = ("codec", "bytes", "seed")

Key = tuple[str, float, int]
Stage = Callable[[str], contextlib.AbstractContextManager[Advance]]
"""Shows one piece of work: a title -> a function of what is done, of how much."""


class Field(NamedTuple):
    """What all contenders have in common.

    Attributes:
      dataset: its name.
      train: [N, D] training vectors.
      database: [S, D] vectors to encode.
      questions: what is asked of it; the first is the main set of queries.
    """

    dataset: str
    train: Rows
    database: Rows
    questions: Sequence[Queries]


def run(
    contenders: Sequence[Contender], field: Field, folder: Path, seeds: Sequence[int], stage: Stage
) -> None:
    """Adds the rows that `folder` lacks.

    Args:
      contenders: what to train and measure, in this order.
      field: on what.
      folder: exists; belongs to this field.
      seeds: every contender is trained with each.
      stage: shows progress.
    """
    todo = [(contender, seed) for seed in seeds for contender in contenders]
    while todo:
        left = []
        for contender, seed in todo:
            try:
                with FileLock(folder / f".{_place(contender, seed)}.lock", timeout=0):
                    _finish(contender, field, folder, seed, stage)
            except Timeout:  # another process is at it
                left.append((contender, seed))
        if len(left) == len(todo):
            time.sleep(WAIT_SECONDS)
        todo = left


def _finish(contender: Contender, field: Field, folder: Path, seed: int, stage: Stage) -> None:
    """Trains a contender if rows of it are missing, and adds them one by one."""
    done = {_key(row): row for row in read(folder / RESULTS)}
    _refuse_other(contender, seed, done, folder)
    missing = [rate for rate in contender.rates if (contender.codec, rate, seed) not in done]
    if not missing:
        return
    title = f"{contender.codec} at {contender.bytes:g} bytes" + f", seed {seed}" * (seed > 0)
    with stage(f"training {title}") as advance:
        at_rate, seconds = _train(contender, field, folder, seed, advance)
    for rate in missing:
        codec = at_rate(rate)
        with stage(f"measuring {contender.codec} at {rate:g} bytes") as advance:
            progress = _counting(advance, len(field.database))
            score = measure(codec, field.database, field.questions, progress)
            key = {"codec": contender.codec, "bytes": rate, "seed": seed}
            cost = {**key, "train_seconds": seconds, **_costs(codec, field.database)}
        _add(folder / COSTS, cost)
        _add(folder / RESULTS, {**key, **_row(contender, codec, field, score)})


def _counting(advance: Advance, total: int) -> Progress:
    """Turns a count of rows after each block into what is done of all."""
    seen = 0

    def count(rows: int) -> None:
        nonlocal seen
        seen += rows
        advance(seen, total)

    return count


def _refuse_other(
    contender: Contender, seed: int, done: Mapping[Key, report.Row], folder: Path
) -> None:
    """Raises `InputError` if rows of a contender are there that were made with other settings."""
    facts = json.loads(json.dumps(dict(contender.facts)))
    for rate in contender.rates:
        row = done.get((contender.codec, rate, seed))
        if row is not None and any(row.get(name) != value for name, value in facts.items()):
            raise InputError(
                f"{folder} has {contender.codec} at {rate:g} bytes with other settings; choose "
                "another folder, or leave the settings as they were"
            )


def _train(
    contender: Contender, field: Field, folder: Path, seed: int, advance: Advance
) -> tuple[AtRate, float | None]:
    """The trained contender, and the seconds that it took unless it took several goes."""
    place = folder / MODELS / _place(contender, seed)
    record, resumed, begin = place / "seconds.json", place.exists(), time.perf_counter()
    at_rate = contender.train(field.train, seed, place, advance)
    if record.exists():
        return at_rate, json.loads(record.read_text())
    seconds = None if resumed else round(time.perf_counter() - begin, 2)
    if place.exists() and seconds is not None:
        with replacing(record) as partial:
            partial.write_text(json.dumps(seconds))
    return at_rate, seconds


def _place(contender: Contender, seed: int) -> str:
    name = contender.family.partition("@")[0].replace("/", "-").strip("-.")
    return f"{name}-{contender.bytes:g}B-seed{seed}"


def _costs(codec: Codec, database: Rows) -> dict[str, float | None]:
    """Microseconds a vector for warm calls, and MB of memory beyond what was in use."""
    x = checks.finite(np.asarray(database[:TIMED_ROWS]))
    codes = np.asarray(codec.encode(x))
    np.asarray(codec.decode(codes))
    begin = time.perf_counter()
    np.asarray(codec.encode(x))
    middle = time.perf_counter()
    np.asarray(codec.decode(codes))
    end = time.perf_counter()
    before = machine.reset_memory()  # apart from the times: getting memory back takes some
    np.asarray(codec.decode(codec.encode(x)))
    peak = machine.peak_memory()
    return {
        "encode_us": round(1e6 * (middle - begin) / len(x), 3),
        "decode_us": round(1e6 * (end - middle) / len(x), 3),
        "peak_mib": None if peak is None or before is None else round(peak - before, 1),
    }


def _row(contender: Contender, codec: Codec, field: Field, score: Score) -> dict[str, Any]:
    facts = machine.facts()
    return {
        "dataset": field.dataset,
        "label": codec.name,
        "family": contender.family,
        "trained_bytes": contender.bytes,
        "bits": codec.bits,
        "unit_norm": codec.unit_norm,
        "train_rows": len(field.train),
        "database_rows": len(field.database),
        "num_queries": len(field.questions[0].vectors) if field.questions else 0,
        **report.figures(score, field.questions),
        "model_bytes": codec.size,
        **contender.facts,
        "versions": {
            name.removesuffix("_version"): value
            for name, value in facts.items() if name.endswith("_version")
        },
        "machine": f"{facts['cpu']}, {facts['cores']} cores, {facts['device']}",
        "revision": facts["revision"],
    }  # fmt: skip


def read(file: Path) -> list[report.Row]:
    """The rows of a result file; none where there is no file yet."""
    return report.read(file, KEY) if file.exists() else []


def _add(file: Path, row: report.Row) -> None:
    """Puts a row into a file at its place, instead of an older one of its kind."""
    with FileLock(file.with_name(f".{file.name}.lock")):
        rows = [other for other in read(file) if _key(other) != _key(row)]
        report.write(sorted([*rows, row], key=lambda each: (each["bytes"], *_key(each))), file)


def _key(row: report.Row) -> Key:
    codec, rate, seed = (row[name] for name in KEY)
    return codec, rate, seed


@contextlib.contextmanager
def silent(title: str) -> Iterator[Advance]:
    """A `Stage` that shows nothing."""
    yield lambda done, total: None
