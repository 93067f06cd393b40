"""Where the numbers of long work go: progress bars, json lines and TensorBoard."""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

from tensorboardX import SummaryWriter
from tqdm import tqdm

from qinco_jax.files import replacing
from qinco_jax.training.loop import Advance, Log

TICK_SECONDS = 1.0  # between signs of life in a terminal
LINE_SECONDS = 60.0  # between lines elsewhere, such as in a log file
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
CLOCK = "{desc}: {elapsed}"
WORTH_KNOWING = 0.1  # share of the time spent waiting for vectors


@contextlib.contextmanager
def run_log(folder: Path) -> Iterator[tuple[Log, Advance]]:
    """The `log` and `advance` of `train`: bars, and `metrics.jsonl` and event files in `folder`.

    A resumed run continues from its checkpoint: what an earlier process logged beyond that
    is dropped from `metrics.jsonl`. A finished run, which tells nothing, shows nothing.
    """
    file = folder / "metrics.jsonl"
    stage: _Stage | None = None
    shown: dict[str, str] = {}
    writer: SummaryWriter | None = None

    def advance(done: float, total: float, doing: str = "") -> None:
        nonlocal stage
        stage = stage or _Stage("training")
        stage.advance(done, total, doing)

    def log(record: Mapping[str, float]) -> None:
        nonlocal stage, writer
        if writer is None:  # only once the run has passed its checks
            _keep_before(file, record["step"])
            events = str(folder / "tensorboard")
            writer = SummaryWriter(events, purge_step=int(record["step"]))
        with file.open("a") as lines:
            lines.write(json.dumps(dict(record)) + "\n")
        for name in ("loss", "rate", "waiting", "val_mse"):
            if name in record:
                writer.add_scalar(name, record[name], int(record["step"]))
        shown.update(
            {name: f"{record[name]:.5g}" for name in ("loss", "val_mse") if name in record}
        )
        if "waiting" in record:
            shown.pop("waiting", None)
            if record["waiting"] > WORTH_KNOWING:
                shown["waiting"] = f"{record['waiting']:.0%}"
        stage = stage or _Stage("training")
        stage.advance(record["vectors"], record["num_vectors"], shown=shown)

    try:
        yield log, advance
    finally:
        if writer is not None:
            writer.close()
        if stage is not None:
            stage.close()


@contextlib.contextmanager
def stage_bar(title: str) -> Iterator[Advance]:
    """Shows one piece of work as a bar, or with its time where it cannot tell how far it is."""
    stage = _Stage(title)
    try:
        yield stage.advance
    except BaseException:
        stage.close(leave=stage.has_advanced)  # nothing, where the work was refused
        raise
    stage.close()


class _Stage:
    """A line that shows how far a piece of work is, and a line for each part of it that is named.

    It has a bar once a total is known; before, the time goes on, so that nobody takes it for dead.
    """

    def __init__(self, title: str) -> None:
        self.title, self.doing, self.bar = title, "", _line(title)
        self.has_advanced = False
        self._lock, self._closed = threading.Lock(), threading.Event()
        threading.Thread(target=self._tick, daemon=True).start()

    def advance(
        self, done: float, total: float, doing: str = "", shown: Mapping[str, str] | None = None
    ) -> None:
        """See `Advance`; `shown` stands behind the bar."""
        with self._lock:
            self.has_advanced = True
            if doing != self.doing:
                self.doing, desc = doing, f"{self.title}, {doing}" if doing else self.title
                if self.bar.bar_format == BAR:
                    self.bar.close()
                    self.bar = _line(desc)
                self.bar.set_description_str(desc, refresh=False)
            if total and self.bar.bar_format == CLOCK:
                self.bar.bar_format = BAR
                self.bar.n = self.bar.initial = self.bar.last_print_n = done  # of a resumed run
                self.bar.last_print_t = time.time()
            if total:
                self.bar.total = total
                self.bar.set_postfix(shown, refresh=False)
                self.bar.update(done - self.bar.n)

    def close(self, leave: bool = True) -> None:
        """Leaves the last line as it is, or no line."""
        with self._lock:
            self._closed.set()
            self.bar.leave = leave
            self.bar.close()

    def _tick(self) -> None:
        while not self._closed.wait(TICK_SECONDS if sys.stderr.isatty() else LINE_SECONDS):
            with self._lock:
                if not self._closed.is_set():
                    self.bar.refresh()


def _line(desc: str) -> tqdm:
    terminal = sys.stderr.isatty()
    return tqdm(
        desc=desc,
        bar_format=CLOCK,
        dynamic_ncols=terminal,
        miniters=1,
        mininterval=0.2 if terminal else float("inf"),  # elsewhere `_tick` alone writes
        delay=0 if terminal else 1e-9,  # not before there is something to say
        file=sys.stderr if terminal else _Lines(sys.stderr),
    )


class _Lines:
    """A file in which each state of a bar is a line of its own, for logs and pipes."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        if text.strip():
            self._file.write(text.strip() + "\n")

    def flush(self) -> None:
        self._file.flush()


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
