"""Ctrl-C: whatever drops its exception, the program ends with 130 and a sentence that is true."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import qinco_jax as qj
from qinco_jax.interrupts import Interrupted, insisting, noticed

SECONDS = 20.0  # after which an interrupt counts as lost


def press(*_: object) -> None:
    signal.raise_signal(signal.SIGINT)


def in_a_collection() -> None:
    def once(*_: object) -> None:
        gc.callbacks.remove(once)
        press()

    gc.callbacks.append(once)
    gc.collect()


def in_a_finalizer() -> None:
    type("Held", (), {"__del__": press})()


def in_code_that_drops_all() -> None:
    with contextlib.suppress(BaseException):
        press()


def wait() -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.parametrize("lose", [in_a_collection, in_a_finalizer, in_code_that_drops_all, press])
def test_an_interrupt_that_is_dropped_comes_again(lose: Callable[[], None]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)]
    with pytest.raises(KeyboardInterrupt), insisting():
        lose()
        wait()
        pytest.fail("lost")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_an_interrupt_leaves_time_to_clean_up() -> None:
    @contextlib.contextmanager
    def slow() -> Iterator[None]:
        try:
            yield
        finally:
            try:
                raise OSError("another failure meanwhile")
            except OSError:
                time.sleep(0.3)
            done.append("cleaned up")

    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), insisting(), slow():
        press()
    assert done == ["cleaned up"]


def test_an_interrupt_is_told_apart_from_what_came_of_it() -> None:
    with pytest.raises(KeyboardInterrupt), insisting():
        try:
            press()
        except KeyboardInterrupt:
            raise ValueError("what a library made of it") from None
    with pytest.raises(Interrupted, match="already done"), insisting():
        in_a_collection()


def test_one_that_comes_too_late_to_be_looked_at_is_raised() -> None:
    with pytest.raises(KeyboardInterrupt), noticed():
        press()


def test_a_second_one_ends_the_process_and_a_background_one_is_ignored() -> None:
    script = """
import signal, sys, time
from qinco_jax.interrupts import insisting
if "background" in sys.argv:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
with insisting():
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.raise_signal(signal.SIGINT)
"""
    for arguments, code in (([], 130), (["background"], 0)):
        ran = subprocess.run([sys.executable, "-c", script, *arguments], check=False)
        assert ran.returncode == code


PROGRAM = """
import gc, os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
where = sys.argv.pop(1)

def imports():
    while "jax" not in sys.modules:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)

def collection(phase, _):
    frame = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.endswith("cli/codes.py"):
        frame = frame.f_back
    if frame is not None and frame.f_code.co_name == where:
        gc.callbacks.remove(collection)
        os.kill(os.getpid(), signal.SIGINT)

if where == "imports":
    threading.Thread(target=imports, daemon=True).start()
else:
    gc.set_threshold(50)
    gc.callbacks.append(collection)
from qinco_jax.__main__ import run
run()
"""


@pytest.mark.parametrize(
    ("where", "said"),
    [("imports", ""), ("decode", "qinco: interrupted; nothing was kept")],
)
def test_the_program_ends_with_130_wherever_it_is_interrupted(
    tmp_path: Path, where: str, said: str
) -> None:
    config = qj.QincoConfig(
        num_steps=2, codebook_size=4, hidden_dim=4, num_candidates=2, beam_size=2
    )
    x = np.random.default_rng(0).normal(size=(50, 4))
    model = qj.train(x, config, num_epochs=0)
    qj.save(model, tmp_path / "model")
    np.save(tmp_path / "codes.npy", np.zeros((50, 1), np.uint8))
    command = [sys.executable, "-c", PROGRAM, where, "decode", "model", "codes.npy", "out.npy"]
    root = {**os.environ, "PYTHONPATH": str(Path(qj.__file__).parents[1])}
    ran = subprocess.run(
        command, cwd=tmp_path, env=root, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 130, ran.stderr
    assert ran.stderr.strip().rpartition("\r")[2].rpartition("\n")[2] == said, ran.stderr
    assert "ignored" not in ran.stderr and "Traceback" not in ran.stderr
    assert sorted(os.listdir(tmp_path)) == ["codes.npy", "model"]
