"""Where the numbers of long work go: progress bars, json lines and TensorBoard."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tensorboardX import SummaryWriter
from tqdm import tqdm

from qinco_jax.files import replacing
from qinco_jax.training.loop import Log


@contextlib.contextmanager
def run_log(folder: Path) -> Iterator[Log]:
    """A log for `fit.train` that shows a bar and keeps `metrics.jsonl` and event files in `folder`.

    A resumed run continues from its checkpoint: what an earlier process logged beyond that
    is dropped from `metrics.jsonl`.
    """
    file = folder / "metrics.jsonl"
    bar: tqdm | None = None
    shown: dict[str, str] = {}
    writer: SummaryWriter | None = None

    def log(record: Mapping[str, float]) -> None:
        nonlocal bar, writer
        if bar is None or writer is None:  # only once the run has passed its checks
            _keep_before(file, record["step"])
            bar = _bar(record)
            events = str(folder / "tensorboard")
            writer = SummaryWriter(events, purge_step=int(record["step"]))
        with file.open("a") as lines:
            lines.write(json.dumps(dict(record)) + "\n")
        for name in ("loss", "rate", "waiting", "val_mse"):
            if name in record:
                shown[name] = f"{record[name]:.5g}"
                writer.add_scalar(name, record[name], int(record["step"]))
        bar.update(record["vectors"] - bar.n)
        bar.set_postfix(shown, refresh=False)

    try:
        yield log
    finally:
        if bar is not None and writer is not None:
            writer.close()
            bar.close()


@contextlib.contextmanager
def stage_bar(title: str) -> Iterator[Callable[[float, float], None]]:
    """Shows one piece of work as a bar, or with the time that it took where it tells no progress.

    Yields a function of what is done, of how much.
    """
    with tqdm(desc=title, unit=" vectors", unit_scale=True, dynamic_ncols=True,
              mininterval=0.2 if sys.stderr.isatty() else 15) as bar:  # fmt: skip

        def advance(done: float, total: float) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield advance


def _bar(record: Mapping[str, float]) -> tqdm:
    """A bar over training vectors; outside a terminal it writes a line now and then."""
    return tqdm(
        total=record["num_vectors"],
        initial=record["vectors"],
        unit=" vectors",
        unit_scale=True,
        desc="training",
        mininterval=0.2 if sys.stderr.isatty() else 15,
        dynamic_ncols=True,
    )


def _keep_before(file: Path, step: float) -> None:
    """Drops the records of `step` and later."""
    if not file.exists():
        return
    kept = [line for line in file.read_text().splitlines() if _step(line) < step]
    with replacing(file) as partial:
        partial.write_text("".join(line + "\n" for line in kept))


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):  # the line that a killed process was writing
        return float("inf")
