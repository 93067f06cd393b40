"""What is shown of long work: in a terminal of 80 columns, and as lines in a file."""

import io
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qinco_jax.training import logs


class Screen(io.StringIO):
    """A terminal that keeps every state of its lines."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[list[str]]:
        """The states of each line, one after another."""
        written = (re.split(r"[\r]|\x1b\[A", line) for line in self.getvalue().split("\n"))
        return [kept for line in written if (kept := [state for state in line if state.strip()])]


@pytest.fixture(params=[80, 110])
def screen(request: Any, monkeypatch: pytest.MonkeyPatch) -> Screen:
    found = Screen()
    monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=found))
    monkeypatch.setattr(logs.tqdm, "__init__", wide(logs.tqdm.__init__, request.param))
    monkeypatch.setattr(logs, "TICK_SECONDS", 0.02)
    return found


def wide(init: Any, columns: int) -> Any:
    """The bar's constructor with a width, which the fake terminal cannot be asked for."""
    return lambda self, **options: init(
        self, **{**options, "dynamic_ncols": False, "ncols": columns, "mininterval": 0}
    )


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    found = io.StringIO()
    monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=found))
    return found


def record(step: int, **values: float) -> dict[str, float]:
    return {"step": step, "vectors": 1024 * step, "num_vectors": 1_310_720, **values}


def test_training_shows_its_errors_and_a_visible_bar(screen: Screen, tmp_path: Path) -> None:
    with logs.run_log(tmp_path) as (log, advance):
        advance(0, 8, "residual k-means")
        advance(4, 8, "residual k-means")
        advance(8, 8, "residual k-means")
        log(record(0, val_mse=40254.2))
        log(record(640, loss=2.71828, rate=0.00123456, waiting=0.02))
        log(record(1280, loss=2.5, rate=1e-6, waiting=0.25))
    means, training = screen.lines()
    assert any(" 50%|" in state for state in means) and "100%|" in means[-1]
    assert "training, residual k-means: " in means[-1]
    middle = next(state for state in training if " 50%|" in state)
    assert "loss=2.7183" in middle and "val_mse=40254" in middle
    assert "waiting" not in middle and "rate" not in middle
    assert "waiting=25%" in training[-1]
    for state in (*means, *training):
        assert len(state.rstrip()) <= 110
        bar = re.search(r"%\|(.*)\|", state)
        assert "%" not in state or (bar is not None and len(bar[1]) >= 5), state
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kept[1]["rate"] == 0.00123456 and kept[1]["waiting"] == 0.02


def test_work_that_cannot_tell_shows_its_time_and_no_bar(screen: Screen) -> None:
    with logs.stage_bar("training lsq at 8 bytes") as advance:
        time.sleep(1.2)
        advance(0, 0, "OPQ by Faiss")
        time.sleep(0.1)
    (states,) = screen.lines()
    assert states[0].strip() == "training lsq at 8 bytes: 00:00"
    assert any(state.strip() == "training lsq at 8 bytes: 00:01" for state in states)  # it goes on
    assert states[-1].strip() == "training lsq at 8 bytes, OPQ by Faiss: 00:01"
    assert not any("|" in state or "%" in state for state in states)


def test_parts_of_a_product_have_lines_of_their_own(screen: Screen, tmp_path: Path) -> None:
    with logs.run_log(tmp_path) as (log, advance):
        for part in range(2):
            advance(4, 4, "residual k-means")
            log(record(640 + 640 * part, loss=1.0))
    titles = [states[-1].partition(":")[0].strip() for states in screen.lines()]
    assert titles == ["training, residual k-means", "training"] * 2
    assert " 50%|" in screen.lines()[1][-1] and "100%|" in screen.lines()[3][-1]


def test_a_pipe_gets_each_result_as_one_line(piped: io.StringIO) -> None:
    for name in ("RQ", "QINCo2"):
        with logs.stage_bar(f"measuring {name}") as advance:
            for done in range(11):
                advance(done, 10)
    lines = piped.getvalue().splitlines()
    assert len(lines) == 2 and "\r" not in piped.getvalue()
    assert all(re.fullmatch(r"measuring (RQ|QINCo2): 100%\|#+\| 00:00<00:00", x) for x in lines)


def test_a_pipe_gets_a_line_now_and_then(
    piped: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "LINE_SECONDS", 0.1)
    with logs.stage_bar("training lsq"):
        time.sleep(0.35)
    assert 2 <= piped.getvalue().count("training lsq: 00:00\n") <= 4


def test_a_finished_run_shows_nothing(screen: Screen, tmp_path: Path) -> None:
    with logs.run_log(tmp_path):
        pass
    assert screen.getvalue() == "" and not list(tmp_path.iterdir())
